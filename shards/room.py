"""Memory that a thread keeps: fresh pages cost about as much as the work that is done in them."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray


class Room(threading.local):
    """Bytes that grow to the largest size asked for; each thread has its own.

    Parameters
    ----------
    most
        More than this is not kept, so that one large request does not occupy memory for ever.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes: NDArray[np.uint8] | None = None

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return exactly `num_bytes`, valid until this thread takes again."""
        if num_bytes > self._most:
            return np.empty(num_bytes, np.uint8)
        if self._bytes is None or len(self._bytes) < num_bytes:
            self._bytes = None  # free the old ones first
            self._bytes = np.empty(num_bytes, np.uint8)
        return self._bytes[:num_bytes]
