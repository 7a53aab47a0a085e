"""Open shards: a bounded set of file descriptors shared by threads, and checked positional reads."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import CorruptShardError, UsageError


class ShardFiles:
    """Descriptors of the shards of one folder, least recently used closed first.

    At most half of the process's soft limit of open files, and never one that a thread is reading.
    """

    def __init__(self, folder: Path, sizes: dict[str, int]) -> None:
        self._folder = folder
        self._sizes = sizes
        self._limit = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open: OrderedDict[str, int] = OrderedDict()
        self._readers: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Read exactly `num_bytes` at `offset` of a shard with one `pread`.

        Raises
        ------
        CorruptShardError
            The shard is missing, has another size than the manifest says, or ends too early.
        """
        with self._descriptor(name) as descriptor:
            data = os.pread(descriptor, num_bytes, offset)
        if len(data) != num_bytes:
            raise CorruptShardError(
                f"{self._folder / name}: {len(data)} of {num_bytes} bytes at {offset}; the file is cut, restore it"
            )
        return data

    def close(self) -> None:
        """Close every descriptor; reading again opens them anew."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()
            self._readers.clear()

    @contextmanager
    def _descriptor(self, name: str) -> Iterator[int]:
        with self._lock:
            if name not in self._open:
                self._open[name] = self._open_checked(name)
            self._open.move_to_end(name)
            self._readers[name] = self._readers.get(name, 0) + 1
            descriptor = self._open[name]
            self._evict()
        try:
            yield descriptor
        finally:
            with self._lock:
                if name in self._readers:
                    self._readers[name] -= 1

    def _evict(self) -> None:
        for name in list(self._open):
            if len(self._open) <= self._limit:
                return
            if not self._readers.get(name):
                os.close(self._open.pop(name))
                self._readers.pop(name, None)

    def _open_checked(self, name: str) -> int:
        path = self._folder / name
        if name not in self._sizes:
            raise UsageError(f"{path}: not a shard of this set")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CorruptShardError(f"{path}: {error.strerror}; the manifest lists it, restore the file") from None
        found = os.fstat(descriptor).st_size
        if found != self._sizes[name]:
            os.close(descriptor)
            raise CorruptShardError(f"{path}: {found} bytes, the manifest says {self._sizes[name]}; restore the file")
        return descriptor
