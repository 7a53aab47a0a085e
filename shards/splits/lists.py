"""Lists of subjects as people keep them: a text file for each part, or a table (participant_id, part)."""

from __future__ import annotations

import csv
from pathlib import Path

from shards.errors import UsageError
from shards.splits.split import PARTS

_HEADINGS = frozenset({"participant_id", "subject"})
_COMMENT = "#"
_NO_PART = frozenset({"", "n/a"})


def read_list(path: Path) -> tuple[str, ...]:
    """Subjects of a text file, one a line, with or without `sub-`; sorted, without `sub-`.

    Empty lines and lines that begin with `#` do not count, nor does a first line `participant_id` or `Subject`.

    Raises
    ------
    UsageError
        Not readable, no subject in it, or more than one word on a line.
    """
    lines = [(number, line.strip()) for number, line in enumerate(_lines(path), 1)]
    found = [(number, line) for number, line in lines if line and not line.startswith(_COMMENT)]
    if found and found[0][1].lower() in _HEADINGS:
        found = found[1:]
    for number, line in found:
        if len(line.replace(",", " ").split()) > 1:
            raise UsageError(f"{path}: line {number} has more than one word; write one subject a line")
    if not found:
        raise UsageError(f"{path}: no subject in it; write one subject a line")
    return tuple(sorted({_label(line) for _, line in found}))


def read_parts(path: Path) -> dict[str, tuple[str, ...]]:
    """Parts and their subjects from a tab-separated table with the columns participant_id and part.

    Raises
    ------
    UsageError
        Not readable, a column is missing, a part is none of train, val and test, or a subject stands twice.
    """
    rows = csv.DictReader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = {"participant_id", "part"} - set(rows.fieldnames or ())
    if missing:
        raise UsageError(f"{path}: no column {' and '.join(sorted(missing))}; a table of participant_id and part")
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    seen: set[str] = set()
    for number, row in enumerate(rows, 2):
        who, part = _label((row["participant_id"] or "").strip()), (row["part"] or "").strip()
        if not who or who in seen:
            raise UsageError(f"{path}: line {number}: {'stands twice: ' + who if who else 'no participant_id'}")
        seen.add(who)
        if part not in (*PARTS, *_NO_PART):
            raise UsageError(f"{path}: line {number}: part {part!r}; allowed are {', '.join(PARTS)} and n/a")
        if part in PARTS:
            parts[part].append(who)
    return {part: tuple(sorted(names)) for part, names in parts.items()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{path}: {reason}; give a text file of subjects") from None


def _label(text: str) -> str:
    return text.removeprefix("sub-")
