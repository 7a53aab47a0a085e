"""The `.bold` member: the bytes of one Zarr v3 `sharding_indexed` object.

Inner chunks are one frame by all voxels (more frames where a frame is small), each `bytes`,
`zstd` level 1, `crc32c`; they lie in order of time without gaps, so neighbouring frames are one
contiguous range. The index, with its own crc32c, stands at the end.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import crc32c
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from shards.errors import CorruptShardError
from shards.format import frames_per_chunk

ZSTD_LEVEL = 1
CRC_BYTES = 4


def codec_summary() -> dict[str, Any]:
    """The codec as the manifest states it."""
    return {"chunk": ["bytes", f"zstd-{ZSTD_LEVEL}", "crc32c"], "index": ["bytes", "crc32c"], "index_location": "end"}


def num_chunks(num_frames: int, num_voxels: int, itemsize: int) -> int:
    """Inner chunks of a run."""
    return math.ceil(num_frames / frames_per_chunk(num_voxels, itemsize))


def index_bytes(num_frames: int, num_voxels: int, itemsize: int) -> int:
    """Bytes of the index at the end of the object, its checksum included."""
    return 16 * num_chunks(num_frames, num_voxels, itemsize) + CRC_BYTES


def zarr_metadata(num_frames: int, num_voxels: int, dtype: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """The `zarr.json` of a run's array, shape (time, voxel)."""
    per_chunk = frames_per_chunk(num_voxels, np.dtype(dtype).itemsize)
    chunks = num_chunks(num_frames, num_voxels, np.dtype(dtype).itemsize)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [per_chunk, num_voxels],
        "codecs": [
            {"name": "bytes"} if dtype == "int8" else little,
            {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
            {"name": "crc32c"},
        ],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_frames, num_voxels],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunks * per_chunk, num_voxels]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0 if np.dtype(dtype).kind == "i" else 0.0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": attributes,
        "dimension_names": ["time", "voxel"],
    }


def object_bytes_bound(num_frames: int, num_voxels: int, itemsize: int) -> int:
    """No object of such an array is larger: zstd adds at most 1/256 and 64 bytes to a chunk."""
    chunk_bytes = frames_per_chunk(num_voxels, itemsize) * num_voxels * itemsize
    chunks = num_chunks(num_frames, num_voxels, itemsize)
    return chunks * (chunk_bytes + chunk_bytes // 256 + 64 + CRC_BYTES) + index_bytes(num_frames, num_voxels, itemsize)


def encode_chunks(q: NDArray, room: NDArray[np.uint8] | None = None) -> memoryview:
    """The `sharding_indexed` object of a (time, voxel) array of a stored dtype.

    Parameters
    ----------
    q
        (time, voxel).
    room
        Where the object is put: at least `object_bytes_bound` bytes; new memory if None.
    """
    num_frames, num_voxels = q.shape
    q = np.ascontiguousarray(q, dtype=q.dtype.newbyteorder("<"))
    per_chunk = frames_per_chunk(num_voxels, q.itemsize)
    if room is None:
        room = np.empty(object_bytes_bound(num_frames, num_voxels, q.itemsize), np.uint8)
    view = room.data
    index: list[int] = []
    position = 0
    for first in range(0, num_frames, per_chunk):
        frames = q[first : first + per_chunk]
        if len(frames) < per_chunk:
            frames = np.concatenate([frames, np.zeros((per_chunk - len(frames), num_voxels), q.dtype)])
        payload: bytes = zstd.compress(frames, ZSTD_LEVEL)
        size = len(payload) + CRC_BYTES
        view[position : position + size - CRC_BYTES] = payload
        view[position + size - CRC_BYTES : position + size] = _crc(payload)
        index += [position, size]
        position += size
    table = struct.pack(f"<{len(index)}Q", *index)
    end = position + len(table) + CRC_BYTES
    view[position:end] = table + _crc(table)
    return view[:end]


def parse_index(table: bytes | bytearray, object_bytes: int, where: str) -> NDArray[np.int64]:
    """Boundaries of the inner chunks: n + 1 byte offsets from the start of the object.

    Raises
    ------
    CorruptShardError
        The checksum fails, or the chunks are not contiguous from the start of the object to the index.
    """
    body = table[:-CRC_BYTES]
    if _crc(body) != table[-CRC_BYTES:]:
        raise CorruptShardError(f"{where}: the checksum of the chunk index fails; restore the shard or ingest again")
    offsets, sizes = np.frombuffer(body, "<u8").reshape(-1, 2).T
    if sizes.min() <= CRC_BYTES or sizes.max() > object_bytes:  # so that no sum can wrap around
        raise CorruptShardError(f"{where}: an inner chunk is empty or absent; restore the shard or ingest again")
    bounds = np.concatenate([[0], np.cumsum(sizes.astype(np.int64))])
    if not np.array_equal(offsets, bounds[:-1].astype(np.uint64)) or int(bounds[-1]) != object_bytes - len(table):
        raise CorruptShardError(f"{where}: inner chunks are not contiguous; restore the shard or ingest again")
    return bounds


def decode_chunk(stored: memoryview, out: NDArray, where: str) -> None:
    """Check and decompress one inner chunk into `out`, a contiguous array of exactly its size."""
    payload = stored[:-CRC_BYTES]
    if _crc(payload) != stored[-CRC_BYTES:]:
        raise CorruptShardError(f"{where}: a chunk's checksum fails; restore the shard or ingest again")
    if _content_bytes(payload) != out.nbytes:
        raise CorruptShardError(f"{where}: a chunk is not of the size of its frames; ingest again")
    try:
        zstd.decompress(payload, out)
    except (RuntimeError, ValueError) as error:
        raise CorruptShardError(f"{where}: a chunk does not decompress ({error}); ingest again") from None


def _content_bytes(frame: memoryview) -> int | None:
    """Bytes that a zstd frame says it decompresses to (RFC 8878, section 3.1.1), None if it does not say."""
    if len(frame) < 5 or bytes(frame[:4]) != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = frame[4]
    flag, single, dictionary = descriptor >> 6, descriptor >> 5 & 1, descriptor & 3
    size = (single, 2, 4, 8)[flag]
    first = 5 + (1 - single) + (0, 1, 2, 4)[dictionary]
    value = int.from_bytes(frame[first : first + size], "little")
    return None if size == 0 else value + (256 if size == 2 else 0)


def _crc(data: bytes | bytearray | memoryview) -> bytes:
    return int(crc32c.crc32c(data)).to_bytes(CRC_BYTES, "little")
