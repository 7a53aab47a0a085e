"""Finding the runs: which layout a folder has, and which of its runs were asked for.

Every layout is a module that yields `ingest.record.RunRecord`: `bids`, `hcp`, `abcd`, `ukb`, `flat` and `table`.
Each has the tree that it expects in its docstring.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ingest.layouts import table
from ingest.layouts.detection import FOLDER_LAYOUTS, find_in_folder
from ingest.layouts.layout import Found
from ingest.layouts.selection import Selection, chk_run_ids, chk_spaces, wanted
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError

__all__ = ["Scan", "Selection", "scan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """The runs of a source, in order of run_id."""

    layout: str
    base: Path
    """The folder that sources are named relative to."""
    records: tuple[RunRecord, ...]
    notes: tuple[str, ...]
    """What was recognised and why, and what was left out and why; one line each."""


def scan(src: Path, out: Path, layout: str, selection: Selection, why: str = "as --layout says") -> Scan:
    """Recognise the layout of `src` (or take `layout`, for the reason `why`) and list the runs wanted.

    Raises
    ------
    UsageError
        `src` does not exist or is `out`, two files make one run id, or runs exist in several spaces or kinds and
        none was chosen.
    NothingMatchedError
        There are no runs, or none passes the filters; the message names what is there.
    """
    _chk_exists(src)
    if os.path.realpath(src) == os.path.realpath(out):  # resolve() raises at a loop of links
        raise UsageError(f"--out {out} is the source itself; choose another folder for the shard set")
    if src.is_file() or layout == "table":
        if layout not in ("auto", "table") or src.is_dir():
            raise UsageError(f"--src {src} with --layout {layout}: a table is a file, the other layouts are folders")
        layout, base, found = "table", src.parent, _in_table(src)
    else:
        base = src
        layout, found = find_in_folder(src, out, layout, why)
    passed = wanted(found.records, selection, base)
    settled = FOLDER_LAYOUTS[layout].settle(passed.records) if layout != "table" else replace(passed, notes=())
    records = sorted(settled.records, key=lambda record: (record.run_id, record.bold))
    resolutions = chk_spaces(records)
    chk_run_ids(records, base)
    notes = (*found.notes, *passed.notes, *settled.notes, *resolutions)
    return Scan(layout=layout, base=base, records=tuple(records), notes=notes)


def _in_table(src: Path) -> Found:
    records = table.find_runs(src)
    if not records:
        raise NothingMatchedError(f"{src}: no rows below the header; add one for each run")
    return Found(records=tuple(records), notes=(f"layout table: {src.name} is a file, a row a run",))


def _chk_exists(src: Path) -> None:
    try:
        src.stat()
    except PermissionError:
        raise UsageError(f"--src {src}: permission denied; ask its owner, or correct its permissions") from None
    except OSError:  # not there, a link to nowhere or to itself, a name that is too long
        raise UsageError(f"--src {src}: no such file or folder; check the path{_nearest_sibling(src)}") from None


def _nearest_sibling(src: Path) -> str:
    try:
        names = [path.name for path in src.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(src.name, names, 1)
    return f" (did you mean {src.parent / near[0]}?)" if near else ""
