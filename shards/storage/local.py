"""Shards in a folder: a bounded set of file descriptors shared by threads, and checked positional reads."""

from __future__ import annotations

import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format import check_file_size

_MOST_FILES = 65536


class LocalStorage:
    """Files of a shard set in one folder (see `shards.storage.Storage`).

    Descriptors stay open, the least recently used closed first: at most half of the process's soft
    limit of open files, and never one that a thread is reading.
    """

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder
        self._sizes: dict[str, int] = {}
        self._limit = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open: OrderedDict[str, int] = OrderedDict()
        self._readers: dict[str, int] = {}
        self._lock = threading.Lock()

    def read_file(self, name: str) -> bytes:
        """Read a small file whole."""
        try:
            descriptor = _open_regular(self._folder / name)
            with os.fdopen(descriptor, "rb") as file:
                check_file_size(os.fstat(descriptor).st_size, name, str(self._folder / name))
                return file.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{self._folder / name}: {error.strerror}; see to it that it can be read") from None

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Say which shards there are, name to bytes."""
        self._sizes = dict(sizes)

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` of a shard, as a rule with one `pread`."""
        done = 0
        with self._descriptor(name) as descriptor:
            while done < len(room):
                try:
                    count = os.preadv(descriptor, [room[done:]], offset + done)
                except OSError as error:
                    raise StorageError(
                        f"{self._folder / name}: {error.strerror} at byte {offset + done}; look at the filesystem"
                    ) from None
                if not count:
                    raise CorruptShardError(
                        f"{self._folder / name}: {done} of {len(room)} bytes at {offset}; the file is cut, restore it"
                    )
                done += count

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
        if len(self._open) <= self._limit:
            return
        for name in list(self._open):
            if not self._readers.get(name):
                os.close(self._open.pop(name))
                self._readers.pop(name, None)
            if len(self._open) <= self._limit:
                return

    def _open_checked(self, name: str) -> int:
        path = self._folder / name
        if name not in self._sizes:
            raise UsageError(f"{path}: not a shard of this set")
        try:
            descriptor = _open_regular(path)
        except OSError as error:
            raise CorruptShardError(f"{path}: {error.strerror}; the manifest lists it, restore the file") from None
        found = os.fstat(descriptor).st_size
        if found != self._sizes[name]:
            os.close(descriptor)
            raise CorruptShardError(f"{path}: {found} bytes, the manifest says {self._sizes[name]}; restore the file")
        return descriptor


def _open_regular(path: Path) -> int:
    """Open a file, following links as archives keep them; anything but a regular file is an error at once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return descriptor


def raise_open_files_limit() -> None:
    """Let this process open as many files as its hard limit allows, so that shards stay open; for commands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
