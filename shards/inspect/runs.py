"""`inspect-fmri runs`: a table of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shards.errors import UsageError
from shards.inspect.lookup import nearest
from shards.inspect.target import SetConfig
from shards.inspect.terminal import decimals, on_terminal, plural, print_json, print_table, printable

if TYPE_CHECKING:
    from shards.format import RunEntry

COLUMNS = (
    "run_id", "subject", "session", "task", "run", "tr_s", "num_frames", "minutes", "shard", "num_bytes", "lossless",
    "error_max", "error_rms_rel", "tsnr_median", "mean_fd_mm",
)  # fmt: skip
"""Of --json and --tsv, and what --sort takes."""
TERMINAL_ROWS = 40
"""Shown on a terminal unless --limit says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunsConfig(SetConfig):
    """List runs: TR, frames, minutes, shard, storage error, tSNR, motion."""

    subject: tuple[str, ...] = ()
    """Only runs of these subjects, with or without sub-."""
    task: tuple[str, ...] = ()
    """Only runs of these tasks, without task-."""
    sort: str = "run_id"
    """Column to sort by, as --json names them; runs without a value come last."""
    reverse: bool = False
    """The largest first."""
    limit: int | None = None
    """At most so many runs, 0 for all (default: 40 on a terminal, else all)."""
    json: bool = False
    """Print a JSON list instead."""
    tsv: bool = False
    """Print a table with tabs instead."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"--limit {self.limit}: give a number of runs, or 0 for all")
        if self.json and self.tsv:
            raise UsageError("--json and --tsv: give one of them")
        if self.sort not in COLUMNS:
            raise UsageError(f"--sort {self.sort}: no such column; there are: {', '.join(COLUMNS)}")


def list_runs(config: RunsConfig) -> int:
    """Print the runs that are asked for; returns the exit code."""
    from shards.reader import ShardSet

    with ShardSet(config.location) as shard_set:
        runs = _chosen(shard_set.runs, config)
    rows = _sorted([_values(entry) for entry in runs], config.sort, config.reverse)
    machine = config.json or config.tsv
    limit = config.limit if config.limit is not None else TERMINAL_ROWS if on_terminal() and not machine else 0
    shown = rows[: limit or None]
    if config.json:
        print_json(shown)
    elif config.tsv:
        print("\t".join(COLUMNS))
        for row in shown:
            print("\t".join(_cell(row[name]) for name in COLUMNS))
    else:
        print_table(tuple(_TABLE), [[text_of(row) for text_of in _TABLE.values()] for row in shown])
        if len(shown) < len(rows) and on_terminal():
            print(f"{len(shown):,} of {plural(len(rows), 'run')}; --limit 0 shows all")
    return 0


_TABLE: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": lambda row: row["run_id"],
    "TR s": lambda row: f"{row['tr_s']:.4g}",
    "frames": lambda row: str(row["num_frames"]),
    "min": lambda row: decimals(row["minutes"], 1),
    "shard": lambda row: row["shard"].removesuffix(".tar").rpartition("-")[2],
    "err %": lambda row: decimals(100 * row["error_rms_rel"], 2),
    "tSNR": lambda row: decimals(row["tsnr_median"], 0),
    "FD mm": lambda row: decimals(row["mean_fd_mm"], 2),
}
"""Heading to what stands below it; a shard goes by its number, the storage error by its share of the temporal SD."""


def _chosen(runs: Sequence[RunEntry], config: RunsConfig) -> list[RunEntry]:
    subjects = {label.removeprefix("sub-") for label in config.subject}
    tasks = {label.removeprefix("task-") for label in config.task}
    for flag, asked, known in (
        ("subject", subjects, {entry.subject for entry in runs}),
        ("task", tasks, {entry.task for entry in runs}),
    ):
        for label in sorted(asked - known):
            raise UsageError(f"--{flag} {label}: {config.location} has none; {nearest(label, sorted(known))}")
    chosen = [
        entry for entry in runs if (not subjects or entry.subject in subjects) and (not tasks or entry.task in tasks)
    ]
    if runs and not chosen:
        raise UsageError(f"{config.location}: no run of these subjects has these tasks; leave out --task or --subject")
    return chosen


def _values(entry: RunEntry) -> dict[str, Any]:
    minutes = round(entry.num_frames * entry.tr_s / 60, 3)
    return {name: minutes if name == "minutes" else getattr(entry, name) for name in COLUMNS}


def _sorted(rows: list[dict[str, Any]], column: str, reverse: bool) -> list[dict[str, Any]]:
    missing = [row for row in rows if _is_missing(row[column])]
    there = [row for row in rows if not _is_missing(row[column])]
    return sorted(there, key=lambda row: row[column], reverse=reverse) + missing


def _is_missing(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "n/a" if _is_missing(value) else printable(str(value))
