"""Decompression against zlib: what it takes, what it refuses, and that damaged streams never lead it astray."""

from __future__ import annotations

import gzip
import io
import random
import zlib

import numpy as np
import pytest

from ingest.gunzip import Gunzip, GzipError

STRATEGIES = {
    "default": zlib.Z_DEFAULT_STRATEGY,
    "filtered": zlib.Z_FILTERED,
    "huffman only": zlib.Z_HUFFMAN_ONLY,
    "runs": zlib.Z_RLE,
    "fixed": zlib.Z_FIXED,
}


def contents() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    values = (1000 + 30 * rng.standard_normal(60_000)).astype("f4")
    values[:15_000] = 0
    skewed = rng.choice(256, 200_000, p=(lambda w: w / w.sum())(1.6 ** -np.arange(256.0) + 1e-12)).astype(np.uint8)
    return {
        "empty": b"",
        "one byte": b"x",
        "zeros": bytes(300_000),
        "noise": rng.bytes(200_000),
        "bold": values.tobytes(),
        "int16": values.astype("i2").tobytes(),
        "text": b"".join(f"{k} is the number {k * k} of many\n".encode() for k in range(8_000)),
        "long codes": skewed.tobytes(),
        "far copies": (block := rng.bytes(32_700)) * 6,
        "period 1 to 40": b"".join(bytes(range(k)) * (2000 // k) for k in range(1, 41)) + block[:100],
    }


CONTENTS = contents()


def packed(data: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY, flush_every: int = 0) -> bytes:
    coder = zlib.compressobj(level, zlib.DEFLATED, 31, 9, strategy)
    if not flush_every:
        return coder.compress(data) + coder.flush()
    pieces = [data[k : k + flush_every] for k in range(0, len(data), flush_every)]
    modes = [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH]
    parts = [coder.compress(piece) + coder.flush(modes[k % 3]) for k, piece in enumerate(pieces)]
    return b"".join(parts) + coder.flush()


def unpacked(stream: bytes, piece: int = 50_000) -> bytes:
    reader = Gunzip(io.BytesIO(stream), piece)
    parts = []
    while len(part := reader.read(piece)):
        parts.append(part.tobytes())
    return b"".join(parts)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_every_kind_of_block_comes_out_as_it_went_in(name, strategy, level):
    assert unpacked(packed(CONTENTS[name], level, STRATEGIES[strategy])) == CONTENTS[name]


@pytest.mark.parametrize("piece", [1, 7, 999, 32_768, 65_537, 400_000])
def test_any_size_of_piece_gives_the_same_bytes(piece):
    data = CONTENTS["bold"][: 20_000 if piece == 1 else None]
    assert unpacked(packed(data), piece) == data


@pytest.mark.parametrize("flush_every", [10, 1000, 70_000])
def test_flushed_streams(flush_every):
    for name in ("bold", "text", "noise"):
        data = CONTENTS[name][:100_000]
        assert unpacked(packed(data, flush_every=flush_every)) == data


def test_members_follow_each_other_and_zeros_may_follow_them():
    parts = [CONTENTS[name] for name in ("text", "empty", "bold", "one byte")]
    stream = b"".join(packed(part) for part in parts)
    assert unpacked(stream) == b"".join(parts)
    assert unpacked(stream + bytes(2000)) == b"".join(parts)
    with pytest.raises(GzipError):
        unpacked(stream + b"something else")


def test_header_fields_are_passed_over():
    buffer = io.BytesIO()
    with gzip.GzipFile("a rather long name.nii", "wb", 6, buffer, 12345) as file:
        file.write(CONTENTS["text"])
    assert unpacked(buffer.getvalue()) == CONTENTS["text"]
    body = packed(CONTENTS["text"])[10:]
    head = b"\x1f\x8b\x08" + bytes([4 | 8 | 16 | 2]) + bytes(6) + b"\x05\x00extra" + b"name\0" + b"comment\0"
    crc = (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    assert unpacked(head + crc + body) == CONTENTS["text"]
    with pytest.raises(GzipError, match="CRC"):
        unpacked(head + bytes([crc[0] ^ 1, crc[1]]) + body)


@pytest.mark.parametrize("name", ["bold", "noise", "text", "one byte", "empty"])
def test_a_stream_that_is_cut_anywhere_is_short_and_never_complete(name):
    stream = packed(CONTENTS[name][:40_000])
    cuts = range(1, len(stream)) if len(stream) < 40 else [*range(1, 40), *range(40, len(stream), 397), len(stream) - 1]
    for cut in cuts:
        with pytest.raises((EOFError, GzipError)):
            unpacked(stream[:cut])


def damaged(stream: bytes, rng: random.Random) -> bytes:
    data = bytearray(stream)
    for _ in range(rng.choice([1, 1, 2, 10])):
        place = rng.randrange(len(data))
        data[place] = rng.choice([data[place] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255])
    if rng.random() < 0.2:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 50)]
    return bytes(data)


def zlibs_view(stream: bytes) -> bytes | None:
    """What zlib makes of a single member; None if it refuses it."""
    coder = zlib.decompressobj(31)
    try:
        data = coder.decompress(stream)
    except zlib.error:
        return None
    return data if coder.eof and not coder.unused_data.strip(b"\0") else None


def test_damaged_streams_are_refused_or_mean_what_zlib_says():
    """Also a guard of the memory: the window and the tables are written by raw address."""
    rng = random.Random(11)
    sources = [packed(CONTENTS[n][:6_000], level, s) for n in CONTENTS for level in (1, 9) for s in STRATEGIES.values()]
    refused = 0
    for trial in range(6_000):
        stream = damaged(sources[trial % len(sources)], rng)
        wanted = zlibs_view(stream)
        try:
            found = unpacked(stream, rng.choice([100, 5_000, 70_000]))
        except (EOFError, GzipError):
            refused += 1
            assert wanted is None
        else:
            assert found == wanted
    assert refused > 3_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_more_damaged_streams_without_their_checksums():
    """Bare deflate data, compared byte by byte: nothing but the decoder stands between damage and output."""
    rng = random.Random(12)
    sources = [
        packed(CONTENTS[n][:20_000], level, s) for n in CONTENTS for level in (1, 9) for s in STRATEGIES.values()
    ]
    for trial in range(200_000):
        stream = damaged(sources[trial % len(sources)][10:-8], rng)
        coder = zlib.decompressobj(-15)
        try:
            wanted = coder.decompress(stream, 1 << 20)
        except zlib.error:
            wanted = None
        reader = Gunzip(io.BytesIO(b"\x1f\x8b\x08" + bytes(7) + stream), 1 << 20)
        try:
            found = reader.read(1 << 20).tobytes()
        except (EOFError, GzipError):
            continue
        assert wanted is not None and found == wanted[: len(found)]


def test_reads_that_end_before_a_literal_of_a_long_code() -> None:
    """Bytes so skewed that rare ones have codes of 12 bits and more; every read size ends somewhere else among them."""
    data = np.minimum(np.random.default_rng(0).geometric(0.03, 60_000), 255).astype(np.uint8).tobytes()
    compressed = gzip.compress(data, 6)
    for size in (1, 2, 3, 5, 7, 11, 13):
        stream = Gunzip(io.BytesIO(compressed), size)
        parts = []
        while len(part := stream.read(size)):
            parts.append(part.tobytes())
        assert b"".join(parts) == data
