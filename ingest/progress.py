"""Progress of a build: a bar on a terminal, one line a minute otherwise."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

from ingest.sizes import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import Task

LINE_EVERY_S = 60.0
WINDOW_S = 300.0
"""Speed is that of the last minutes: storage and neighbours change."""
_LEAST_SHARE = 0.001
_LEAST_S = 2.0
"""No forecast before so much was done."""
_STALLED_S = 60.0
"""If no run was finished for so long, the speed falls; before, it is that up to the last run."""


class Progress(Protocol):
    """Told of every finished run."""

    def begin(self) -> None:
        """Work begins: workers may have had to be waited for."""

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        """Count finished runs, source bytes read and failed runs."""

    def say(self, line: str) -> None:
        """Print one line without disturbing the bar."""


@dataclass
class Standing:
    """Where a build stands, and how fast it goes."""

    total_runs: int
    total_bytes: int
    clock: Callable[[], float] = time.monotonic
    runs: int = 0
    num_bytes: int = 0
    failures: int = 0
    _marks: deque[tuple[float, int]] = field(default_factory=deque)
    """(time, bytes) of the last minutes; the first is the beginning, or the last one before the window."""

    def begin(self) -> None:
        """The first worker begins: the clock of the speed runs from here."""
        self._marks.append((self.clock(), 0))

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        """Count finished runs."""
        self.runs += runs
        self.num_bytes += num_bytes
        self.failures += failures
        now = self.clock()
        self._marks.append((now, self.num_bytes))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW_S:
            self._marks.popleft()

    @property
    def bytes_per_s(self) -> float | None:
        """Source bytes a second, lately; None as long as that says nothing."""
        if len(self._marks) < 2:
            return None
        (began, before), (last, done) = self._marks[0], self._marks[-1]
        now = self.clock()
        seconds = (last if now - last < _STALLED_S else now) - began
        return (done - before) / seconds if done > before and seconds >= _LEAST_S else None

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this speed; None as long as nobody knows."""
        rate = self.bytes_per_s
        if rate is None or self.num_bytes < _LEAST_SHARE * self.total_bytes:
            return None
        return max(0, self.total_bytes - self.num_bytes) / rate

    def parts(self) -> list[str]:
        """Runs, failures, time left, speed, bytes: in words, the most important first."""
        rate, left_s = self.bytes_per_s, self.left_s
        return [
            f"{self.runs} of {self.total_runs} runs",
            *([f"{self.failures} failed"] if self.failures else []),
            *([f"{format_duration(left_s)} left"] if left_s is not None else []),
            *([f"{format_size(rate)}/s"] if rate is not None else []),
            f"{format_size(self.num_bytes)} of {format_size(self.total_bytes)}",
        ]


@contextmanager
def show_progress(total_runs: int, total_bytes: int) -> Iterator[Progress]:
    """A bar if stderr is a terminal that can redraw a line, else lines."""
    standing = Standing(total_runs, total_bytes)
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_dumb_terminal:
            with rich_bar(standing, console) as bar:
                yield bar
            return
    yield Lines(standing, sys.stderr)


@dataclass
class Lines:
    """One line a minute."""

    standing: Standing
    file: IO[str]
    _last_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._last_s = self.standing.clock()

    def begin(self) -> None:
        """Work begins."""
        self.standing.begin()

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        """Count, and print a line if the last one is a minute old."""
        self.standing.advance(runs=runs, num_bytes=num_bytes, failures=failures)
        now = self.standing.clock()
        if now - self._last_s >= LINE_EVERY_S:
            self._last_s = now
            self.say(", ".join(self.standing.parts()))

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, file=self.file, flush=True)


@contextmanager
def rich_bar(standing: Standing, console: Console) -> Iterator[Progress]:
    """A bar with as many words beside it as the terminal has room for; it leaves nothing behind."""
    from rich.progress import BarColumn, ProgressColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    bar_width = min(40, max(8, console.width // 4))

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(fitting(standing.parts(), console.width - bar_width - 1), no_wrap=True)

    with RichProgress(BarColumn(bar_width), Words(), console=console, transient=True) as bar:
        yield _Bar(standing, bar)


def fitting(parts: list[str], width: int) -> str:
    """The first of `parts` that fit into `width` characters, joined by commas; always one."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > width:
            break
        text += f", {part}"
    return text


class _Bar:
    """Feeds the rich bar."""

    def __init__(self, standing: Standing, bar: RichProgress) -> None:
        self._standing, self._bar = standing, bar
        self._task = bar.add_task("", total=max(standing.total_bytes, 1))

    def begin(self) -> None:
        self._standing.begin()

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        self._standing.advance(runs=runs, num_bytes=num_bytes, failures=failures)
        self._bar.update(self._task, completed=self._standing.num_bytes)

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
