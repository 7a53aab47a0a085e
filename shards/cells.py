"""The cells of `runs.tsv`: values as text, and columns of text as values, strictly."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Sequence
from urllib.parse import quote, unquote

from shards.strict import MAX_INT

_INTEGER = re.compile(r"0|[1-9][0-9]{0,18}")
_NUMBER_LETTERS = frozenset("0123456789.eE+-na/")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class CellError(ValueError):
    """A cell of a column cannot be read; `row` counts from 0."""

    def __init__(self, row: int, cell: str, allowed: str) -> None:
        super().__init__(f"{reprlib.repr(cell)}, {allowed}")
        self.row = row


def texts(cells: Sequence[str]) -> list[str]:
    """Percent-decode a column of printable ASCII; equal cells share one object."""
    known: dict[str, str] = {}
    for row, cell in enumerate(cells):
        if cell not in known:
            if not (cell.isascii() and cell.isprintable()) or _BAD_ESCAPE.search(cell):
                raise CellError(row, cell, "allowed is printable ASCII with % escapes")
            known[cell] = unquote(cell, errors="surrogateescape") if "%" in cell else cell
    return [known[cell] for cell in cells]


def integers(cells: Sequence[str]) -> list[int]:
    """Read a column of whole numbers from 0, written as Python writes them (no sign, space or leading 0)."""
    try:
        values = list(map(int, cells))
        if list(map(str, values)) == list(cells) and min(values, default=0) >= 0 and max(values, default=0) <= MAX_INT:
            return values
    except ValueError:
        pass  # the next line names the cell
    row = next(row for row, cell in enumerate(cells) if _INTEGER.fullmatch(cell) is None or int(cell) > MAX_INT)
    raise CellError(row, cells[row], f"allowed are whole numbers from 0 to {MAX_INT}")


def numbers(cells: Sequence[str]) -> list[float]:
    """Read a column of finite decimal numbers; `n/a` is nan."""
    try:
        values = [math.nan if cell == "n/a" else float(cell) for cell in cells]
        if _NUMBER_LETTERS.issuperset("".join(cells)) and sum(map(math.isfinite, values)) + cells.count("n/a") == len(
            cells
        ):
            return values
    except ValueError:
        pass  # the next line names the cell
    row = next(row for row, cell in enumerate(cells) if cell != "n/a" and not _is_number(cell))
    raise CellError(row, cells[row], "allowed are finite decimal numbers and n/a")


def flags(cells: Sequence[str]) -> list[bool]:
    """Read a column of 0 and 1."""
    for row, cell in enumerate(cells):
        if cell not in ("0", "1"):
            raise CellError(row, cell, "allowed are 0 and 1")
    return [cell == "1" for cell in cells]


def to_cell(value: str | int | float | bool) -> str:
    """Return a value as `runs.tsv` has it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else repr(value)
    return quote(os.fsencode(value), safe=" /:;,.!@#$^&*()[]{}+=~'\"|<>?`\\") if isinstance(value, str) else str(value)


def _is_number(cell: str) -> bool:
    try:
        return _NUMBER_LETTERS.issuperset(cell) and math.isfinite(float(cell))
    except ValueError:
        return False
