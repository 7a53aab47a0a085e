"""Splits as small tables of text: who is where, and how even the parts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.splits.fit import largest_deviation
from shards.splits.split import PARTS, Split

_MAX_ROWS = 30


def one_split(split: Split) -> list[str]:
    """Lines of a table: parts by stratum, and the largest deviation from even shares."""
    sizes = {part: len(split.subjects(part)) for part in PARTS}
    everyone = max(1, sum(sizes.values()))
    strata = sorted({stratum for counts in split.counts.values() for stratum in counts})
    rows: list[tuple[str, ...]] = [("", *PARTS)]
    rows.append(("subjects", *(f"{sizes[part]} ({sizes[part] / everyone:.1%})" for part in PARTS)))
    if len(strata) < 2:
        return _aligned(rows)
    for stratum in strata[:_MAX_ROWS]:
        rows.append((stratum or "no stratum", *(str(split.counts[part].get(stratum, 0)) for part in PARTS)))
    lines = _aligned(rows)
    if len(strata) > _MAX_ROWS:
        lines.append(f"... and {len(strata) - _MAX_ROWS} more strata, in the file")
    worst = largest_deviation(split)
    where = f"{worst.part}, {worst.stratum or 'no stratum'}"
    return [*lines, f"largest deviation from even shares: {worst.subjects:+.1f} subjects ({where})"]


def several_splits(splits: Mapping[Path, Split]) -> list[str]:
    """Lines of a table: a split each, with its parts and its largest deviation."""
    rows: list[tuple[str, ...]] = [("", *PARTS, "largest deviation")]
    for path, split in splits.items():
        sizes = (str(len(split.subjects(part))) for part in PARTS)
        rows.append((path.stem, *sizes, f"{largest_deviation(split).subjects:+.1f}"))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], widths, strict=True))])
        for row in rows
    ]
