"""The compiled decoder against the definition, chunk by chunk, and on damaged bytes."""

from __future__ import annotations

import threading

import crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import zstd

from shards import chunks, decoding
from shards.errors import CorruptShardError
from shards.machine_code import compiled, crc32c_byte, crc32c_word


def stored_window(num_frames: int, num_voxels: int, dtype: str = "int8", seed: int = 0):
    rng = np.random.default_rng(seed)
    q = np.rint(16 * rng.standard_normal((num_frames, num_voxels))).clip(-127, 127).astype(dtype)
    per_chunk = chunks.frames_per_chunk(num_voxels, q.itemsize)
    assert num_frames % per_chunk == 0
    whole = chunks.encode_chunks(q)
    table = bytes(whole[-chunks.index_bytes(num_frames, num_voxels, q.itemsize) :])
    return q, np.frombuffer(whole, np.uint8).copy(), chunks.parse_index(table, len(whole), "here")


def test_this_machine_runs_the_compiled_decoder() -> None:
    assert decoding._library() is not None


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_it_gives_what_was_encoded(dtype: str, count: int) -> None:
    num_voxels = 131072 // np.dtype(dtype).itemsize + 5
    q, stored, bounds = stored_window(count + 3, num_voxels, dtype)
    out = np.empty((count, num_voxels), dtype)
    part = bounds[2 : count + 3]
    decoding.decode_window(stored[part[0] : part[-1]], part - part[0], out, "here")
    np.testing.assert_array_equal(out, q[2 : count + 2])


def test_without_it_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, stored, bounds = stored_window(5, 140_000)
    out = np.empty_like(q)
    monkeypatch.setattr(decoding, "_library", lambda: None)
    decoding.decode_window(stored[: bounds[-1]], bounds, out, "here")
    np.testing.assert_array_equal(out, q)
    stored[bounds[3] + 7] ^= 1
    with pytest.raises(CorruptShardError, match="here: a chunk's checksum fails"):
        decoding.decode_window(stored[: bounds[-1]], bounds, out, "here")


@pytest.mark.parametrize("chunk", range(5))
@pytest.mark.parametrize("where", ["first", "middle", "last", "checksum"])
def test_a_flipped_bit_in_any_chunk_raises(chunk: int, where: str) -> None:
    q, stored, bounds = stored_window(5, 140_000)
    begin, end = int(bounds[chunk]), int(bounds[chunk + 1])
    place = {"first": begin, "middle": (begin + end) // 2, "last": end - 5, "checksum": end - 1}[where]
    stored[place] ^= 1 << chunk
    with pytest.raises(CorruptShardError, match="here: a chunk's checksum fails"):
        decoding.decode_window(stored[: bounds[-1]], bounds, np.empty_like(q), "here")


def sealed(payload: bytes) -> bytes:
    return payload + int(crc32c.crc32c(payload)).to_bytes(4, "little")


@pytest.mark.parametrize(
    "payload", [zstd.compress(bytes(999), 1), zstd.compress(bytes(1001), 1), b"no zstd at all", bytes(1)]
)
def test_a_frame_of_another_size_or_none_at_all_raises_and_writes_nothing_beyond(payload: bytes) -> None:
    good = sealed(zstd.compress(bytes(1000), 1))
    data = np.frombuffer(good + sealed(payload), np.uint8)
    room = np.full((3, 1000), 7, np.int8)
    with pytest.raises(CorruptShardError, match="does not decompress"):
        decoding.decode_window(data, np.array([0, len(good), len(data)]), room[:2], "here")
    assert (room[2] == 7).all()


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_chunks_of_any_length_are_checked_right(payloads: list[bytes]) -> None:
    parts = [sealed(zstd.compress(payload.ljust(60), 1)) for payload in payloads]
    bounds = np.cumsum([0, *map(len, parts)])
    out = np.empty((len(parts), 60), np.int8)
    decoding.decode_window(np.frombuffer(b"".join(parts), np.uint8), bounds, out, "here")
    assert [row.tobytes() for row in out] == [payload.ljust(60) for payload in payloads]


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_the_checksum_instruction_is_crc32c(data: bytes) -> None:
    assert _checksum(np.frombuffer(data + bytes(8), np.uint8).ctypes.data, len(data)) == crc32c.crc32c(data)


@compiled
def _checksum(address, size):  # type: ignore[no-untyped-def]
    state = np.int64(0xFFFFFFFF)
    for place in range(0, size - 7, 8):
        state = crc32c_word(state, address + place)
    for place in range(size - size % 8, size):
        state = crc32c_byte(state, address + place)
    return state ^ 0xFFFFFFFF


def test_threads_that_come_and_go_leave_no_context_behind() -> None:
    q, stored, bounds = stored_window(3, 140_000)

    def work() -> None:
        out = np.empty_like(q)
        decoding.decode_window(stored[: bounds[-1]], bounds, out, "here")
        assert (out == q).all()

    before = resident()
    for _ in range(200):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert resident() - before < 20e6  # 200 contexts would be 30 MB and more


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)
