"""The file of one cached block: its bytes, then an XXH3-64 (uint64, little-endian) of each page of it.

Pages make a part of a block checkable without reading all of it: hashing costs about a tenth of reading.
"""

from __future__ import annotations

import os
import struct

import xxhash

PAGE = 128 * 1024


def file_bytes(length: int) -> int:
    """Size of the file of a block of `length` bytes."""
    return length + 8 * _num_pages(length)


def write_block(descriptor: int, data: memoryview) -> None:
    """Make a block the whole content of an open file.

    Raises
    ------
    OSError
        It cannot be written; the disk is full, for instance.
    """
    digests = [xxhash.xxh3_64_intdigest(data[start : start + PAGE]) for start in range(0, len(data), PAGE)]
    os.ftruncate(descriptor, 0)
    offset = 0
    for piece in (data, memoryview(struct.pack(f"<{len(digests)}Q", *digests))):
        while piece:
            written = os.pwrite(descriptor, piece, offset)
            piece, offset = piece[written:], offset + written


def read_block(descriptor: int, length: int, begin: int, part: memoryview) -> bool:
    """Fill `part` with the bytes of a block of `length` bytes from `begin` on; False if they are damaged.

    Raises
    ------
    OSError
        The disk fails.
    """
    end = begin + len(part)
    first, last = begin // PAGE, (end - 1) // PAGE
    before = bytearray(begin - first * PAGE)
    after = bytearray(min((last + 1) * PAGE, length) - end)
    if os.preadv(descriptor, [before, part, after], first * PAGE) != len(before) + len(part) + len(after):
        return False
    stored = os.pread(descriptor, 8 * (last - first + 1), length + 8 * first)
    if len(stored) != 8 * (last - first + 1):
        return False
    for page, digest in enumerate(struct.unpack(f"<{last - first + 1}Q", stored), first):
        low, high = page * PAGE - begin, (page + 1) * PAGE - begin
        inside = part[max(low, 0) : high]
        if low >= 0 and not (after and page == last):
            found = xxhash.xxh3_64_intdigest(inside)
        else:
            state = xxhash.xxh3_64(before if low < 0 else b"")
            state.update(inside)
            state.update(after if page == last else b"")
            found = state.intdigest()
        if found != digest:
            return False
    return True


def _num_pages(length: int) -> int:
    return -(-length // PAGE)
