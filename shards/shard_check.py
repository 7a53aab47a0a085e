"""One sequential pass over a shard: its hash, its tar, and every run in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import xxhash
from crc32c import crc32c
from numpy.typing import NDArray

from shards import chunks
from shards.affine import WIDE, gain_of, list_wide
from shards.errors import CorruptShardError, StorageError
from shards.format import BLOCK, Manifest, RunEntry, ShardInfo, frames_per_chunk
from shards.sample import MAX_JSON_BYTES, check_meta, parse_meta, parse_statistics
from shards.storage import Storage
from shards.tar import SUFFIXES, Member, expect_member, parse_header, split_name
from shards.values import LIMIT, STEPS_PER_SD

_PIECE = 1024 * 1024  # stays in the cache from hash to checksum
_MAX_PROBLEMS = 20

Statistics = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


class Problems:
    """What is wrong with one file, a bounded number of it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._listed: list[tuple[str | None, str]] = []
        self._more = 0

    def add(self, message: str, run_id: str | None = None) -> None:
        """Note one more."""
        if len(self._listed) < _MAX_PROBLEMS:
            self._listed.append((run_id, message))
        else:
            self._more += 1

    def listed(self) -> list[tuple[str | None, str]]:
        """Run id, if one is concerned, and message of each."""
        more: list[tuple[str | None, str]] = [(None, f"{self._more} more")] if self._more else []
        return self._listed + more


class _BrokenTar(Exception):
    """What follows cannot be told apart any more."""


class _Unreadable(Exception):
    """What follows cannot be read any more."""


class _Pass:
    """A shard from its first to its last byte, in pieces, hashed on the way."""

    def __init__(self, storage: Storage, shard: ShardInfo, stop: threading.Event, progress: Callable[[int], None]):
        self.position = 0
        self.digest = xxhash.xxh3_128()
        self._storage, self._shard, self._stop, self._progress = storage, shard, stop, progress
        self._room = memoryview(bytearray(min(_PIECE, shard.num_bytes)))
        self._piece = self._room[:0]
        self._loaded = 0

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self._shard.num_bytes - self.position

    def pieces(self, num_bytes: int) -> Iterator[memoryview]:
        """The next bytes; each piece is valid until the next is asked for."""
        if num_bytes > self.left:
            raise _BrokenTar(f"{num_bytes} bytes expected at {self.position}, the file ends after {self.left}")
        while num_bytes:
            if not self._piece:
                self._load()
            piece = self._piece[:num_bytes]
            self._piece = self._piece[len(piece) :]
            self.position += len(piece)
            num_bytes -= len(piece)
            yield piece

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes as one object."""
        return b"".join([bytes(piece) for piece in self.pieces(num_bytes)])

    def skip(self, num_bytes: int) -> None:
        """Pass over the next bytes."""
        for _ in self.pieces(num_bytes):
            pass

    def zeros(self, num_bytes: int) -> bool:
        """Pass over the next bytes; tells whether they are all zero."""
        return not any(self.take(num_bytes))

    def _load(self) -> None:
        if self._stop.is_set():
            raise _Unreadable("stopped")
        piece = self._room[: self._shard.num_bytes - self._loaded]
        try:
            self._storage.read_into(self._shard.name, self._loaded, piece)
        except (CorruptShardError, StorageError) as error:
            raise _Unreadable(str(error)) from None
        self._piece = piece
        self._loaded += len(piece)
        self.digest.update(piece)
        self._progress(len(piece))


class ShardCheck:
    """The check of one shard.

    Parameters
    ----------
    storage, manifest, shard
        Where it lies and what the manifest says of it and of the set.
    expected
        Rows of `runs.tsv` that are said to lie in it, by run id; None if the table cannot be read.
    decode
        Also decompress.
    progress
        Called with numbers of bytes.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        shard: ShardInfo,
        expected: Mapping[str, RunEntry] | None,
        *,
        decode: bool,
        progress: Callable[[int], None],
    ) -> None:
        self.problems = Problems(shard.name)
        self.num_bytes = 0
        self._storage, self._manifest, self._shard, self._expected = storage, manifest, shard, expected
        self._decode, self._progress = decode, progress
        self._dtype = np.dtype(manifest.dtype)
        self._per_chunk = frames_per_chunk(manifest.num_voxels, self._dtype.itemsize)
        self._scratch: NDArray | None = None

    def run(self, stop: threading.Event) -> None:
        """Read the shard once and note what is wrong; ends early when `stop` is set."""
        file = _Pass(self._storage, self._shard, stop, self._progress)
        try:
            try:
                self._check_tar(file)
            except _BrokenTar as error:
                self.problems.add(f"{error}; the rest of this shard was not looked at")
            file.skip(file.left)
            if file.digest.hexdigest() != self._shard.xxh3:
                found = file.digest.hexdigest()
                self.problems.add(f"its hash is {found}, the manifest says {self._shard.xxh3}; restore the file")
        except _Unreadable as error:
            self.problems.add(str(error))
        self.num_bytes = file.position

    def _check_tar(self, file: _Pass) -> None:
        last = ""
        missing = dict(self._expected or {})
        while any(block := file.take(BLOCK)):
            begin = file.position - BLOCK
            try:
                member = parse_header(block)
                run_id, suffix = split_name(member.name)
            except ValueError as error:
                raise _BrokenTar(f"byte {begin}: {error}") from None
            if suffix != SUFFIXES[0] or run_id <= last:
                raise _BrokenTar(f"byte {begin}: member {member.name} after run {last!r}")
            self._check_run(file, run_id, member)
            missing.pop(run_id, None)
            last = run_id
        if file.left != BLOCK or not file.zeros(BLOCK):
            raise _BrokenTar(f"byte {file.position}: not a second zero block and then the end")
        for run_id in missing:
            self.problems.add("is not there, though runs.tsv says so", run_id)

    def _check_run(self, file: _Pass, run_id: str, member: Member) -> None:
        begin = file.position - BLOCK
        if member.num_bytes > MAX_JSON_BYTES:
            raise _BrokenTar(f"{member.name} has {member.num_bytes} bytes, allowed {MAX_JSON_BYTES}")
        parts = [self._data(file, member, run_id)]
        for suffix in SUFFIXES[1:-1]:
            member = self._next(file, run_id, suffix)
            if member.num_bytes != 4 * self._manifest.num_voxels:
                raise _BrokenTar(f"{member.name} has {member.num_bytes} bytes, not 4 a voxel")
            parts.append(self._data(file, member, run_id))
        bold = self._next(file, run_id, SUFFIXES[-1])
        bold_offset = file.position
        entry = None if self._expected is None else self._expected.get(run_id)
        if self._expected is not None and entry is None:
            self.problems.add("is not in runs.tsv with this shard", run_id)
        num_frames, statistics = self._check_head(run_id, parts, entry)
        self._check_bold(file, run_id, bold, num_frames, statistics)
        self._check_padding(file, bold, run_id)
        found = (begin, file.position - begin, bold_offset, bold.num_bytes)
        if entry is not None and found != (entry.offset, entry.num_bytes, entry.bold_offset, entry.bold_bytes):
            self.problems.add(f"lies at (offset, bytes, .bold offset, bytes) {found}, runs.tsv says otherwise", run_id)

    def _next(self, file: _Pass, run_id: str, suffix: str) -> Member:
        begin = file.position
        try:
            return expect_member(file.take(BLOCK), run_id, suffix)
        except ValueError as error:
            raise _BrokenTar(f"byte {begin}: {error}") from None

    def _data(self, file: _Pass, member: Member, run_id: str) -> bytes:
        data = file.take(member.num_bytes)
        self._check_padding(file, member, run_id)
        return data

    def _check_padding(self, file: _Pass, member: Member, run_id: str) -> None:
        if not file.zeros(member.num_padding):
            self.problems.add(f"padding of {member.name} is not zero", run_id)

    def _check_head(self, run_id: str, parts: list[bytes], entry: RunEntry | None) -> tuple[int, Statistics | None]:
        """Check JSON and statistics; returns the number of frames (0: not known) and the statistics."""
        meta: dict[str, Any] = {}
        statistics = None
        try:
            meta = parse_meta(parts[0])
            if entry is not None:
                check_meta(meta, entry, self._manifest)
        except ValueError as error:
            self.problems.add(str(error), run_id)
        try:
            statistics = parse_statistics(meta, parts[1:], self._manifest.num_voxels)
            self._check_statistics(statistics, entry)
            self._check_wide(meta, statistics)
        except ValueError as error:
            self.problems.add(str(error), run_id)
        num_frames = meta.get("num_frames") if entry is None else entry.num_frames
        return (num_frames if type(num_frames) is int and num_frames > 0 else 0), statistics

    def _check_statistics(self, statistics: Statistics, entry: RunEntry | None) -> None:
        _, std, scale = statistics
        dtype = self._manifest.dtype
        if (scale != 1).any() if dtype == "float32" else scale[std == 0].any():
            raise ValueError("scale is not what it must be in a constant voxel, or in float32")
        if entry is None or dtype not in STEPS_PER_SD:
            return
        num_wide = int(((scale != std / np.float32(STEPS_PER_SD[dtype])) & (std > 0)).sum())
        if num_wide != entry.num_wide_voxels:
            raise ValueError(f"{num_wide} wide voxels, runs.tsv says {entry.num_wide_voxels}")
        if entry.lossless and (scale[std > 0] != np.float32(entry.grid_slope)).any():
            raise ValueError("lossless, but scale is not grid_slope")

    def _check_wide(self, meta: dict[str, Any], statistics: Statistics) -> None:
        if WIDE not in meta:
            return
        gain = gain_of(*statistics, self._manifest.dtype)
        if meta[WIDE] != list_wide(gain, self._manifest.num_voxels):
            raise ValueError(f"{WIDE} in .json does not list the gains of the statistics")

    def _check_bold(
        self, file: _Pass, run_id: str, bold: Member, num_frames: int, statistics: Statistics | None
    ) -> None:
        end = file.position + bold.num_bytes
        try:
            bounds = self._bounds(file.position, bold.num_bytes, num_frames)
        except CorruptShardError as error:
            self.problems.add(str(error), run_id)
            file.skip(bold.num_bytes)
            return
        for number, size in enumerate(np.diff(bounds).tolist()):
            first = number * self._per_chunk
            try:
                if self._decode:
                    self._decode_chunk(file, size, min(self._per_chunk, num_frames - first), statistics)
                else:
                    _check_crc(file, size)
            except (CorruptShardError, ValueError) as error:
                self.problems.add(f"chunk {number} (from frame {first}): {error}", run_id)
        file.skip(end - file.position)

    def _bounds(self, position: int, num_bytes: int, num_frames: int) -> NDArray[np.int64]:
        size = chunks.index_bytes(num_frames, self._manifest.num_voxels, self._dtype.itemsize)
        if not num_frames or size >= num_bytes or position + num_bytes > self._shard.num_bytes:
            raise CorruptShardError(f".bold of {num_bytes} bytes is too small for {num_frames} frames, or cut")
        table = bytearray(size)
        self._storage.read_into(self._shard.name, position + num_bytes - size, memoryview(table))
        return chunks.parse_index(bytes(table), num_bytes, ".bold")

    def _decode_chunk(self, file: _Pass, size: int, num_frames: int, statistics: Statistics | None) -> None:
        from shards.decoding import decode_window

        shape = (self._per_chunk, self._manifest.num_voxels)
        if self._scratch is None:
            self._scratch = np.empty(shape, self._dtype)
        if size > chunks.object_bytes_bound(1, shape[1], self._dtype.itemsize):
            file.skip(size)
            raise ValueError(f"{size} bytes, more than zstd can make of it")
        decode_window(np.frombuffer(file.take(size), np.uint8), np.array([0, size]), self._scratch, "it")
        limit = LIMIT.get(self._manifest.dtype)
        if limit is not None and int(self._scratch.min()) < -limit:
            raise ValueError(f"holds {self._scratch.min()}, allowed are -{limit} to {limit}")
        if limit is None and not np.isfinite(self._scratch).all():
            raise ValueError("holds values that are not finite")
        if self._scratch[num_frames:].any():
            raise ValueError("what fills up the last chunk is not zero")
        if statistics is not None and limit is not None and self._scratch[:, statistics[2] == 0].any():
            raise ValueError("a constant voxel is not 0")


def _check_crc(file: _Pass, size: int) -> None:
    value = 0
    for piece in file.pieces(size - chunks.CRC_BYTES):
        value = crc32c(piece, value)
    if value.to_bytes(chunks.CRC_BYTES, "little") != file.take(chunks.CRC_BYTES):
        raise ValueError("its checksum fails; restore the shard")
