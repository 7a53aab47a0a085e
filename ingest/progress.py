"""Progress of a build: a bar on a terminal, one line a minute otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ingest.sizes import format_size

LINE_EVERY_S = 60.0


class Progress(Protocol):
    """Told of every finished shard."""

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        """Count finished runs, source bytes read and failed runs."""

    def say(self, line: str) -> None:
        """Print one line without disturbing the bar."""


@dataclass
class _Lines:
    """One line a minute on stderr."""

    total_runs: int
    total_bytes: int
    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    runs: int = 0
    num_bytes: int = 0
    failures: int = 0

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        self.runs += runs
        self.num_bytes += num_bytes
        self.failures += failures
        now = time.monotonic()
        if now - self.last >= LINE_EVERY_S:
            self.last = now
            self.say(self.text(now - self.started))

    def text(self, seconds: float) -> str:
        """Where the build stands, in one line."""
        rate = self.num_bytes / max(seconds, 1e-9)
        left_s = (self.total_bytes - self.num_bytes) / rate if rate > 0 else 0.0
        return (
            f"{self.runs} of {self.total_runs} runs, {format_size(self.num_bytes)} read, {format_size(rate)}/s, "
            f"{left_s / 60:.0f} min left, {self.failures} failed"
        )

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def show_progress(total_runs: int, total_bytes: int) -> Iterator[Progress]:
    """A bar if stderr is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield _Lines(total_runs, total_bytes)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.fields[runs]} runs"),
        BarColumn(),
        TextColumn("{task.fields[shown]}"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]} failed"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, total_runs, total_bytes)


class _Bar:
    """The rich bar."""

    def __init__(self, bar: object, total_runs: int, total_bytes: int) -> None:
        from rich.progress import Progress as RichProgress

        assert isinstance(bar, RichProgress)
        self._bar = bar
        self._total_runs, self._total_bytes = total_runs, total_bytes
        self._runs = self._num_bytes = self._failures = 0
        self._task = bar.add_task("", total=max(total_bytes, 1), **self._fields())

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        self._runs += runs
        self._num_bytes += num_bytes
        self._failures += failures
        self._bar.update(self._task, completed=self._num_bytes, **self._fields())

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _fields(self) -> dict[str, Any]:
        done, total = format_size(self._num_bytes), format_size(self._total_bytes)
        return {
            "runs": f"{self._runs} of {self._total_runs}",
            "shown": f"{done} of {total}",
            "failures": str(self._failures),
        }
