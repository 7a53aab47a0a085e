"""Inner chunks checked and decompressed in one call that never takes the GIL.

A window of 20 frames is 20 checksums and 20 zstd frames; called one by one from Python, each is a chance to wait
for the GIL that the training loop holds. Here one compiled loop does them all: the CRC32C instruction, three
chunks abreast, and the zstd that numcodecs carries, through its address. `shards.chunks.decode_chunk` is the
definition, and what runs where the processor or the library lacks one of the two.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from functools import cache

import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from shards.chunks import CRC_BYTES, decode_chunk
from shards.errors import CorruptShardError
from shards.machine_code import call5, compiled, crc32c_byte, crc32c_word, has_crc32c, load32

WHOLE, BAD_CHECKSUM, BAD_FRAME = 0, 1, 2
_MEANING = {BAD_CHECKSUM: "a chunk's checksum fails", BAD_FRAME: "a chunk does not decompress"}
_SEED = 0xFFFFFFFF


class _Library:
    """The zstd inside numcodecs, by its C interface."""

    def __init__(self) -> None:
        library = ctypes.CDLL(zstd.__file__)
        self.decompress = int(ctypes.cast(library.ZSTD_decompressDCtx, ctypes.c_void_p).value or 0)
        self.create = library.ZSTD_createDCtx
        self.create.restype, self.create.argtypes = ctypes.c_void_p, []
        self.free = library.ZSTD_freeDCtx
        self.free.restype, self.free.argtypes = ctypes.c_size_t, [ctypes.c_void_p]


class _Context(threading.local):
    """A decompression context for each thread; a fresh one for every chunk would cost 7 % of the decoding."""

    def __init__(self) -> None:
        library = _library()
        assert library is not None
        self.address = int(library.create() or 0)
        if not self.address:
            raise MemoryError("zstd: no memory for a decompression context")
        weakref.finalize(threading.current_thread(), library.free, self.address)


@cache
def _library() -> _Library | None:
    try:
        return _Library() if has_crc32c() else None
    except (OSError, AttributeError):
        return None


@cache
def _contexts() -> _Context:
    return _Context()


def decode_window(stored: NDArray[np.uint8], bounds: NDArray[np.int64], out: NDArray, where: str) -> None:
    """Check and decompress neighbouring inner chunks.

    Parameters
    ----------
    stored
        Their bytes as they lie in the shard.
    bounds
        (chunk + 1,): where each begins in `stored`, and where the last ends; ascending by at least 5.
    out
        (frame, voxel), C order, exactly the frames of these chunks.
    where
        Shard and run, for messages.

    Raises
    ------
    CorruptShardError
        A checksum fails, or a chunk does not decompress to its size.
    """
    library = _library()
    count = len(bounds) - 1
    if library is None:
        frames = out.reshape(count, -1)
        for chunk in range(count):
            decode_chunk(stored[bounds[chunk] : bounds[chunk + 1]].data, frames[chunk], where)
        return
    state = _decode(
        library.decompress, _contexts().address, stored.ctypes.data, bounds, out.ctypes.data, out.nbytes // count
    )
    if state != WHOLE:
        raise CorruptShardError(f"{where}: {_MEANING[state]}; restore the shard or ingest again")


@compiled
def _decode(decompress, context, stored, bounds, out, chunk_bytes):  # type: ignore[no-untyped-def]
    count = len(bounds) - 1
    for first in range(0, count, 3):
        last = min(first + 3, count)
        bad = _first_bad(stored, bounds, first, last)
        if bad >= 0:
            return BAD_CHECKSUM
        for chunk in range(first, last):
            size = bounds[chunk + 1] - bounds[chunk] - CRC_BYTES
            target = out + chunk * chunk_bytes
            if call5(decompress, context, target, chunk_bytes, stored + bounds[chunk], size) != chunk_bytes:
                return BAD_FRAME
    return WHOLE


@compiled
def _first_bad(stored, bounds, first, last):  # type: ignore[no-untyped-def]
    """First of up to three chunks whose checksum fails, or -1; the instruction takes three cycles, so three abreast."""
    a = stored + bounds[first]
    b = stored + bounds[min(first + 1, last - 1)]
    c = stored + bounds[min(first + 2, last - 1)]
    common = np.int64(1) << 62
    for chunk in range(first, last):
        common = min(common, bounds[chunk + 1] - bounds[chunk] - CRC_BYTES)
    common -= common % 8
    x = y = z = np.int64(_SEED)
    for place in range(0, common, 8):
        x = crc32c_word(x, a + place)
        y = crc32c_word(y, b + place)
        z = crc32c_word(z, c + place)
    for chunk in range(first, last):
        state = x if chunk == first else (y if chunk == first + 1 else z)
        end = stored + bounds[chunk + 1] - CRC_BYTES
        for address in range(stored + bounds[chunk] + common, end):
            state = crc32c_byte(state, address)
        if state ^ _SEED != load32(end):
            return chunk
    return np.int64(-1)
