"""Floors, and what everybody pays: the consumer alone, memcpy, bare zstd, the transport of a DataLoader."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numcodecs import zstd

from peers.contract import Consume, Contender, Key, Opened
from peers.torch_loader import loader_of
from peers.windows import Windows
from shards.chunks import CRC_BYTES, index_bytes, parse_index
from shards.format import frames_per_chunk
from shards.reader import ShardSet

PACKAGES: dict[str, str] = {}
Decode = Callable[[bytes, np.ndarray], object]


def prepare(windows: Windows, folder: Path) -> None:
    """Nothing: the bytes are those of our shard set, and of the reference."""


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """Floors of both kinds of window."""
    found = []
    for delivers in ("int8", "dense"):
        for name, opened in (("the consumer alone", _consumer), ("memcpy", _memcpy)):
            found.append(Contender(name=name, delivers=delivers, workers=1, open=opened(windows, delivers)))
    shard_set = folder.parent / "ours"
    libraries = {"bare zstd, numcodecs' library": zstd.__file__, "bare zstd, the system's": _system_zstd()}
    for name, library in libraries.items():
        if library is not None:
            found += _bare_zstd(windows, shard_set, name, library)
    found.append(
        Contender(
            name="bare zstd, numcodecs.zstd.decompress",
            delivers="int8",
            workers=1,
            open=_decoding(windows, shard_set, lambda: zstd.decompress, 1),
        )
    )
    for delivers in ("int8", "dense"):
        moving = _transport(windows, delivers)
        name = "torch DataLoader that only moves a tensor"
        found.append(Contender(name=name, delivers=delivers, workers=2, open=moving, clock="first"))
    return found


@cache
def _sources(windows: Windows, delivers: str) -> list[tuple[Key, np.ndarray]]:
    """The windows in memory, together larger than the caches."""
    if delivers == "int8":
        return [(key, windows.window(*key)) for key in windows.keys]
    return list(windows.dense())


def _consumer(windows: Windows, delivers: str) -> Callable:
    @contextmanager
    def opened() -> Opened:
        sources = _sources(windows, delivers)
        yield lambda consume: [consume(source, *key) for key, source in sources]

    return opened


def _memcpy(windows: Windows, delivers: str) -> Callable:
    """Into a buffer that is used again."""

    @contextmanager
    def opened() -> Opened:
        sources = _sources(windows, delivers)
        target = np.zeros_like(sources[0][1])

        def read(consume: Consume) -> None:
            for key, source in sources:
                ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)
                consume(target, *key)

        yield read

    return opened


def _bare_zstd(windows: Windows, shard_set: Path, name: str, library: str) -> list[Contender]:
    found = []
    for threads in (1, 2):
        opened = _decoding(windows, shard_set, lambda: _with_context(library), threads)
        found.append(Contender(name=name, delivers="int8", workers=threads, open=opened))
    return found


def _decoding(windows: Windows, shard_set: Path, make: Callable[[], Decode], threads: int) -> Callable:
    """Decompress the chunks of a window from memory into a reused buffer; no checks, no files."""

    @contextmanager
    def opened() -> Opened:
        stored = _stored(windows, shard_set)
        kept = _Kept(windows, make, threads)

        def decode(place: tuple[int, Key]) -> tuple[np.ndarray, Key]:
            number, key = place
            return kept.decode(number % (3 * threads), stored[key], key[1]), key

        def read(consume: Consume) -> None:
            if threads == 1:
                for place in enumerate(windows.keys):
                    window, key = decode(place)
                    consume(window, *key)
                return
            for window, key in _ahead(pool, decode, list(enumerate(windows.keys)), 2 * threads):
                consume(window, *key)

        with ThreadPoolExecutor(threads) as pool:
            yield read

    return opened


class _Kept:
    """Buffers and a decoder for each, so that no two threads share one."""

    def __init__(self, windows: Windows, make: Callable[[], Decode], threads: int) -> None:
        voxels, length = windows.size.voxels, windows.size.length
        self._chunk = frames_per_chunk(voxels, 1)
        chunks = -(-length // self._chunk) + 1
        self._rooms = [np.empty((chunks * self._chunk, voxels), np.int8) for _ in range(3 * threads)]
        self._decoders = [make() for _ in self._rooms]
        self._length = length

    def decode(self, number: int, chunks: Iterable[bytes], start: int) -> np.ndarray:
        room, decoder = self._rooms[number], self._decoders[number]
        for place, chunk in enumerate(chunks):
            decoder(chunk, room[place * self._chunk : (place + 1) * self._chunk])
        return room[start % self._chunk :][: self._length]


def _ahead(pool: ThreadPoolExecutor, task: Callable, items: list, depth: int) -> Iterable:
    """Like `pool.map`, with at most `depth` results waiting."""
    waiting = [pool.submit(task, item) for item in items[:depth]]
    for item in [*items[depth:], *[None] * len(waiting)]:
        yield waiting.pop(0).result()
        if item is not None:
            waiting.append(pool.submit(task, item))


def _stored(windows: Windows, folder: Path) -> dict[Key, list[bytes]]:
    """The zstd frames of every window, in memory."""
    found = {}
    length, per_chunk = windows.size.length, frames_per_chunk(windows.size.voxels, 1)
    with ShardSet(folder) as shard_set:
        for run, start in windows.keys:
            entry = shard_set.runs[run]
            size = index_bytes(entry.num_frames, windows.size.voxels, 1)
            index = bytes(shard_set.read_stored(run, entry.bold_bytes - size, size))
            bounds = parse_index(index, entry.bold_bytes, entry.run_id).tolist()
            chunks = range(start // per_chunk, (start + length - 1) // per_chunk + 1)
            parts = [(bounds[k], bounds[k + 1] - bounds[k] - CRC_BYTES) for k in chunks]
            found[run, start] = [bytes(shard_set.read_stored(run, *part)) for part in parts]
    return found


def _system_zstd() -> str | None:
    return ctypes.util.find_library("zstd")


def _with_context(library: str) -> Decode:
    """`ZSTD_decompressDCtx` with a context of its own, which is what zstd recommends for speed."""
    functions = ctypes.CDLL(library)
    functions.ZSTD_createDCtx.restype = ctypes.c_void_p
    call = functions.ZSTD_decompressDCtx
    call.restype = ctypes.c_size_t
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    context = functions.ZSTD_createDCtx()

    def decode(chunk: bytes, out: np.ndarray) -> None:
        assert call(context, out.ctypes.data, out.nbytes, chunk, len(chunk)) == out.nbytes

    return decode


def _transport(windows: Windows, delivers: str) -> Callable:
    """A fresh copy of a tensor that lies in the worker's memory: nothing is read or decoded."""

    @contextmanager
    def opened() -> Opened:
        sources = {key: torch.from_numpy(source) for key, source in _sources(windows, delivers)}
        with loader_of(windows.keys, lambda key: sources[key].clone()) as read:
            yield read

    return opened
