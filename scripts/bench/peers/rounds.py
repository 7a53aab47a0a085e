"""Every contender in turn, round after round, in alternating order; then the same with a cold page cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from peers.process import Family

PLAIN = ", default malloc"


@dataclass(kw_only=True, slots=True)
class Row:
    """Timings of one contender, in seconds a window."""

    name: str
    family: str
    delivers: str = ""
    workers: int = 0
    cold: bool = False
    again: bool = False
    """To be timed with glibc's own malloc thresholds as well."""
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    disk_bytes: list[float] = field(default_factory=list)
    note: str = ""
    """Why there are no timings: not installed, or failed."""
    failed: bool = False
    timed_cold: bool = False


@dataclass(slots=True)
class _Place:
    """A contender in its process."""

    row: Row
    process: Family
    key: str

    def ask(self, what: str, *, keep: bool) -> bool:
        """Time it; returns whether it can go on."""
        answer = self.process.ask(what, key=self.key)
        if "error" in answer:
            self.row.note, self.row.failed = answer["error"], True
            say(f"{self.row.name}: {answer['error']}")
            return False
        if keep:
            self.row.wall_s.append(answer["wall_s"])
            self.row.cpu_s.append(answer["cpu_s"])
            self.row.disk_bytes.append(answer["disk_bytes"])
        return True


class Bench:
    """The families' processes, started and their files written.

    Attributes
    ----------
    num_bytes : dict of str to int
        What each family stores.
    rows : list of Row
        Everything there is to report so far.
    """

    def __init__(self, root: Path, families: Iterable[str]) -> None:
        self._root = root
        self.num_bytes: dict[str, int] = {}
        self.rows: list[Row] = []
        self._places: list[_Place] = []
        self._processes: list[Family] = []
        for name in families:
            self._prepare(name)
        for name in sorted({place.row.family for place in self._places if place.row.again}):
            self._places += [place for place in self._start(Family(name, root, malloc=False), name) if place.row.again]

    def warm(self, rounds: int) -> None:
        """Time with files in the page cache; an untimed round before warms them and finds how often to read."""
        self._take_turns(self._places, "time", range(rounds + 1))

    def cold(self, rounds: int) -> None:
        """Time single epochs from a cold page cache, when the warm processes with their mapped files are gone."""
        self.close()
        families = dict.fromkeys(place.row.family for place in self._places if place.row.cold)
        started = [place for name in families for place in self._start(Family(name, self._root, malloc=True), name)]
        places = [place for place in started if place.row.cold]
        for place in places:
            place.row.timed_cold = True
        self._take_turns(places, "time_cold", range(1, rounds + 1))

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.hang_up()
        for process in self._processes:
            process.close()
        self._processes.clear()

    def _prepare(self, name: str) -> None:
        began = time.perf_counter()
        process = Family(name, self._root, malloc=True)
        answer = process.ask("prepare")
        if "num_bytes" not in answer:
            process.close()
            absent = ", ".join(answer.get("absent", ()))
            note = f"not installed: {absent}" if absent else answer["error"]
            self.rows.append(Row(name=name, family=name, note=note, failed=not absent))
            say(f"{name}: {note}")
            return
        self.num_bytes[name] = answer["num_bytes"]
        say(f"{name}: {answer['num_bytes'] / 1e6:.0f} MB written, {time.perf_counter() - began:.0f} s")
        self._places += self._start(process, name)

    def _start(self, process: Family, family: str) -> list[_Place]:
        self._processes.append(process)
        answer = process.ask("start")
        if "error" in answer:
            self.rows.append(Row(name=family, family=family, note=answer["error"], failed=True))
            return []
        places = []
        for key, known in answer["contenders"].items():
            known["name"] += "" if process.malloc else PLAIN
            places.append(_Place(Row(family=family, **known), process, key))
        return places

    def _take_turns(self, places: list[_Place], what: str, rounds: range) -> None:
        self.rows += [place.row for place in places]
        active = list(places)
        for number in rounds:
            began = time.perf_counter()
            for place in active[:: 1 if number % 2 else -1]:
                if not place.ask(what, keep=number > 0):
                    active.remove(place)
            say(f"{what}, round {number} of {rounds[-1]}: {time.perf_counter() - began:.0f} s")


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
