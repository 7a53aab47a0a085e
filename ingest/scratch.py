"""Large buffers that are used again: the page faults of fresh ones cost as much as the work in them."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Scratch:
    """Named buffers that grow and are never given back; not for use by several threads."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialised array in the buffer `name`; what it held before is overwritten."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers.pop(name, None)  # free the old one first
            self._buffers[name] = np.empty(size, np.uint8)
        return self._buffers[name][:size].view(kind).reshape(shape)


_kept = threading.local()


def thread_scratch() -> Scratch:
    """The buffers of the calling thread, kept for its next task."""
    if not hasattr(_kept, "scratch"):
        _kept.scratch = Scratch()
    scratch: Scratch = _kept.scratch
    return scratch
