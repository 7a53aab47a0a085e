"""Which of the runs found are wanted: filters, space, and run ids that are valid and unique."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from ingest.layouts.layout import Found
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError
from shards.format import MAX_RUN_ID, valid_run_id

NATIVE = "native"
"""What --space calls runs without a space entity."""
_MOST_COMPARED = 2000
"""Names that are looked through for the nearest: difflib needs some 20 microseconds for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which of the runs found are wanted; empty means all."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    """Glob patterns on the file name or on the path relative to the source folder."""
    subjects: Sequence[str] = ()
    tasks: Sequence[str] = ()
    space: str | None = None
    """With or without cohort and resolution; `native` for runs without a space entity."""

    def wants(self, record: RunRecord, base: Path) -> bool:
        """Whether the filters let a run pass (space apart)."""
        if self.subjects and record.subject not in {name.removeprefix("sub-") for name in self.subjects}:
            return False
        if self.tasks and record.task not in {name.removeprefix("task-") for name in self.tasks}:
            return False
        if not self.include and not self.exclude:
            return True
        texts = (record.source(base), record.bold.name)
        return (not self.include or _matches(texts, self.include)) and not _matches(texts, self.exclude)


def wanted(records: Sequence[RunRecord], selection: Selection, base: Path) -> Found:
    """The runs that pass the filters and are in the space asked for.

    Raises
    ------
    NothingMatchedError
        None passes, or none is in that space; the message names what is there.
    """
    passed = [record for record in records if selection.wants(record, base)]
    if not passed:
        raise NothingMatchedError(_none_passes(records, selection, base))
    notes = []
    if len(passed) < len(records):
        notes.append(f"{len(records) - len(passed)} of {len(records)} series left out by the filters given")
    if selection.space is None:
        return Found(records=tuple(passed), notes=tuple(notes))
    chosen = [record for record in passed if _is_in(record, selection.space)]
    if not chosen:
        raise NothingMatchedError(f"--space {selection.space}: no run is in it; there are {_spaces(passed)}")
    elsewhere = {record.run_id for record in passed} - {record.run_id for record in chosen}
    if elsewhere:
        notes.append(f"{len(elsewhere)} runs left out: not in space {selection.space}")
    return Found(records=tuple(chosen), notes=tuple(notes))


def chk_spaces(records: Sequence[RunRecord]) -> list[str]:
    """Refuse runs of several template spaces, or one run at several resolutions.

    Returns
    -------
    list of str
        A note if the resolutions differ between runs.

    Raises
    ------
    UsageError
        A choice is needed; the message names the spaces.
    """
    templates = {record.space.split(":")[0] for record in records}
    per_run = Counter(run_id for run_id, _ in {(record.run_id, record.space) for record in records})
    if len(templates) > 1 or any(count > 1 for count in per_run.values()):
        raise UsageError(f"runs are there in several spaces: {_spaces(records)}; choose one with --space")
    several = len({record.space for record in records}) > 1
    return [f"runs at several resolutions: {_spaces(records)}; one set has one grid"] if several else []


def chk_run_ids(records: Sequence[RunRecord], base: Path) -> None:
    """Refuse run ids that are not unique or not valid; `records` are in order of run_id.

    Raises
    ------
    UsageError
        Names the files.
    """
    for one, two in pairwise(records):
        if one.run_id == two.run_id:
            raise UsageError(
                f"{one.source(base)} and {two.source(base)} would both be run {one.run_id}; leave one out with "
                "--exclude, or name the runs in a table (--src TABLE.tsv)"
            )
    for record in records:
        if not valid_run_id(record.run_id):
            raise UsageError(
                f"{record.source(base)}: run id {record.run_id!r}; allowed are letters, digits, - and _, at most "
                f"{MAX_RUN_ID} characters; rename the file or name the runs in a table (--src TABLE.tsv)"
            )


def nearest(asked: str, names: Iterable[str], cutoff: float = 0.3) -> list[str]:
    """At most three of `names` that resemble `asked` most."""
    return difflib.get_close_matches(asked, sorted(set(names))[:_MOST_COMPARED], 3, cutoff)


def _matches(texts: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch(text, pattern) for text in texts for pattern in patterns)


def _is_in(record: RunRecord, space: str) -> bool:
    if space == NATIVE:
        return not record.space
    return space in (record.space, record.space.split(":")[0])


def _spaces(records: Sequence[RunRecord]) -> str:
    counts = Counter(record.space for record in records)
    return ", ".join(f"{label or f'{NATIVE} (no space entity)'} ({count})" for label, count in sorted(counts.items()))


def _none_passes(records: Sequence[RunRecord], selection: Selection, base: Path) -> str:
    subjects = ", ".join(sorted({record.subject for record in records})[:5])
    tasks = ", ".join(sorted({record.task for record in records if record.task})[:5]) or "none named"
    if selection.subjects:
        asked, there = selection.subjects[0], [record.subject for record in records]
    elif selection.tasks:
        asked, there = selection.tasks[0], [record.task for record in records]
    else:
        asked = [*selection.include, *selection.exclude][0]
        there = [record.source(base) for record in records[:_MOST_COMPARED]]
    near = nearest(asked.removeprefix("sub-").removeprefix("task-"), filter(None, there))
    hint = f"; nearest to {asked!r}: {', '.join(near)}" if near else ""
    return f"none of {len(records)} runs passes the filters; subjects there: {subjects}, tasks: {tasks}{hint}"
