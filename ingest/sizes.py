"""Sizes, counts and durations as people write them."""

from __future__ import annotations

import re

from shards.errors import UsageError

_FACTORS = {
    "": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def parse_size(text: str, flag: str) -> int:
    """Number of bytes in `text`: `512MB`, `1GiB`, `1.5G`, `2000000` (K, M, G, T are powers of 1000).

    Raises
    ------
    UsageError
        The text is not a size, or less than one byte; `flag` is named.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f"{flag} {text!r} is not a size; write for example 512MB, 1GiB or 1.5G")
    size = round(float(match[1]) * _FACTORS[(match[2] or "").lower()])
    if size < 1:
        raise UsageError(f"{flag} {text!r} is less than one byte; write for example 512MB, 1GiB or 1.5G")
    return size


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_size(num_bytes: float) -> str:
    """`num_bytes` for people, in powers of 1000: `1.3 GB`."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def format_duration(seconds: float) -> str:
    """`seconds` for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.3g} h"
