"""`inspect-fmri run`: one run, in words and as a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import CorruptShardError, OutputError, UsageError
from shards.inspect.lookup import find_run
from shards.inspect.target import OneRunConfig
from shards.inspect.terminal import decimals, plural, print_facts, print_json, size

if TYPE_CHECKING:
    from shards.reader import ShardSet

PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(OneRunConfig):
    """Show one run: what it is, where it lies, how good it is; with --out also its carpet and images."""

    out: Path | None = None
    """Draw carpet, global signal, mean and SD into this file: *.png, *.pdf or *.svg."""
    overwrite: bool = False
    """Replace --out if it exists."""
    json: bool = False
    """Print one JSON object instead."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix not in PICTURES:
            raise UsageError(f"--out {self.out}: not a name for a picture; let it end in {', '.join(PICTURES)}")


def show_run(config: RunConfig) -> int:
    """Print the facts of one run and draw it if asked to; returns the exit code."""
    from shards.reader import ShardSet

    if config.out is not None and config.out.exists() and not config.overwrite:
        raise OutputError(f"{config.out}: exists; choose another name, or replace it with --overwrite")
    with ShardSet(config.location) as shard_set:
        run = find_run(shard_set, config.run_id)
        facts = run_facts(shard_set, run)
        if config.out is not None:
            from shards.inspect.picture import draw_run
            from shards.writer import write_atomic

            write_atomic(config.out, draw_run(shard_set, run, config.out.suffix.removeprefix(".")))
    if config.json:
        print_json(facts)
    else:
        drawn = [] if config.out is None else [("picture", str(config.out))]
        print_facts(_lines(facts) + drawn)
    return 0


def run_facts(shard_set: ShardSet, run: int) -> dict[str, Any]:
    """The row of runs.tsv, what the run's own JSON says, sizes of its members in bytes, and its statistics.

    Raises
    ------
    ShardError
        Its bytes are damaged or cannot be read.
    """
    import numpy as np

    entry = shard_set.runs[run]
    told, members, (mean, std, _) = _head(shard_set, run)
    return {
        **asdict(entry),
        "minutes": entry.num_frames * entry.tr_s / 60,
        "dtype": shard_set.manifest.dtype,
        "members": members,
        "json": {key: value for key, value in told.items() if key not in asdict(entry) and key != "zarr"},
        "num_voxels": shard_set.num_voxels,
        "num_constant_voxels": int((std == 0).sum()),
        "mean_median": float(np.median(mean)),
        "std_median": float(np.median(std)),
    }


def _head(shard_set: ShardSet, run: int) -> tuple[dict[str, Any], dict[str, int], tuple[Any, Any, Any]]:
    """Content of the run's JSON, the size of each member, and mean, SD and scale."""
    from shards.format import BLOCK
    from shards.tar import SUFFIXES, expect_member

    entry, num_voxels = shard_set.runs[run], shard_set.num_voxels
    stats, told = shard_set.statistics(run), shard_set.meta(run)
    header = bytearray(BLOCK)
    shard_set.storage.read_into(entry.shard, entry.offset, memoryview(header))
    try:
        sizes = [expect_member(bytes(header), entry.run_id, "json").num_bytes, *[4 * num_voxels] * 3]
    except ValueError as error:
        where = f"{shard_set.location}/{entry.shard} ({entry.run_id})"
        raise CorruptShardError(f"{where}: {error}; see inspect-fmri verify, restore the shard") from None
    sizes_by_member = dict(zip(SUFFIXES, [*sizes, entry.bold_bytes], strict=True))
    return told, sizes_by_member, (stats.mean, stats.std, stats.scale)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    labels = ", ".join(f"{name} {facts[name]}" for name in ("subject", "session", "task", "run") if facts[name])
    times = 4 * facts["num_frames"] * facts["num_voxels"] / facts["num_bytes"]
    place = f"{facts['shard']} from byte {facts['offset']:,}"
    source_size = f" ({size(facts['source_bytes'])})" if facts["source_bytes"] else ""
    constant, wide = facts["num_constant_voxels"], facts["num_wide_voxels"]
    tsnr, motion = decimals(facts["tsnr_median"], 1), decimals(facts["mean_fd_mm"], 3)
    return [
        ("run", facts["run_id"]),
        ("labels", labels),
        ("time", f"{plural(facts['num_frames'], 'frame')} of {facts['tr_s']:g} s: {facts['minutes']:.1f} min"),
        ("source", (facts["source"] or "not recorded") + source_size),
        ("stored", f"{size(facts['num_bytes'])} in {place}; float32 takes {times:.3g} times as much in the mask"),
        ("members", ", ".join(f"{name} {size(count)}" for name, count in facts["members"].items())),
        ("values", _values(facts)),
        ("voxels", f"{facts['num_voxels']:,} in the mask, {constant:,} constant, {wide:,} of a wider step"),
        ("intensity", f"mean {facts['mean_median']:.4g}, temporal SD {facts['std_median']:.4g} (medians over voxels)"),
        ("quality", f"tSNR {tsnr} (median over voxels), FD {motion} mm (mean over frames)"),
        *((key, _text(value)) for key, value in sorted(facts["json"].items()) if key not in _SAID and value),
    ]


_SAID = frozenset({"num_voxels", "dtype", "statistics_xxh3", "subject", "session", "task", "run"})


def _values(facts: dict[str, Any]) -> str:
    if facts["lossless"]:
        return f"{facts['dtype']}, lossless: the source's integers of step {facts['grid_slope']:g}"
    if facts["dtype"] == "float32":
        return "float32, lossless"
    if math.isnan(facts["error_rms_rel"]):
        return f"{facts['dtype']}, error not recorded"
    share, most = 100 * facts["error_rms_rel"], facts["error_max"]
    return f"{facts['dtype']}, error {share:.2f} % of the temporal SD (rms), at most {most:.4g}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
