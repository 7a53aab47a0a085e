"""The tar of a shard, read strictly: headers, and the members of a run in their order.

Nothing is extracted and no name becomes a path. Functions raise `ValueError` with one line; callers
say where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shards.format import BLOCK, valid_run_id
from shards.strict import shown

SUFFIXES = ("json", "mean.f32", "std.f32", "scale.f32", "bold")
"""Of a run's members, in their order; the names are `<run_id>.<suffix>`."""

_OCTAL = re.compile(rb"[ 0]*([0-7]{1,12})[ \0]{0,2}")
_NOTHING = re.compile(rb"[ 0]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A regular file in the tar."""

    name: str
    num_bytes: int

    @property
    def num_padding(self) -> int:
        """Zeros between its data and the next header."""
        return -self.num_bytes % BLOCK


def parse_header(block: bytes) -> Member:
    """Read a ustar header of 512 bytes.

    Raises
    ------
    ValueError
        The checksum fails, or it is anything but a regular file of mode 0644 without owner, time, link and prefix.
    """
    if len(block) != BLOCK or block[257:265] != b"ustar\x0000":
        raise ValueError("no ustar header where one is expected")
    if _octal(block, 148, 156, "checksum") != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ValueError("the checksum of a tar header fails")
    if block[156:157] != b"0":
        raise ValueError(f"a member of type {shown(block[156:157])}, allowed are regular files")
    if _octal(block, 100, 108, "mode") != 0o644:
        raise ValueError(f"a member of mode {_octal(block, 100, 108, 'mode'):o}, expected 644")
    for what, begin, end in (("uid", 108, 116), ("gid", 116, 124), ("mtime", 136, 148), ("device", 329, 345)):
        if _NOTHING.fullmatch(block[begin:end].replace(b"\0", b" ")) is None:
            raise ValueError(f"a member with {what} {shown(block[begin:end])}, expected 0")
    for what, begin, end in (("link", 157, 257), ("owner", 265, 329), ("prefix", 345, BLOCK)):
        if any(block[begin:end]):
            raise ValueError(f"a member with {what} {shown(block[begin:end])}, expected none")
    name, _, rest = block[:100].partition(b"\0")
    if not name.isascii() or any(rest):
        raise ValueError(f"a member called {shown(name)}")
    return Member(name=name.decode("ascii"), num_bytes=_octal(block, 124, 136, "size"))


def split_name(name: str) -> tuple[str, str]:
    """Run id and suffix of a member's name.

    Raises
    ------
    ValueError
        It is not `<run_id>.<suffix>` with a valid run id and one of the five suffixes.
    """
    run_id, _, suffix = name.partition(".")
    if not valid_run_id(run_id) or suffix not in SUFFIXES:
        raise ValueError(f"a member called {shown(name)}, expected a run id and one of {', '.join(SUFFIXES)}")
    return run_id, suffix


def expect_member(block: bytes, run_id: str, suffix: str) -> Member:
    """Read a header that must be of this member of this run."""
    member = parse_header(block)
    if member.name != f"{run_id}.{suffix}":
        raise ValueError(f"member {shown(member.name)} where {run_id}.{suffix} is expected")
    return member


def _octal(block: bytes, begin: int, end: int, what: str) -> int:
    match = _OCTAL.fullmatch(block[begin:end])
    if match is None:
        raise ValueError(f"{what} of a tar header is {shown(block[begin:end])}, no octal number")
    return int(match[1], 8)
