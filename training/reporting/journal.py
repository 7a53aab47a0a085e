"""The run's log: one JSON object a line in `log.jsonl`, written by rank 0."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shards.writer import write_atomic

LOG = "log.jsonl"


class Journal:
    """Append-only log of a run.

    Parameters
    ----------
    folder
        Run folder.
    writes
        False on ranks other than 0.
    """

    def __init__(self, folder: Path, writes: bool) -> None:
        self.path, self.writes = folder / LOG, writes

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step` (0: everything), since it is going to happen again."""
        if self.writes and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if step > 0 and _step_of(line) <= step]
            write_atomic(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, event: str, step: int, **values: Any) -> None:
        """Add a line with the time (UTC); numbers that are not finite become null."""
        if not self.writes:
            return
        head = {"event": event, "step": step, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        record = head | {name: _finite(value) for name, value in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    """Step of a line; a line cut off by a crash counts as later than any."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
