"""`runs.tsv`: rows to text and back, each row checked by itself (`shards.tables` checks them together)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

from shards import cells, strict
from shards.errors import CorruptShardError
from shards.format import BLOCK, HASH, LABEL, MAX_FRAMES, SHARD_NAME, RunEntry, valid_run_id

_ROWS_AT_ONCE = 256
_COLUMNS = {field.name: field.type for field in fields(RunEntry)}


def runs_to_tsv(entries: Iterable[RunEntry]) -> str:
    """Return the text of `runs.tsv`; rows in order of `run_id`."""
    lines = ["\t".join(_COLUMNS)]
    for entry in sorted(entries, key=lambda entry: entry.run_id):
        lines.append("\t".join(cells.to_cell(getattr(entry, name)) for name in _COLUMNS))
    return "\n".join(lines) + "\n"


def runs_from_tsv(text: str | bytes, where: str) -> tuple[RunEntry, ...]:
    """Parse `runs.tsv`; each row is checked by itself (`shards.tables.check_runs` checks them together).

    Raises
    ------
    CorruptShardError
        With the line, unless it is not text at all.
    """
    try:
        lines = (text.decode("ascii") if isinstance(text, bytes) else text).split("\n")
    except UnicodeDecodeError as error:
        raise CorruptShardError(f"{where}: byte {error.start} is not ASCII; restore the file") from None
    if lines[0] != "\t".join(_COLUMNS) or lines[-1] != "":
        raise CorruptShardError(f"{where}: header or end of the table is damaged; restore the file")
    entries: list[RunEntry] = []
    last = ""
    for first in range(1, len(lines) - 1, _ROWS_AT_ONCE):
        block = _parse_rows(lines[first : min(first + _ROWS_AT_ONCE, len(lines) - 1)], where, first + 1)
        for number, entry in enumerate(block, start=first + 1):
            try:
                _check_entry(entry, last)
            except ValueError as error:
                raise CorruptShardError(f"{where}, line {number}: {error}; restore the file") from None
            last = entry.run_id
        entries += block
    return tuple(entries)


def _parse_rows(lines: list[str], where: str, first: int) -> list[RunEntry]:
    """Parse some lines column by column, which is faster than row by row as long as they stay in the cache."""
    width = len(_COLUMNS)
    for number, line in enumerate(lines, start=first):
        if line.count("\t") != width - 1:
            raise CorruptShardError(f"{where}, line {number}: not {width} cells; restore the file")
    row_cells = "\t".join(lines).split("\t")
    columns = []
    for position, (name, kind) in enumerate(_COLUMNS.items()):
        try:
            columns.append(_READ[str(kind)](row_cells[position::width]))
        except cells.CellError as error:
            raise CorruptShardError(f"{where}, line {first + error.row}: {name} is {error}; restore the file") from None
    return [RunEntry(**dict(zip(_COLUMNS, row, strict=True))) for row in zip(*columns, strict=True)]


def _check_entry(entry: RunEntry, last: str) -> None:
    if not valid_run_id(entry.run_id) or entry.run_id <= last:
        raise ValueError(f"run_id {strict.shown(entry.run_id)} is not valid, or not after {strict.shown(last)}")
    labels = (entry.session, entry.task, entry.run)
    if LABEL.fullmatch(entry.subject) is None or LABEL.fullmatch("".join(("x", *labels))) is None:
        raise ValueError(f"subject {strict.shown(entry.subject)} or one of {strict.shown(labels)} is not a label")
    if SHARD_NAME.fullmatch(entry.shard) is None or (entry.source_xxh3 and not HASH.fullmatch(entry.source_xxh3)):
        raise ValueError(f"shard {strict.shown(entry.shard)} or source_xxh3 {strict.shown(entry.source_xxh3)}")
    if not 1 <= entry.num_frames <= MAX_FRAMES or not entry.tr_s > 0:
        raise ValueError(f"num_frames {entry.num_frames} (allowed: 1 to {MAX_FRAMES}), tr_s {entry.tr_s}")
    if entry.lossless and not (entry.grid_slope > 0 and math.isfinite(entry.grid_inter)):
        raise ValueError(f"lossless with grid_slope {entry.grid_slope}, grid_inter {entry.grid_inter}")
    if (entry.offset | entry.num_bytes | entry.bold_offset) % BLOCK or entry.offset >= entry.bold_offset:
        raise ValueError("its members do not lie in blocks of 512 bytes")
    end = entry.bold_offset + entry.bold_bytes
    if not entry.bold_bytes or end + -end % BLOCK != entry.offset + entry.num_bytes:
        raise ValueError("member offsets lie outside the sample")


_READ: dict[str, Callable[[Sequence[str]], Sequence[Any]]] = {
    "str": cells.texts,
    "int": cells.integers,
    "float": cells.numbers,
    "bool": cells.flags,
}
