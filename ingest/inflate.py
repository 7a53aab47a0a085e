"""Deflate streams (RFC 1951), decoded piece by piece in bounded memory at the speed of libdeflate.

Why not a library: libdeflate wants the whole run in memory at once, the streaming ones (zlib-ng, isal) take a
quarter more CPU time, and gunzip is most of the work of ingest; `scripts/bench/ingest.py` prints them all. zlib is
the oracle of the tests, and `ingest.gunzip` checks the CRC of every byte that comes out of here.

The kernel works on raw addresses. What keeps it inside its buffers: no step begins less than `MARGIN` bytes before
the end of what may be read, nor at or behind `out_stop`; no step writes more than `SLACK` bytes; no copy reaches
below `low`; and only complete prefix codes (or none, or one of one bit) become tables, which bounds their size.

An entry of a table is a uint32. Bits 0-5: how many bits to drop. 31: a literal, in bits 8-15. Otherwise 8-11: length
of the code without its extra bits; 14-28: base value, or where the second level begins; 30: an exception, that is
the end of the block (12), no code (13), or the second level (neither).
"""

from __future__ import annotations

import numpy as np

from shards.machine_code import (
    compiled,
    load8,
    load16,
    load32,
    load64,
    shift_left,
    shift_right,
    store8,
    store32,
    store64,
    store256,
)

SUSPENDED, FINISHED, BROKEN = 0, 1, -1
HISTORY = 32 * 1024
"""A copy reaches at most this far back."""
MARGIN = 1024
"""More than the header of a block takes."""
SLACK = 512
"""More than one step writes: 258 bytes, rounded up to 32."""

HEADER, SYMBOLS, VERBATIM = range(3)
"""What comes next in a stream."""
LITERAL, EXCEPTION, NO_CODE, END, BASE = 1 << 31, 1 << 30, 1 << 13, 1 << 12, 14
LONGEST, LITLEN_BITS, DIST_BITS, PRECODE_BITS = 15, 11, 9, 7
"""Longest code, and bits of the first levels."""
LITLEN_MASK, LITLEN_SECOND = (1 << LITLEN_BITS) - 1, (1 << (LONGEST - LITLEN_BITS)) - 1
DIST_MASK, DIST_SECOND = (1 << DIST_BITS) - 1, (1 << (LONGEST - DIST_BITS)) - 1
DIST_TABLE = LITLEN_MASK + 1 + 144 * (LITLEN_SECOND + 1)
"""Where a table begins; a second level holds at least two codes."""
PRECODE_TABLE = DIST_TABLE + DIST_MASK + 1 + 16 * (DIST_SECOND + 1)
TABLES_SIZE = PRECODE_TABLE + (1 << PRECODE_BITS)
BITS, COUNT, MODE, STORED, LAST, LENGTHS = range(6)
"""Places in the state of a stream: bits read ahead, their number, what comes next, bytes left, last block, and the
lengths of codes, followed by their counts and the next code of each length."""
COUNTS = LENGTHS + 320
CODES = COUNTS + LONGEST + 2
STATE_SIZE = CODES + LONGEST + 2
_REVERSED = np.array([int(f"{code:015b}"[::-1], 2) for code in range(1 << LONGEST)], np.uint16)


def _matches(first: int, extra_bits: list[int]) -> list[int]:
    """Entries of consecutive ranges of values, each 2 ** extra_bits long."""
    bases = np.cumsum([first, *(1 << bits for bits in extra_bits[:-1])])
    return [int(base) << BASE | bits for base, bits in zip(bases, extra_bits, strict=True)]


_LENGTHS = [*_matches(3, [0] * 8 + [k // 4 for k in range(4, 24)]), 258 << BASE]
_DISTANCES = _matches(1, [0, 0, *(k // 2 for k in range(28))])
_UNUSED = [EXCEPTION | NO_CODE] * 2
LITLEN_ENTRIES = np.array([LITERAL | k << 8 for k in range(256)] + [EXCEPTION | END, *_LENGTHS, *_UNUSED], np.uint32)
DIST_ENTRIES = np.array(_DISTANCES + _UNUSED, np.uint32)
PRECODE_ENTRIES = np.arange(19, dtype=np.uint32) << BASE
PRECODE_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])
REPEAT_BITS, REPEAT_BASE = np.array([2, 3, 7]), np.array([3, 3, 11])


# No annotations below: numba infers. Each function returns what it moves on: source, bits, count, out.


@compiled
def _refill(source, bits, count):  # type: ignore[no-untyped-def]
    """At least 56 bits. Those above `count` are the ones that come next: reading them again does no harm."""
    return source + 7 - ((count >> 3) & 7), bits | shift_left(load64(source), count), count | 56


@compiled
def _first_codes(lengths, counts, codes):  # type: ignore[no-untyped-def]
    """Count the lengths and find the first code of each; returns how much of the code space is left over."""
    counts[:] = 0
    for length in lengths:
        counts[length] += 1
    counts[0] = 0
    left, code = 1, 0
    for length in range(1, LONGEST + 1):
        left = 2 * left - counts[length]
        if left < 0:
            return left
        code = (code + counts[length - 1]) << 1
        codes[length] = code
    return left


@compiled
def _fill_table(lengths, entries, bits, table, state):  # type: ignore[no-untyped-def]
    """Fill a table of two levels; returns how much of the code space is left over, -1 where zlib refuses it too."""
    counts, codes = state[COUNTS:CODES], state[CODES:STATE_SIZE]
    left = _first_codes(lengths, counts, codes)
    size, longer = 1 << bits, LONGEST - bits
    if left < 0 or (left > 0 and counts[2:].max() > 0):
        return -1
    if left > 0:  # no code, or a single one of one bit
        table[:size] = EXCEPTION | NO_CODE
    first_prefix = codes[bits + 1] >> 1
    for symbol in range(len(lengths)):
        length = np.int64(lengths[symbol])
        if length == 0:
            continue
        code = codes[length]
        codes[length] += 1
        position, start, room = np.int64(_REVERSED[code]) >> (LONGEST - length), 0, size
        if length > bits:
            length -= bits
            prefix = code >> length
            start = size + ((prefix - first_prefix) << longer)
            table[_REVERSED[prefix] >> longer] = EXCEPTION | start << BASE | bits
            position, room = position >> bits, 1 << longer
        entry = np.int64(entries[symbol])
        entry += length if entry & LITERAL else length << 8 | length
        address = np.int64(table.ctypes.data) + (start << 2)
        while position < room:  # a `for` over the array is compiled to scatters, which are slower
            store32(address + (position << 2), entry)
            position += 1 << length
    return left


@compiled
def _read_lengths(source, bits, count, state, tables):  # type: ignore[no-untyped-def]
    """The code lengths in the header of a dynamic block; 0 symbols where zlib refuses it too."""
    lengths, table = state[LENGTHS:COUNTS], tables[PRECODE_TABLE:]
    num_litlen, num_dist, num_code = (bits & 31) + 257, ((bits >> 5) & 31) + 1, ((bits >> 10) & 15) + 4
    bits, count = shift_right(bits, 14), count - 14
    if num_litlen > 286 or num_dist > 30:
        return source, bits, count, 0, 0
    lengths[:19] = 0
    for k in range(num_code):
        if k % 16 == 0:
            source, bits, count = _refill(source, bits, count)
        lengths[PRECODE_ORDER[k]] = bits & 7
        bits, count = shift_right(bits, 3), count - 3
    if _fill_table(lengths[:19], PRECODE_ENTRIES, PRECODE_BITS, table, state) != 0:
        return source, bits, count, 0, 0
    done, total = 0, num_litlen + num_dist
    while done < total:
        source, bits, count = _refill(source, bits, count)
        entry = np.int64(table[bits & ((1 << PRECODE_BITS) - 1)])
        if entry & EXCEPTION:
            return source, bits, count, 0, 0
        bits, count = shift_right(bits, entry), count - (entry & 63)
        value, repeat = entry >> BASE, 1
        if value > 15:
            extra = REPEAT_BITS[value - 16]
            repeat = REPEAT_BASE[value - 16] + (bits & ((1 << extra) - 1))
            bits, count = shift_right(bits, extra), count - extra
            if done + repeat > total or (value == 16 and done == 0):
                return source, bits, count, 0, 0
            value = np.int64(lengths[done - 1]) if value == 16 else np.int64(0)
        lengths[done : done + repeat] = value
        done += repeat
    return source, bits, count, num_litlen, num_dist


@compiled
def _open_block(source, bits, count, state, tables):  # type: ignore[no-untyped-def]
    """Read the header of a block and prepare for its contents; the last value is False where it is damaged."""
    source, bits, count = _refill(source, bits, count)
    state[LAST], kind = bits & 1, (bits >> 1) & 3
    bits, count = shift_right(bits, 3), count - 3
    if kind == 0:
        source -= (count & 63) >> 3
        state[MODE], state[STORED] = VERBATIM, load16(source)
        return source + 4, 0, 0, state[STORED] == load16(source + 2) ^ 0xFFFF
    lengths, num_litlen, num_dist = state[LENGTHS:COUNTS], 288, 32
    if kind == 1:
        lengths[:144], lengths[144:256], lengths[256:280], lengths[280:288], lengths[288:] = 8, 9, 7, 8, 5
    elif kind == 2:
        source, bits, count, num_litlen, num_dist = _read_lengths(source, bits, count, state, tables)
    if kind == 3 or num_litlen == 0 or lengths[256] == 0:
        return source, bits, count, False
    state[MODE] = SYMBOLS
    sound = _fill_table(lengths[:num_litlen], LITLEN_ENTRIES, LITLEN_BITS, tables, state) >= 0
    dist_lengths = lengths[num_litlen : num_litlen + num_dist]
    sound &= _fill_table(dist_lengths, DIST_ENTRIES, DIST_BITS, tables[DIST_TABLE:], state) >= 0
    return source, bits, count, sound


@compiled
def _copy_verbatim(source, source_end, out, out_stop, state):  # type: ignore[no-untyped-def]
    """The bytes of a stored block, as far as there are any and there is room for them."""
    size = max(0, min(state[STORED], source_end - source, out_stop - out))
    for place in range(0, size, 8):
        store64(out + place, load64(source + place))
    state[STORED] -= size
    return source + size, out + size


@compiled
def _copy_match(out, stop, back):  # type: ignore[no-untyped-def]
    """Repeat what lies `back` bytes before `out` until `stop`; up to 31 bytes behind it are overwritten."""
    start = out - back
    if back >= 8:
        while out < stop:
            store64(out, load64(start))
            out, start = out + 8, start + 8
    elif back == 1:
        pattern = load8(start) * 0x0101010101010101
        while out < stop:
            store256(out, pattern)
            out += 32
    else:
        while out < stop:  # of each eight bytes the first `back` are right
            store64(out, load64(start))
            out, start = out + back, start + back


@compiled
def _decode_symbols(source, source_stop, bits, count, out, out_stop, low, litlen):  # type: ignore[no-untyped-def]
    """The symbols of a block; the last value is 1 at its end, -1 where it is damaged, else 0.

    The next entry is read before the bits are refilled, which takes the refill out of the chain of waits.
    """
    dist = litlen + (DIST_TABLE << 2)
    if source > source_stop:
        return source, bits, count, out, 0
    source, bits, count = _refill(source, bits, count)
    entry = load32(litlen + ((bits & LITLEN_MASK) << 2))
    while source <= source_stop and out < out_stop:
        for _ in range(4):
            if not entry & LITERAL:
                break
            bits, count = shift_right(bits, entry), count - entry
            store8(out, entry >> 8)
            out += 1
            entry = load32(litlen + ((bits & LITLEN_MASK) << 2))
        source, bits, count = _refill(source, bits, count)
        if entry & LITERAL:
            continue
        if entry & EXCEPTION:
            if not entry & (END | NO_CODE):
                bits, count = shift_right(bits, entry), count - entry
                entry = load32(litlen + (((entry >> BASE) & 0x1FFF) + (bits & LITLEN_SECOND) << 2))
                if entry & LITERAL:  # written here: the loop may end before it comes to it, and its first bits are gone
                    bits, count = shift_right(bits, entry), count - entry
                    store8(out, entry >> 8)
                    out += 1
                    entry = load32(litlen + ((bits & LITLEN_MASK) << 2))
                    source, bits, count = _refill(source, bits, count)
                    continue
            if entry & EXCEPTION:
                if entry & END:
                    return source, shift_right(bits, entry), count - entry, out, 1
                return source, bits, count, out, -1
        stop = out + ((entry >> BASE) & 0x1FF) + shift_right(bits & (shift_left(1, entry) - 1), (entry >> 8) & 15)
        bits, count = shift_right(bits, entry), count - entry
        entry = load32(dist + ((bits & DIST_MASK) << 2))
        if entry & EXCEPTION and not entry & NO_CODE:
            bits, count = shift_right(bits, entry), count - entry
            entry = load32(dist + (((entry >> BASE) & 0x1FFF) + (bits & DIST_SECOND) << 2))
        back = ((entry >> BASE) & 0x7FFF) + shift_right(bits & (shift_left(1, entry) - 1), (entry >> 8) & 15)
        if entry & EXCEPTION or back > out - low:
            return source, bits, count, out, -1
        bits, count = shift_right(bits, entry), count - entry
        source, bits, count = _refill(source, bits, count)
        entry = load32(litlen + ((bits & LITLEN_MASK) << 2))
        _copy_match(out, stop, back)
        out = stop
    return source, bits, count, out, 0


@compiled
def inflate(source, source_stop, source_end, out, out_stop, low, state, tables):  # type: ignore[no-untyped-def]
    """Decode until the stream ends, `out_stop` is reached or `source_stop` is passed.

    Parameters
    ----------
    source, source_stop, source_end
        Addresses: the next byte; the last one at which a step may begin; the end of the data. At least
        `MARGIN` bytes behind `source_stop` must be readable.
    out, out_stop, low
        Addresses: where to write; where to stop (up to `SLACK` bytes behind it may be overwritten); the first
        byte that a copy may reach.
    state, tables
        (`STATE_SIZE`,) int64, zeros to begin with, and (`TABLES_SIZE`,) uint32.

    Returns
    -------
    source, out, result
        Where both stand now, and `SUSPENDED`, `FINISHED` or `BROKEN`.
    """
    bits, count, result = state[BITS], state[COUNT], SUSPENDED
    while result == SUSPENDED:
        if state[MODE] == HEADER:
            if state[LAST]:
                result = FINISHED
            elif source > source_stop:
                break
            else:
                source, bits, count, sound = _open_block(source, bits, count, state, tables)
                result = SUSPENDED if sound else BROKEN
        elif state[MODE] == VERBATIM:
            source, out = _copy_verbatim(source, source_end, out, out_stop, state)
            if state[STORED]:
                break
            state[MODE] = HEADER
        else:
            source, bits, count, out, end = _decode_symbols(
                source, source_stop, bits, count, out, out_stop, low, np.int64(tables.ctypes.data)
            )
            if end == 0:
                break
            state[MODE], result = (HEADER, SUSPENDED) if end == 1 else (SYMBOLS, BROKEN)
    count &= 63
    source, count = source - (count >> 3), count & 7
    state[BITS], state[COUNT] = bits & ((1 << count) - 1), count
    return source, out, result
