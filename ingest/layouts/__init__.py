"""Finding the runs: which layout a folder has, and which of its runs were asked for.

Every layout is a module that yields `ingest.record.RunRecord`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from ingest.layouts import bids, flat, table
from ingest.layouts.tree import Tree, list_tree
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError
from shards.format import MAX_RUN_ID, valid_run_id

_ABOUT_THE_DATASET = ("participants.tsv", "participants.json", "dataset_description.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which of the runs found are wanted; empty means all."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    """Glob patterns on the file name or on the path relative to the source folder."""
    subjects: Sequence[str] = ()
    tasks: Sequence[str] = ()
    space: str | None = None

    def wants(self, record: RunRecord, base: Path) -> bool:
        """Whether the filters let a run pass (space apart)."""
        texts = (record.source(base), record.bold.name)
        return (
            (not self.include or any(fnmatch(text, pattern) for text in texts for pattern in self.include))
            and not any(fnmatch(text, pattern) for text in texts for pattern in self.exclude)
            and (not self.subjects or record.subject in {name.removeprefix("sub-") for name in self.subjects})
            and (not self.tasks or record.task in {name.removeprefix("task-") for name in self.tasks})
        )


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
        `src` does not exist or is `out`, two files make one run id, or runs exist in several spaces and none
        was chosen.
    NothingMatchedError
        There are no runs, or none passes the filters; the message names what is there.
    """
    if not src.exists():
        raise UsageError(f"--src {src}: no such file or folder; check the path{_nearest_sibling(src)}")
    if src.resolve() == out.resolve():
        raise UsageError(f"--out {out} is the source itself; choose another folder for the shard set")
    if src.is_file() or layout == "table":
        if layout not in ("auto", "table") or src.is_dir():
            raise UsageError(f"--src {src} with --layout {layout}: a table is a file, the other layouts are folders")
        found, base, notes = table.find_runs(src), src.parent, [f"layout table: {src.name} is a file, a row a run"]
        layout = "table"
    else:
        tree = list_tree(src, out)
        base = src
        notes = [f"layout {layout}: {why}"]
        if layout == "auto":
            layout, notes = _detect(tree)
        found = bids.find_runs(tree) if layout == "bids" else flat.find_runs(tree)
        notes += _ignored(tree, found)
    if not found:
        raise NothingMatchedError(_nothing(src, layout, [] if layout == "table" else list(tree.files)))
    wanted = [record for record in found if selection.wants(record, base)]
    if not wanted:
        raise NothingMatchedError(_none_wanted(found, selection, base))
    if len(wanted) < len(found):
        notes.append(f"{len(found) - len(wanted)} of {len(found)} runs left out by the filters given")
    chosen, more = _choose_space(wanted, selection.space)
    records = sorted(chosen, key=lambda record: (record.run_id, record.bold))
    _chk_run_ids(records, base)
    return Scan(layout=layout, base=base, records=tuple(records), notes=(*notes, *more))


def _detect(tree: Tree) -> tuple[str, list[str]]:
    num_bids = sum(bids.is_bold(path) for path in tree.files)
    if num_bids:
        return "bids", [f"layout bids: {num_bids} files match {bids.PATTERN}"]
    if bids.looks_like_bids(tree):
        raise NothingMatchedError(
            f"{tree.root}: BIDS, but no preprocessed BOLD ({bids.PATTERN}); raw data, or fMRIPrep with --level "
            "minimal or resampling: give its derivatives, or take every NIfTI as it is with --layout flat"
        )
    return "flat", [f"layout flat: no BIDS derivatives ({bids.PATTERN}), so every NIfTI file counts as a run"]


def _ignored(tree: Tree, found: list[RunRecord]) -> list[str]:
    """One line on files that are part of no run."""
    used = {path for r in found for path in (r.bold, r.mask, r.confounds, r.sidecar) if path is not None}
    others = [path for path in tree.files if path not in used and path.name not in _ABOUT_THE_DATASET]
    kinds = Counter("".join(path.suffixes[-2:]) or path.name for path in others)
    lines = []
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
        lines.append(f"{sum(kinds.values())} other files not used ({listed}{', ...' if len(kinds) > 4 else ''})")
    if tree.num_hidden:
        lines.append(f"{tree.num_hidden} hidden NIfTI files not used")
    return lines


def _choose_space(records: list[RunRecord], space: str | None) -> tuple[list[RunRecord], list[str]]:
    labels = Counter(record.space for record in records)
    shown = ", ".join(f"{label or 'native (no space entity)'} ({count})" for label, count in sorted(labels.items()))
    if space is not None:
        chosen = [record for record in records if record.space == space or record.space.split(":")[0] == space]
        if not chosen:
            raise NothingMatchedError(f"--space {space}: no run is in it; there are {shown}")
        records_without = {record.run_id for record in records} - {record.run_id for record in chosen}
        notes = [f"{len(records_without)} runs left out: not in space {space}"] if records_without else []
        return chosen, notes
    several = Counter((record.run_id, record.space) for record in records)
    ids = Counter(run_id for run_id, _ in several)
    if any(count > 1 for count in ids.values()):
        raise UsageError(f"runs are there in several spaces: {shown}; choose one with --space")
    return records, []


def _chk_run_ids(records: list[RunRecord], base: Path) -> None:
    for one, two in pairwise(records):
        if one.run_id == two.run_id:
            raise UsageError(
                f"{one.source(base)} and {two.source(base)} would both be run {one.run_id}; leave one out with "
                "--exclude, choose with --space, or name the runs in a table (--src TABLE.tsv)"
            )
    for record in records:
        if not valid_run_id(record.run_id):
            raise UsageError(
                f"{record.source(base)}: run id {record.run_id!r}; allowed are letters, digits, - and _, at most "
                f"{MAX_RUN_ID} characters; rename the file or name the runs in a table (--src TABLE.tsv)"
            )


def _nothing(src: Path, layout: str, files: list[Path]) -> str:
    patterns = bids.PATTERN if layout == "bids" else flat.PATTERN
    if not files:
        return f"{src}: nothing to ingest, it holds no files; tried {bids.PATTERN} and {flat.PATTERN}"
    near = difflib.get_close_matches("sub-01_task-rest_desc-preproc_bold.nii.gz", [f.name for f in files], 3, 0.0)
    return f"{src}: none of {len(files)} files matches {patterns}; nearest are {', '.join(near)}"


def _none_wanted(found: list[RunRecord], selection: Selection, base: Path) -> str:
    subjects = ", ".join(sorted({record.subject for record in found})[:5])
    tasks = ", ".join(sorted({record.task for record in found if record.task})[:5]) or "none named"
    asked = [*selection.include, *selection.subjects, *selection.tasks, *selection.exclude]
    names = [text for record in found for text in (record.subject, record.task, record.source(base)) if text]
    near = difflib.get_close_matches(asked[0].removeprefix("sub-").removeprefix("task-"), sorted(set(names)), 3, 0.3)
    hint = f"; nearest to {asked[0]!r}: {', '.join(near)}" if near else ""
    return f"none of {len(found)} runs passes the filters; subjects there: {subjects}, tasks: {tasks}{hint}"


def _nearest_sibling(src: Path) -> str:
    if not src.parent.is_dir():
        return ""
    near = difflib.get_close_matches(src.name, [path.name for path in src.parent.iterdir()], 1)
    return f" (did you mean {src.parent / near[0]}?)" if near else ""
