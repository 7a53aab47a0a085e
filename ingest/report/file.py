"""report.html in the set's folder: written after the manifest, and only when it would say something else."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ingest.failures import FAILURES
from ingest.ledger import State
from ingest.summary import Summary
from shards.format import MANIFEST, Manifest, xxh3
from shards.writer import write_atomic

REPORT = "report.html"
_MARK = "<!-- of the set {} -->\n"


def bring_report_up_to_date(out: Path, state: State, summary: Summary, command: str) -> list[str]:
    """Write report.html unless the one that is there tells of this very set.

    Parameters
    ----------
    out
        The set, its tables and manifest written.
    summary
        Of this call: what it read and how long it took.
    command
        This call as it was typed.

    Returns
    -------
    list of str
        Names of the files written.
    """
    contents = [path.read_bytes() if (path := out / name).exists() else b"" for name in (MANIFEST, FAILURES)]
    mark = _MARK.format(xxh3(b"\0".join(contents))).encode()
    path = out / REPORT
    if not any(contents) or _ends_with(path, mark):
        return []
    from ingest.cleaning.config import CleaningConfig
    from ingest.cleaning.methods import methods_text
    from ingest.report import ReportInput, render_report

    manifest = Manifest.from_json(contents[0], str(out / MANIFEST)) if contents[0] else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runs with absurd values
        page = render_report(
            ReportInput(
                manifest=manifest,
                rows=list(state.rows.values()),
                qc=state.qc,
                failures=list(state.failures.values()),
                folder=out,
                command=command,
                methods_cleaning=methods_text(CleaningConfig(**_flags(manifest.cleaning if manifest else {}))),
                resources=_resources(state, summary),
            )
        )
    write_atomic(path, page.rstrip("\n").encode() + b"\n" + mark)
    return [REPORT]


def _ends_with(path: Path, mark: bytes) -> bool:
    if not path.is_file() or path.stat().st_size < len(mark):
        return False
    with path.open("rb") as file:
        file.seek(-len(mark), 2)
        return file.read() == mark


def _flags(cleaning: dict[str, Any]) -> dict[str, Any]:
    """Fields of `CleaningConfig` as JSON gives them back."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in cleaning.items()}


def _resources(state: State, summary: Summary) -> dict[str, Any]:
    peaks = [one["peak_rss_bytes"] for one in state.resources if "peak_rss_bytes" in one]
    found: dict[str, Any] = {"peak_rss_bytes": max(peaks)} if peaks else {}
    if summary.num_added:
        found |= {"seconds": summary.build_seconds, "num_bytes_in": summary.num_bytes_in, "workers": summary.workers}
    return found
