"""How much a cache holds, and what has to go: one process of the machine at a time, the others do not wait to read."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".part"
"""End of the name of a block that is being fetched."""

_USED = "used"
_FREED_TO = 0.95
"""Share of the bound that is left after making room, so that it need not be made for every block."""
_PATIENCE_S = 10.0


class CacheSpace:
    """The bound of a cache, kept in a counter file that its processes share.

    Space is counted before it is used, so that a process that is killed makes the count too high, never too low;
    it is counted anew whenever room is made, and once by each process.

    Parameters
    ----------
    root
        Folder of the cache: `<set>/<shard>/<block>`.
    limit
        Bound in bytes.
    largest
        Bytes of the largest block, which is what one that is being fetched counts.
    """

    def __init__(self, root: Path, limit: int, largest: int) -> None:
        self._root, self._limit, self._largest = root, limit, largest
        self._counted = False

    def reserve(self, num_bytes: int) -> bool:
        """Count a block in, and make room for it if need be; False if there is none for it now.

        The caller has the block's temporary file locked.

        Raises
        ------
        OSError
            The folder cannot be used, or another process keeps the counter for longer than anything here takes.
        """
        with self._locked() as counter:
            stored = os.pread(counter, 8, 0)
            used = struct.unpack("<Q", stored)[0] if len(stored) == 8 and self._counted else None
            if used is None or used + num_bytes > self._limit:
                used = self._make_room(self._limit - num_bytes)
                self._counted = True
            fits: bool = used + num_bytes <= self._limit
            os.pwrite(counter, struct.pack("<Q", used + num_bytes if fits else used), 0)
            return fits

    def _make_room(self, room: int) -> int:
        """Remove what killed processes left and, if over `room` bytes, what was not used for longest; the sum left."""
        blocks, used = [], -self._largest  # the caller's own, which is counted in afterwards
        for path in _files(self._root):
            if path.endswith(TEMPORARY):
                used += 0 if _sweep(path) else self._largest  # also if it became a block just now
            elif (status := _status(path)) is not None:
                blocks.append((status.st_mtime_ns, path, status.st_size))
                used += status.st_size
        used = max(used, 0)
        if used <= room:
            return used
        for _, path, num_bytes in sorted(blocks):
            if used <= min(room, int(_FREED_TO * self._limit)):
                break
            _remove(path)
            used -= num_bytes
        return used

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The counter file, locked."""
        counter = os.open(self._root / _USED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            give_up = time.monotonic() + _PATIENCE_S
            while not try_lock(counter):
                if time.monotonic() > give_up:
                    raise TimeoutError(f"another process keeps {_USED} locked")
                time.sleep(0.001)
            try:
                yield counter
            finally:
                fcntl.flock(counter, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
        finally:
            os.close(counter)


def try_lock(descriptor: int) -> bool:
    """Lock an open file against all other openings of it; False if one of them has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: str) -> bool:
    """Whether an open file still has the name `path`."""
    status = _status(path)
    return status is not None and os.path.samestat(os.fstat(descriptor), status)


def _status(path: str) -> os.stat_result | None:
    try:
        return Path(path).lstat()
    except FileNotFoundError:
        return None


def _files(root: Path) -> Iterator[str]:
    """Blocks and temporary files; some may vanish meanwhile."""
    for group in _entries(root):
        for shard in _entries(group):
            yield from _entries(shard)


def _entries(folder: Path | str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sweep(temporary: str) -> bool:
    """Remove a temporary file whose writer is gone; False if there is none."""
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        stale = try_lock(descriptor) and is_at(descriptor, temporary)
        if stale:
            Path(temporary).unlink()
        return stale
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    try:
        Path(path).parent.rmdir()
    except OSError:  # it holds other blocks
        return
