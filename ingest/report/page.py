"""The page: what it is made of, and how it is put together."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ingest.failures import Failure
from ingest.report import prose
from ingest.report.facts import facts, provenance
from ingest.report.figures import draw_all
from ingest.report.gallery import draw_gallery
from ingest.report.groups import find_duplicates, group_failures
from ingest.report.measures import Measured, Standout, measure_runs, standouts
from ingest.report.methods import methods
from ingest.report.pictures import MOST_VOXELS
from ingest.report.table import PAGE, columns, packed
from shards.format import Manifest, RunEntry

GENERATOR = "boldstream ingest-fmri"
MOST_STANDOUTS = 12
MOST_KINDS = 30
MOST_FILES = 100


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """What the page tells of."""

    manifest: Manifest | None
    """None as long as no run was ingested."""
    rows: Sequence[RunEntry]
    qc: Mapping[str, Mapping[str, Any]]
    """run_id to the figures of `ingest.quality.run_quality`; a run or a figure may be missing."""
    failures: Sequence[Failure]
    folder: Path
    """The set, its tables and manifest written: some runs are read for pictures."""
    command: str
    methods_cleaning: str
    """What cleaning did, in words for a paper; empty if nothing."""
    resources: Mapping[str, Any]
    """`peak_rss_bytes` of the hungriest worker; `seconds`, `num_bytes_in` and `workers` (in words: `2 workers`) of the
    last call that added runs; what is unknown is left out."""


def render_report(report: ReportInput) -> str:
    """Write report.html.

    The same input gives the same text. Of the set's shards only those of the runs in pictures are
    read; if that fails the page says so in place of the pictures.

    Returns
    -------
    str
        One HTML page that needs nothing but itself.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = _template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    text = environment.from_string(_template("report.html.j2")).render(
        generator=GENERATOR,
        report=report,
        manifest=report.manifest,
        css=_template("report.css"),
        script=script,
        script_hash=digest,
        **_about_failures(report),
        **_about_runs(report),
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _template(name: str) -> str:
    return resources.files("ingest").joinpath("templates", name).read_text(encoding="utf-8")


def _about_failures(report: ReportInput) -> dict[str, Any]:
    return {"groups": group_failures(report.failures), "most_kinds": MOST_KINDS, "most_files": MOST_FILES}


def _about_runs(report: ReportInput) -> dict[str, Any]:
    """Everything that the page says about runs; `rows` is empty if there are none."""
    manifest = report.manifest
    rows = [] if manifest is None else sorted(report.rows, key=lambda row: row.run_id)
    measured = measure_runs(rows, report.qc, 1 if manifest is None else manifest.num_voxels)
    found = standouts(measured)
    duplicates = find_duplicates(rows)
    about = {
        "rows": rows,
        "headline": prose.headline(manifest, rows, len(report.failures), found),
        "notices": prose.notices(
            rows, report.qc, report.failures, duplicates, measured, bool(manifest and manifest.cleaning)
        ),
        "duplicates": duplicates,
    }
    if manifest is None or not rows:
        return about
    reasons = {one.index: _reasons(one, rows, report.qc, measured, manifest.num_voxels) for one in found}
    return {
        **about,
        "facts": facts(manifest, rows, len(report.failures), measured),
        "reasons": reasons,
        "most_standouts": MOST_STANDOUTS,
        "worst_lists": prose.worst_lists(measured, 5),
        "panels": draw_all(measured, rows, manifest.dtype),
        "max_voxels": MOST_VOXELS,
        "gallery": draw_gallery(report.folder, rows, measured, reasons),
        **_about_table(rows, report.qc, measured),
        "methods": methods(manifest, rows, report.qc, report.methods_cleaning),
        "provenance": provenance(manifest, rows, report.qc, report.resources),
        "config": json.dumps(manifest.config, indent=1, default=str),
        "cleaning": json.dumps(manifest.cleaning, indent=1, default=str) if manifest.cleaning else "",
    }


def _reasons(
    one: Standout,
    rows: Sequence[RunEntry],
    qc: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Measured],
    num_voxels: int,
) -> list[str]:
    row = rows[one.index]
    own = qc.get(row.run_id, {})
    return [prose.reason(measured[key], row, own, one.index, num_voxels) for key in one.measures]


def _about_table(
    rows: Sequence[RunEntry], qc: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    table = columns(rows, qc, measured)
    return {"table": table, "page_length": min(PAGE, len(rows)), "packed": packed(table)}
