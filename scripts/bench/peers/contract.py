"""What a contender is, and the consumer that all of them feed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import xxhash

Key = tuple[int, int]
"""Run and first frame of a window."""
Consume = Callable[[np.ndarray, int, int], None]
"""Takes a window, C-contiguous, with its run and first frame."""
Read = Callable[[Consume], object]
"""Reads every window once and hands each to the consumer."""
Opened = Iterator[Read]
"""What a generator under `contextmanager` yields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to windows."""

    name: str
    delivers: Literal["int8", "dense"]
    """`int8`: (frame, voxel) of the mask; `dense`: (frame, x, y, z) float16."""
    workers: int
    """Threads or processes that read: 1, or 2 as the machine has cores."""
    open: Callable[[], AbstractContextManager[Read]]
    """Opens files and starts workers, which is not timed."""
    clock: Literal["whole", "first", "steady"] = "whole"
    """`whole`: all of it is timed. `first`: from the arrival of the first window on, since workers start anew with an
    epoch. `steady`: an epoch is read before, since reading goes on from one epoch into the next."""
    cold: bool = False
    """Timed with a cold page cache too."""
    maps: bool = False
    """Maps its files, and mapped pages cannot be dropped: so nothing is read before it is timed cold."""
    again: bool = False
    """Timed a second time with glibc's own thresholds."""
    num_windows: int | None = None
    """How many windows it reads, if not all."""


@runtime_checkable
class Pausable(Protocol):
    """A `Read` that reads ahead even when nobody asks."""

    def pause(self) -> None:
        """Forget what was read ahead, and stop."""


class Consumer:
    """Reads every byte of a window once, as XXH3-64: faster than a sum, and says whether the window is right."""

    def __init__(self) -> None:
        self.seen: list[tuple[Key, int]] = []
        self.first: float | None = None
        """When the first window had been consumed."""

    def __call__(self, window: np.ndarray, run: int, start: int) -> None:
        self.seen.append(((int(run), int(start)), xxhash.xxh3_64_intdigest(window)))
        if self.first is None:
            self.first = time.perf_counter()

    def check(self, expected: Callable[[Key], int], count: int, *, all_different: bool) -> None:
        """Compare with the reference's digests what was seen.

        Raises
        ------
        WrongDataError
            A window differs, came twice, or did not come.
        """
        wrong = [key for key, digest in self.seen if expected(key) != digest]
        if wrong:
            raise WrongDataError(
                f"{len(wrong)} of {len(self.seen)} windows differ from the reference, first {wrong[0]}"
            )
        different = len({key for key, _ in self.seen})
        if len(self.seen) != count or (all_different and different != count):
            raise WrongDataError(f"{len(self.seen)} windows read, {different} of them different; {count} expected")


class WrongDataError(Exception):
    """A contender does not deliver what the reference says."""
