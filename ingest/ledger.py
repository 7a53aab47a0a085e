"""The ledger: what was planned and what became of it, one JSON object a line, only ever appended.

    {"action": "plan",  "status": "ok", "config": .., "grid": .., "mask": .., "shards": [..], "failures": [..]}
    {"action": "shard", "status": "ok", "name": .., "info": .., "rows": [..], "failures": [..],
     "qc": {run_id: ..}, "signatures": {run_id: ..}, "resources": ..}
    {"action": "shard", "status": "impossible", ...}   every run of it failed: there is no file
    {"action": "shard", "status": "error", ...}        its worker died: it is tried again by the next call

A line counts once its line end is on disk. A torn last line is what a crash leaves; it is dropped.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.failures import Failure, as_signature
from ingest.record import Signature
from shards.errors import OutputError
from shards.format import Grid, RunEntry, ShardInfo

LEDGER = "ledger.jsonl"
_HEAD = b'{"action": "plan"'


@dataclass(kw_only=True)
class PlannedShard:
    """One shard of a plan: its runs are fixed, whoever builds it and whenever."""

    name: str
    runs: list[dict[str, Any]]
    """`RunRecord.to_dict` of each, in order of run_id."""
    run_ids: list[str]


@dataclass(kw_only=True)
class State:
    """What a ledger says, replayed."""

    config: dict[str, Any] | None = None
    grid: Grid | None = None
    mask: str | None = None
    """mask.nii.gz in base64: the set's mask is decided once, together with the plan."""
    mask_source: str = ""
    planned: dict[str, PlannedShard] = field(default_factory=dict)
    """By name, in order of planning."""
    done: dict[str, ShardInfo | None] = field(default_factory=dict)
    """None: every run of the shard failed, there is no file."""
    rows: dict[str, RunEntry] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    qc: dict[str, dict[str, Any]] = field(default_factory=dict)
    """run_id to what `ingest.quality.run_quality` says of it."""
    signatures: dict[str, Signature] = field(default_factory=dict)
    """run_id to the state of its files when they were read; runs of version 0.1 have none."""
    resources: list[dict[str, Any]] = field(default_factory=list)
    """What building each shard took: bytes read, seconds, peak memory of the worker."""

    def apply(self, record: dict[str, Any]) -> None:
        """Take in one line."""
        if record["action"] == "plan":
            self._apply_plan(record)
        else:
            self._apply_shard(record)
        for failure in map(Failure.from_dict, record["failures"]):
            self.failures[failure.run_id] = failure

    def _apply_plan(self, record: dict[str, Any]) -> None:
        if not self.planned:
            self.config = {**record["config"]}
        if record["grid"] is not None and self.grid is None:
            self.grid = _grid(record["grid"])
            self.mask, self.mask_source = record["mask"], record["mask_source"]
        for shard in record["shards"]:
            planned = PlannedShard(**shard)
            self.planned[planned.name] = planned
            for run_id in planned.run_ids:
                self.failures.pop(run_id, None)

    def _apply_shard(self, record: dict[str, Any]) -> None:
        name = record["name"]
        for run_id in self.planned[name].run_ids:
            self.failures.pop(run_id, None)
        if record["status"] == "error":
            return
        self.done[name] = None if record["info"] is None else ShardInfo(**record["info"])
        for row in record["rows"]:
            values: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items()}
            entry = RunEntry(**values)
            self.rows[entry.run_id] = entry
        self.qc |= record.get("qc", {})
        self.signatures |= {key: as_signature(value) for key, value in record.get("signatures", {}).items()}
        if record.get("resources"):
            self.resources.append(record["resources"])

    def pending(self) -> list[PlannedShard]:
        """Planned shards that are not done, in order."""
        return [shard for name, shard in self.planned.items() if name not in self.done]

    def infos(self) -> tuple[ShardInfo, ...]:
        """Finished shards in order of name."""
        return tuple(info for _, info in sorted(self.done.items()) if info is not None)


class Ledger:
    """An open, locked ledger."""

    def __init__(self, path: Path, state: State | None = None) -> None:
        self.path = path
        self.state, self._valid_bytes = replay(path, state)
        self._file = path.open("ab", buffering=0)  # what a full disk refused must not be tried again on closing
        self._lock()

    @property
    def num_bytes(self) -> int:
        """Length of the complete lines."""
        return self._valid_bytes

    def append(self, record: dict[str, Any]) -> None:
        """Write one line durably and take it into `state`.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            if os.fstat(self._file.fileno()).st_size != self._valid_bytes:
                os.ftruncate(self._file.fileno(), self._valid_bytes)
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}; make room or choose another --out") from None
        self._valid_bytes += len(line)
        self.state.apply(record)

    def close(self) -> None:
        """Close the file, which unlocks it; one that was never written to is removed."""
        self._file.close()
        if self.path.stat().st_size == 0:
            self.path.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OutputError(
                f"{self.path.parent}: another ingest-fmri is writing there; wait for it or stop it"
            ) from None
        except OSError:
            return  # some network filesystems know no locks


def is_ledger(path: Path) -> bool:
    """Whether a file is a ledger of ours, be it empty or torn in its first line."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(_HEAD))
    return _HEAD.startswith(start)


def replay(path: Path, state: State | None = None) -> tuple[State, int]:
    """Read a ledger.

    Parameters
    ----------
    state
        What its lines are applied to; default: nothing.

    Returns
    -------
    state
        Empty if there is no file.
    valid_bytes
        Length of the complete lines.

    Raises
    ------
    OutputError
        The file is not a ledger of ours, or a line other than the last is damaged.
    """
    state = State() if state is None else state
    data = path.read_bytes() if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if data and not is_ledger(path):
        raise OutputError(f"{path}: not a ledger of ingest-fmri; choose another --out or move the file away")
    for number, line in enumerate(data[:end].splitlines(), start=1):
        try:
            state.apply(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                f"{path}, line {number}: damaged ({type(error).__name__}: {error}); restore it, or start anew with "
                "--overwrite"
            ) from None
    return state, end


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a ledger; raises `ValueError` where one is no JSON."""
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _grid(values: dict[str, Any]) -> Grid:
    x, y, z = values["shape"]
    return Grid(shape=(x, y, z), affine=tuple(tuple(row) for row in values["affine"]))


def row_to_dict(row: RunEntry) -> dict[str, Any]:
    """A row as JSON can hold it: nan becomes null."""
    values = {name: getattr(row, name) for name in RunEntry.__dataclass_fields__}
    return {name: None if value != value else value for name, value in values.items()}
