"""Blocks of shards kept on this machine: bounded, shared by its processes, never trusted unchecked.

A shard is cut into blocks of one size, each a file `<folder>/boldstream-blocks-1/<location>/<shard>/<number>`. Its
folder is named by where the shard lies and by its size and hash, so that a shard that was replaced never meets the
blocks of its predecessor. A hit is one `open` and two positional reads; nothing on its way looks at other files.

A block that is not there is fetched under a lock (`flock`) on its temporary file. The lock dies with its holder, the
next one takes the file over, and a rename makes the block exist: two processes do not fetch the same block at once,
and whatever is killed leaves nothing behind that could be taken for a block.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UsageError
from shards.format import canonical_json, xxh3
from shards.storage.block_file import file_bytes, read_block, write_block
from shards.storage.cache_space import TEMPORARY, CacheSpace, is_at, try_lock

logger = logging.getLogger(__name__)

Fetch = Callable[[int, int], memoryview]
"""(offset, number of bytes) to bytes of the shard, from where it lies."""

_LAYOUT = "boldstream-blocks-1"
_TOUCH_AFTER_S = 60.0
_PATIENCE_S = 60.0
"""How long to wait for another process that fetches the same block, before fetching it too."""
_PAUSE_S = 60.0
"""How long nothing is stored after the disk was found full."""
_LOOK_AGAIN_S = (0.002, 0.05)
"""First and longest pause between two looks at a block that somebody else fetches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """A cache on this machine for shard sets on slow or remote storage."""

    folder: Path
    """Folder on a fast local disk; all processes of a node share it, several shard sets may."""
    num_bytes: int = 100 * 10**9
    """Bound of the cache in bytes; least recently used blocks make room."""
    block_bytes: int = 8 * 1024**2
    """Bytes that are fetched and kept at a time."""

    def __post_init__(self) -> None:
        if self.block_bytes < 4096:
            raise UsageError(f"block_bytes {self.block_bytes} of the cache: at least 4096 are needed; raise it")
        if self.num_bytes < 2 * file_bytes(self.block_bytes):
            raise UsageError(
                f"num_bytes {self.num_bytes} of the cache {self.folder}: less than two blocks of {self.block_bytes} "
                "bytes; raise it or lower block_bytes"
            )


@dataclass(frozen=True, slots=True)
class CachedShard:
    """A shard as the cache knows it."""

    folder: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of a shard: its file, and the bytes of the shard that it holds."""

    path: str
    first: int
    length: int

    @property
    def temporary(self) -> str:
        return self.path + TEMPORARY


class BlockCache:
    """Blocks of shards in a folder of this machine; safe to use from several threads and processes.

    A cache makes reading faster and is never a reason for it to fail: where it cannot be written to, bytes pass
    through, and one line of the log says so.

    Raises
    ------
    UsageError
        The folder cannot be made.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._root = config.folder / _LAYOUT
        self._block_bytes = config.block_bytes
        self._space = CacheSpace(self._root, config.num_bytes, file_bytes(config.block_bytes))
        self._passing_until = 0.0
        self._complained = False
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{config.folder}: {error.strerror}; choose another folder for the cache") from None

    def shard(self, location: str, name: str, num_bytes: int, identity: str) -> CachedShard:
        """Name a shard.

        Parameters
        ----------
        location
            Folder or URL of its set.
        name, num_bytes, identity
            Its name, size and hash in the manifest.
        """
        known = xxh3(canonical_json([name, num_bytes, identity, self._block_bytes]).encode())
        folder = self._root / xxh3(location.encode())[:16] / f"{name.removesuffix('.tar')}-{known[:16]}"
        return CachedShard(str(folder), num_bytes)

    def read_into(self, shard: CachedShard, offset: int, room: memoryview, fetch: Fetch) -> None:
        """Fill `room` with the bytes of a shard from `offset` on, which must lie inside it.

        `fetch` is called for blocks that are not there; what it raises is passed on.
        """
        done = 0
        while done < len(room):
            number, begin = divmod(offset + done, self._block_bytes)
            first = number * self._block_bytes
            block = _Block(f"{shard.folder}/{number}", first, min(self._block_bytes, shard.num_bytes - first))
            part = room[done : done + block.length - begin]
            self._serve(block, begin, part, fetch)
            done += len(part)

    def _serve(self, block: _Block, begin: int, part: memoryview, fetch: Fetch) -> None:
        """Fill `part` from one block: as it lies here, or as another process brings it, or by fetching it."""
        pause, longest = _LOOK_AGAIN_S
        give_up = time.monotonic() + _PATIENCE_S
        while not self._hit(block, begin, part):
            if not self._passing_until <= time.monotonic() <= give_up:
                part[:] = fetch(block.first + begin, len(part))
                return
            claim = self._claim(block.temporary)
            if claim is not None:
                self._fill_claimed(claim, block, begin, part, fetch)
                return
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _fill_claimed(self, claim: int, block: _Block, begin: int, part: memoryview, fetch: Fetch) -> None:
        try:
            # the block may have come between our look and our lock
            if not self._hit(block, begin, part):
                data = fetch(block.first, block.length)
                part[:] = data[begin : begin + len(part)]
                self._store(claim, block, data)
        finally:
            self._release(claim, block.temporary)

    def _store(self, claim: int, block: _Block, data: memoryview) -> None:
        try:
            if self._space.reserve(file_bytes(block.length)):
                write_block(claim, data)
                Path(block.temporary).replace(block.path)
        except OSError as error:
            self._pass_through(error)

    def _hit(self, block: _Block, begin: int, part: memoryview) -> bool:
        """Fill `part` if the block is here and whole; one that is damaged is removed."""
        try:
            descriptor = os.open(block.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            return self._pass_through(error)
        try:
            status = os.fstat(descriptor)
            if status.st_size != file_bytes(block.length) or not read_block(descriptor, block.length, begin, part):
                logger.warning("%s: a block of the cache is damaged; it is fetched again", block.path)
                Path(block.path).unlink(missing_ok=True)
                return False
            if time.time() - status.st_mtime > _TOUCH_AFTER_S:
                with contextlib.suppress(OSError):  # a cache that may only be read serves all the same
                    os.utime(descriptor)
            return True
        except OSError as error:
            return self._pass_through(error)
        finally:
            os.close(descriptor)

    def _claim(self, temporary: str) -> int | None:
        """Lock the temporary file of a block; None while somebody else has it."""
        try:
            claim = _open_in_folder(temporary)
        except OSError as error:
            self._pass_through(error)
            return None
        try:
            if try_lock(claim) and is_at(claim, temporary):
                return claim
        except OSError as error:
            self._pass_through(error)
        os.close(claim)  # held, or renamed or swept since it was opened: whoever had it is done
        return None

    def _release(self, claim: int, temporary: str) -> None:
        """Unlock; a file that became a block has lost its temporary name by now."""
        try:
            if is_at(claim, temporary):
                Path(temporary).unlink()
        except OSError as error:
            self._pass_through(error)
        fcntl.flock(claim, fcntl.LOCK_UN)  # a forked child may hold the descriptor too
        os.close(claim)

    def _pass_through(self, error: OSError) -> bool:
        """Do without storing for a while, said once a process; False, for there is no block."""
        self._passing_until = time.monotonic() + _PAUSE_S
        if not self._complained:
            self._complained = True
            logger.warning("%s: %s; reading goes on, but less is kept", self._root, error.strerror or error)
        return False


def _open_in_folder(temporary: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(3):
        try:
            return os.open(temporary, flags, 0o600)
        except FileNotFoundError:  # the folder is new, or was empty and removed just now
            Path(temporary).parent.mkdir(parents=True, exist_ok=True)
    return os.open(temporary, flags, 0o600)
