"""Gzip files (RFC 1952) read once and in order: header, members, CRC, padding; bounded memory whatever they claim."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from ingest.inflate import BROKEN, FINISHED, HISTORY, MARGIN, SLACK, STATE_SIZE, TABLES_SIZE, inflate

READ_BYTES = 512 * 1024
"""Compressed bytes read at once."""
MAGIC = b"\x1f\x8b"
MAX_HEADER_BYTES = 64 * 1024
"""Of a member; what programs write there is a file name."""
_DEFLATE = 8
_HEADER_CRC, _EXTRA, _NAME, _COMMENT, _RESERVED = 2, 4, 8, 16, 0xE0
_PADDING = MARGIN + 64


class GzipError(Exception):
    """The stream is not what gzip writes: damaged, or followed by something else."""


class _Source(Protocol):
    def readinto(self, buffer: Any, /) -> int | None:
        """Fill a buffer from the start; 0 at the end."""


class Gunzip:
    """Decompressed bytes of a raw gzip file, in order.

    Parameters
    ----------
    file
        Read with `readinto` from where it stands to its end.
    most_bytes
        The most that `read` will be asked for.
    """

    def __init__(self, file: _Source, most_bytes: int) -> None:
        self._file = file
        self._source = np.zeros(MARGIN + READ_BYTES + _PADDING, np.uint8)
        self._window = np.zeros(HISTORY + most_bytes + SLACK, np.uint8)
        self._addresses = int(self._source.ctypes.data), int(self._window.ctypes.data)
        self._next, self._end, self._whole = 0, 0, False  # compressed bytes: next, end, and whether the file ends there
        self._given, self._made = HISTORY, HISTORY  # decompressed bytes: handed out, and made, up to here
        self._tables, self._state = np.zeros(TABLES_SIZE, np.uint32), np.zeros(STATE_SIZE, np.int64)
        self._member: int | None = None  # decompressed bytes of the member so far
        self._num_members, self._crc = 0, 0

    def read(self, num_bytes: int) -> NDArray[np.uint8]:
        """The next bytes, fewer only at the end; a view that lasts until the next call and must not be written to.

        Raises
        ------
        EOFError
            The file ends within a member.
        GzipError
            The file is damaged.
        """
        held = self._window[self._given - HISTORY : self._made]
        self._window[: len(held)] = held
        self._made = len(held)
        stop = HISTORY + num_bytes
        while self._made < stop and (self._member is not None or self._open_member()):
            self._decode(stop)
        self._given = min(stop, self._made)
        return self._window[HISTORY : self._given]

    def _decode(self, stop: int) -> None:
        assert self._member is not None
        begin, (source, window) = self._made, self._addresses
        found, made, result = inflate(
            source + self._next,
            source + (self._end + 8 if self._whole else self._end - MARGIN),
            source + self._end,
            window + begin,
            window + stop,
            window + max(0, begin - self._member),
            self._state,
            self._tables,
        )
        self._next, self._made = found - source, made - window
        if result == BROKEN and not (self._whole and self._next > self._end - 8):
            raise GzipError("its deflate data make no sense")
        if self._next > self._end or (result != FINISHED and self._whole and self._made < stop):
            raise EOFError("the file ends before the stream does")
        self._crc = zlib_ng.crc32(self._window[begin : self._made], self._crc)
        self._member += self._made - begin
        if result == FINISHED:
            self._close_member()
        elif self._made < stop:
            self._fill()

    def _open_member(self) -> bool:
        """Go to the next member behind any zeros; False at the end of the file."""
        while self._num_members and not self._source[self._next : self._end].any():
            self._next = self._end
            if self._whole:
                return False
            self._fill()
        if self._num_members:
            self._next += int(np.argmax(self._source[self._next : self._end] != 0))
        self._need(MAX_HEADER_BYTES)
        self._next += _header_bytes(self._source[self._next : self._end].tobytes())
        self._num_members += 1
        self._member, self._crc = 0, 0
        self._state[:] = 0
        return True

    def _close_member(self) -> None:
        """Compare CRC and length with the trailer."""
        if self._need(8) < 8:
            raise EOFError("the file ends before the stream does")
        crc, size = self._source[self._next : self._next + 8].view("<u4").tolist()
        if (crc, size) != (self._crc, (self._member or 0) & 0xFFFFFFFF):
            raise GzipError("its CRC does not fit the data")
        self._next += 8
        self._member = None

    def _need(self, num_bytes: int) -> int:
        """Have so many compressed bytes at hand if the file has them; returns how many there are."""
        while self._end - self._next < num_bytes and not self._whole:
            self._fill()
        return self._end - self._next

    def _fill(self) -> None:
        """Read on; what is left moves to the front."""
        left = self._source[self._next : self._end]
        self._source[: len(left)] = left
        self._next, self._end = 0, len(left)
        count = self._file.readinto(self._source[self._end : MARGIN + READ_BYTES]) or 0
        self._end += count
        if count == 0:
            self._whole = True
            self._source[self._end : self._end + _PADDING] = 0


def _header_bytes(data: bytes) -> int:
    """Size of the header that a member begins with."""
    if data[:2] != MAGIC[: len(data)]:
        raise GzipError(f"a member begins with {data[:4]!r}, not with {MAGIC!r}")
    if len(data) < 10:
        raise EOFError("the file ends in the header of a member")
    method, flags = data[2], data[3]
    if method != _DEFLATE or flags & _RESERVED:
        raise GzipError(f"method {method} and flags {flags:#x} are not known")
    size = 10
    if flags & _EXTRA:
        size += 2 + int.from_bytes(data[size : size + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            size = data.find(0, size) + 1 or len(data) + 1
    if flags & _HEADER_CRC:
        crc = int.from_bytes(data[size : size + 2], "little")
        size += 2
        if size <= len(data) and crc != zlib_ng.crc32(data[: size - 2]) & 0xFFFF:
            raise GzipError("the CRC of a header does not fit it")
    if size > len(data):
        raise EOFError("the header of a member does not end")
    return size
