"""What was made for a run and may be wanted again: least recently used dropped first, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by run number; safe to use from several threads, which may make the same value twice.

    Parameters
    ----------
    num_bytes
        Bound; the newest value is kept even if it alone is larger.
    """

    def __init__(self, num_bytes: int) -> None:
        self._limit = num_bytes
        self._used = 0
        self._kept: OrderedDict[int, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run: int, make: Callable[[int], tuple[T, int]]) -> T:
        """The value of a run; `make(run)` gives it and its bytes if it is not there."""
        with self._lock:
            if run in self._kept:
                self._kept.move_to_end(run)
                return self._kept[run][0]
        value, num_bytes = make(run)
        with self._lock:
            if run not in self._kept:
                self._kept[run] = value, num_bytes
                self._used += num_bytes
                while self._used > self._limit and len(self._kept) > 1:
                    self._used -= self._kept.popitem(last=False)[1][1]
        return value
