"""`inspect-fmri summary`: what a shard set holds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shards.errors import CorruptShardError
from shards.inspect.target import SetConfig
from shards.inspect.terminal import plural, print_facts, print_json, size

if TYPE_CHECKING:
    from shards.reader import ShardSet

FAILURES = "failures.tsv"
MOST_SHOWN = 12
"""Tasks, columns, classes on a terminal; --json has all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryConfig(SetConfig):
    """Say what is in the set: grid, mask, runs, sizes, phenotypes, failures, versions."""

    json: bool = False
    """Print one JSON object instead."""


def summarise(config: SummaryConfig) -> int:
    """Print the summary; returns the exit code."""
    from shards.reader import ShardSet

    with ShardSet(config.location) as shard_set:
        facts = summary(shard_set)
    if config.json:
        print_json(facts)
    else:
        print_facts(_lines(facts))
    return 0


def summary(shard_set: ShardSet) -> dict[str, Any]:
    """What a shard set holds, JSON-able; the keys stay the same from release to release.

    Numbers carry their unit in the key; a missing number is None or nan. `tasks`, `tr_s`, the columns of
    `participants` and `failures` count runs, runs, missing values and failures.
    """
    from shards.format import FORMAT_NAME, FORMAT_VERSION

    manifest, runs = shard_set.manifest, shard_set.runs
    return {
        "location": shard_set.location,
        "name": manifest.name,
        "format": f"{FORMAT_NAME} {FORMAT_VERSION}",
        "set_hash": manifest.set_hash,
        "grid": {"shape": manifest.grid.shape, "voxel_mm": manifest.grid.voxel_mm, "affine": manifest.grid.affine},
        "mask": {"num_voxels": manifest.num_voxels, "source": manifest.mask_source, "hash": manifest.mask_hash},
        "dtype": manifest.dtype,
        "cleaning": manifest.cleaning,
        "num_runs": len(runs),
        "num_lossless_runs": sum(entry.lossless for entry in runs),
        "num_subjects": len({entry.subject for entry in runs}),
        "num_sessions": len({(entry.subject, entry.session) for entry in runs}),
        "tasks": dict(sorted(Counter(entry.task for entry in runs).items())),
        "tr_s": {f"{tr_s:g}": count for tr_s, count in sorted(Counter(entry.tr_s for entry in runs).items())},
        "num_frames": sum(entry.num_frames for entry in runs),
        "frames_per_run": _spread([entry.num_frames for entry in runs]),
        "hours": sum(entry.num_frames * entry.tr_s for entry in runs) / 3600,
        "quality": {
            "error_rms_rel": _spread([entry.error_rms_rel for entry in runs]),
            "tsnr_median": _spread([entry.tsnr_median for entry in runs]),
            "mean_fd_mm": _spread([entry.mean_fd_mm for entry in runs]),
        },
        "storage": _storage(shard_set),
        "participants": _participants(shard_set),
        "failures": _failures(shard_set),
        "software": manifest.software,
    }


def _storage(shard_set: ShardSet) -> dict[str, Any]:
    sizes = [shard.num_bytes for shard in shard_set.manifest.shards]
    values = 4 * sum(entry.num_frames for entry in shard_set.runs)
    stored = sum(sizes)
    return {
        "num_shards": len(sizes),
        "num_bytes": stored,
        "shard_bytes": _spread(sizes),
        "source_bytes": sum(entry.source_bytes for entry in shard_set.runs),
        "float32_in_mask_ratio": values * shard_set.num_voxels / stored if stored else math.nan,
        "float32_dense_ratio": values * math.prod(shard_set.grid.shape) / stored if stored else math.nan,
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return dict.fromkeys(("min", "median", "max"), math.nan)
    return {"min": min(known), "median": statistics.median(known), "max": max(known)}


def _participants(shard_set: ShardSet) -> dict[str, Any] | None:
    table = shard_set.participants
    if table is None:
        return None
    from shards.reader import MISSING

    labels = {label.removeprefix("sub-") for label in table["participant_id"]}
    return {
        "num_rows": len(table),
        "num_subjects_without_a_row": len({entry.subject for entry in shard_set.runs} - labels),
        "columns": {
            str(name): int(table[name].isin(list(MISSING)).sum()) for name in table if name != "participant_id"
        },
    }


def _failures(shard_set: ShardSet) -> dict[str, int] | None:
    """Failures of each class, the most frequent first."""
    try:
        text = shard_set.storage.read_file(FAILURES).decode(errors="replace")
    except FileNotFoundError:
        return None
    heading, *rows = (line.split("\t") for line in text.splitlines() or [""])
    if "class" not in heading or any(len(row) != len(heading) for row in rows):
        raise CorruptShardError(
            f"{shard_set.location}/{FAILURES}: not a table of failures with a column class; ingest-fmri writes it "
            "anew, or move it away"
        )
    return dict(Counter(row[heading.index("class")] for row in rows).most_common())


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    grid, mask = facts["grid"], facts["mask"]
    shape, edges = " x ".join(map(str, grid["shape"])), " x ".join(f"{edge:.4g}" for edge in grid["voxel_mm"])
    within = 100 * mask["num_voxels"] / math.prod(grid["shape"])
    return [
        ("set", f"{facts['name']} in {facts['location']}"),
        ("format", f"{facts['format']}, hash {facts['set_hash']}"),
        ("grid", f"{shape} voxels of {edges} mm"),
        (
            "mask",
            f"{mask['num_voxels']:,} voxels ({within:.0f} % of the grid): {mask['source'] or 'source not recorded'}",
        ),
        ("values", _values(facts)),
        ("cleaning", ", ".join(f"{key} {json.dumps(value)}" for key, value in facts["cleaning"].items()) or "none"),
        ("runs", _runs(facts)),
        ("tasks", _counted(facts["tasks"])),
        ("TR", ", ".join(f"{tr_s} s ({plural(count, 'run')})" for tr_s, count in _first(facts["tr_s"]))),
        (
            "time",
            f"{facts['hours']:,.1f} hours in {facts['num_frames']:,} frames; {_range(facts['frames_per_run'])} a run",
        ),
        ("quality", _quality(facts["quality"])),
        ("stored", _stored(facts["storage"])),
        ("shards", _shards(facts["storage"])),
        ("participants", _phenotypes(facts["participants"])),
        ("failures", _failed(facts["failures"])),
        ("software", ", ".join(f"{name} {version}" for name, version in facts["software"].items()) or "not recorded"),
    ]


def _values(facts: dict[str, Any]) -> str:
    kept = facts["num_lossless_runs"]
    return str(facts["dtype"]) + (f", {plural(kept, 'run')} kept lossless" if kept else "")


def _runs(facts: dict[str, Any]) -> str:
    sessions = (
        f" in {plural(facts['num_sessions'], 'session')}" if facts["num_sessions"] > facts["num_subjects"] else ""
    )
    return f"{plural(facts['num_runs'], 'run')} of {plural(facts['num_subjects'], 'subject')}{sessions}"


def _quality(spreads: dict[str, dict[str, float]]) -> str:
    error, tsnr, motion = (spreads[name] for name in ("error_rms_rel", "tsnr_median", "mean_fd_mm"))
    said = [
        (error, f"storage error {100 * error['median']:.2f} % of the temporal SD (worst {100 * error['max']:.2f} %)"),
        (tsnr, f"tSNR {tsnr['median']:.0f} (lowest {tsnr['min']:.0f})"),
        (motion, f"FD {motion['median']:.2f} mm (highest {motion['max']:.2f})"),
    ]
    return "; ".join(text for spread, text in said if not math.isnan(spread["median"])) or "not recorded"


def _stored(storage: dict[str, Any]) -> str:
    sources = f", from {size(storage['source_bytes'])} of sources" if storage["source_bytes"] else ""
    return (
        f"{size(storage['num_bytes'])}{sources}; float32 takes {storage['float32_in_mask_ratio']:.3g} times as much in "
        f"the mask, {storage['float32_dense_ratio']:.3g} times on the whole grid"
    )


def _shards(storage: dict[str, Any]) -> str:
    sizes = storage["shard_bytes"]
    count = plural(storage["num_shards"], "shard")
    if storage["num_shards"] < 2:
        return count
    return f"{count} of {size(sizes['min'])} to {size(sizes['max'])}, median {size(sizes['median'])}"


def _phenotypes(participants: dict[str, Any] | None) -> str:
    if participants is None:
        return "no table"
    columns = participants["columns"]
    named = [f"{name} ({count:,} missing)" if count else name for name, count in _first(columns)]
    without = participants["num_subjects_without_a_row"]
    return (
        f"{plural(participants['num_rows'], 'row')}"
        + (f", {plural(without, 'subject')} of the set without one" if without else "")
        + (f": {', '.join(named)}" if named else "")
        + _more(columns)
    )


def _failed(failures: dict[str, int] | None) -> str:
    if not failures:
        return "none recorded"
    return f"{sum(failures.values()):,}: {_counted(failures)}; {FAILURES} says why"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name or '(none)'} ({count:,})" for name, count in _first(counts)) + _more(counts)


def _first(counts: dict[str, int]) -> Sequence[tuple[str, int]]:
    return list(counts.items())[:MOST_SHOWN]


def _more(counts: dict[str, int]) -> str:
    return f" and {len(counts) - MOST_SHOWN:,} more (--json has all)" if len(counts) > MOST_SHOWN else ""


def _range(spread: dict[str, float]) -> str:
    low, high = spread["min"], spread["max"]
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
