"""The figures at the top of the page, and what it says at its end about how the set was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ingest.report.measures import Measured
from ingest.report.prose import stored_bytes
from ingest.report.wording import hours, quantity, tally
from ingest.sizes import format_size, plural
from shards.format import Manifest, RunEntry

Fact = tuple[str, str, str]
"""A value, what it is, and a detail."""


def facts(
    manifest: Manifest, rows: Sequence[RunEntry], num_failed: int, measured: Mapping[str, Measured]
) -> list[Fact]:
    """What the set is, in eight figures."""
    num_in, num_out = sum(row.source_bytes for row in rows), stored_bytes(manifest)
    edges = " × ".join(f"{edge:.3g}" for edge in manifest.grid.voxel_mm)
    times = (
        tally((f"{row.tr_s:g} s" for row in rows), "run", 2)
        if len({row.tr_s for row in rows}) > 1
        else f"{rows[0].tr_s:g} s"
    )
    found = [
        (f"{len(rows):,}", "run" if len(rows) == 1 else "runs", _people(rows)),
        (
            hours(sum(row.num_frames * row.tr_s for row in rows)),
            "of signal",
            f"{manifest.num_frames:,} frames, TR {times}",
        ),
        (
            format_size(num_out),
            "stored",
            f"from {format_size(num_in)} of NIfTI; {manifest.dtype}, {plural(len(manifest.shards), 'shard')}",
        ),
        (f"{manifest.num_voxels:,}", "voxels", f"of {' × '.join(map(str, manifest.grid.shape))} at {edges} mm"),
    ]
    found += [
        _median(measured["tsnr"], "tSNR"),
        _median(measured["fd"], "mean FD"),
        _median(measured["error"], "quantisation error"),
    ]
    return [*found, (f"{num_failed:,}", "failed", "left out of the set" if num_failed else "no failure is on record")]


def _people(rows: Sequence[RunEntry]) -> str:
    counts = {
        "subject": len({row.subject for row in rows}),
        "session": len({row.session for row in rows} - {""}),
        "task": len({row.task for row in rows} - {""}),
    }
    return ", ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items() if count)


def _median(found: Measured, label: str) -> Fact:
    known = found.values[found.known]
    if not known.size:
        return (
            ("none", label, "every run is without loss")
            if found.measure.key == "error"
            else ("unknown", label, "no confounds table")
        )
    ends = [quantity(found.measure, float(value), found.median) for value in (known.min(), known.max())]
    value = quantity(found.measure, found.median, found.median)
    if known.size == 1:
        return (value, label, "of the one run")
    return (value, label, f"median; {ends[0]} to {ends[1]}")


def provenance(
    manifest: Manifest, rows: Sequence[RunEntry], qc: Mapping[str, Mapping[str, Any]], resources: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Term and text: what the set was made from and with, and what identifies it."""
    orientations = [str(own["orientation"]) for row in rows if (own := qc.get(row.run_id, {})).get("orientation")]
    edges = " × ".join(f"{edge:.4g}" for edge in manifest.grid.voxel_mm)
    said = [
        ("Grid", f"{' × '.join(map(str, manifest.grid.shape))} voxels of {edges} mm, RAS+"),
        ("Mask", f"{manifest.num_voxels:,} voxels; {manifest.mask_source}"),
        ("Memory and time", effort(resources)),
        ("Set hash", manifest.set_hash),
        ("Mask hash", manifest.mask_hash),
        ("Configuration hash", manifest.config_hash),
        *((f"XXH3 of {name}", value) for name, value in sorted(manifest.tables.items())),
        ("Codec", ", ".join(map(str, manifest.codec.get("chunk", ())))),
    ]
    if orientations:
        said.insert(1, ("Orientation of the sources", f"{tally(orientations, 'run')}; all are stored as RAS+"))
    return said


def effort(resources: Mapping[str, Any]) -> str:
    """Memory and speed of the last call that added runs."""
    said = []
    if resources.get("peak_rss_bytes"):
        said.append(f"the hungriest worker held {format_size(resources['peak_rss_bytes'])} at its peak")
    seconds, num_bytes = resources.get("seconds"), resources.get("num_bytes_in")
    if seconds and num_bytes:
        crew = f" by {resources['workers']}" if resources.get("workers") else ""
        said.append(f"{format_size(num_bytes)} read in {seconds:.3g} s{crew} ({format_size(num_bytes / seconds)}/s)")
    return f"Last call that added runs: {'; '.join(said)}." if said else "Memory and time were not recorded."
