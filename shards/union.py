"""Several shard sets opened as one: cohorts that share grid, mask and dtype."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import MismatchError, UsageError
from shards.format import Manifest
from shards.reader import ShardSet
from shards.storage import Storage

if TYPE_CHECKING:
    from shards.storage.cache import CacheConfig


class ShardUnion(ShardSet):
    """Several shard sets that are read as one.

    Runs stand in the order of the sets; their ids, and their shards' names, begin with the name of
    their set (`abcd:sub-01_task-rest`).

    Parameters
    ----------
    locations
        Folders or URLs of the sets.
    cache
        As in `ShardSet`.
    subjects
        `shared`: a label means the same person in every set, so that nobody is in training by one set
        and in test by another. `distinct`: the same label in two sets is two people; labels then begin
        with the set's name.

    Attributes
    ----------
    set_of_run : ndarray of int, (run,)
        Number of the set that each run is from.

    Raises
    ------
    MismatchError
        The sets differ in grid, mask or dtype; the message names both hashes.
    """

    def __init__(
        self,
        locations: Sequence[str | Path],
        cache: CacheConfig | None = None,
        subjects: Literal["shared", "distinct"] = "shared",
    ) -> None:
        if not locations:
            raise UsageError("no shard sets given; name at least one folder")
        self._sets = [ShardSet(location, cache) for location in locations]
        self._arguments = (tuple(map(str, locations)), cache, subjects)
        self._subjects = subjects
        for other in self._sets[1:]:
            _check_pair(self._sets[0], other)
        self._labels = _labels([opened.manifest.name for opened in self._sets])
        named = dict(zip(self._labels, self._sets, strict=True))
        self._assemble(_UnionStorage(named), _joined(named))
        self.mask = self._sets[0].mask
        self.runs = tuple(
            replace(
                entry,
                run_id=f"{label}:{entry.run_id}",
                shard=f"{label}/{entry.shard}",
                subject=self._subject(label, entry.subject),
            )
            for label, opened in named.items()
            for entry in opened.runs
        )
        counts = [len(opened.runs) for opened in self._sets]
        self.set_of_run: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)

    def phenotype(self, column: str) -> dict[str, str]:
        """A column of the participants tables, joined; sets without the column add nothing.

        Raises
        ------
        UsageError
            No set has the column, or two disagree about a subject.
        """
        found: dict[str, str] = {}
        complaint = None
        for label, opened in zip(self._labels, self._sets, strict=True):
            try:
                values = opened.phenotype(column)
            except UsageError as error:
                complaint = complaint or error
                continue
            for who, value in values.items():
                subject = self._subject(label, who)
                if found.setdefault(subject, value) != value:
                    raise UsageError(
                        f"{column} of subject {who}: {found[subject]!r} in one set, {value!r} in {opened.location}; if "
                        "these are two people, open the sets with distinct subjects, else correct a table"
                    )
        if not found and complaint is not None:
            raise complaint
        return found

    @cached_property
    def _participants(self) -> dict[str, list[str]] | None:
        """The tables joined: a subject's row is filled up from the sets in order, `n/a` where none knows."""
        tables = [opened._participants for opened in self._sets]
        names = list(dict.fromkeys(name for table in tables if table for name in table))
        if not names:
            return None
        rows: dict[str, dict[str, str]] = {}
        for label, table in zip(self._labels, tables, strict=True):
            for number, who in enumerate(table["participant_id"] if table else ()):
                known = {name: column[number] for name, column in (table or {}).items()}
                subject = "sub-" + self._subject(label, who.removeprefix("sub-"))
                rows[subject] = known | rows.get(subject, {}) | {"participant_id": subject}
        return {name: [row.get(name, "n/a") for row in rows.values()] for name in names}

    def _path(self, name: str) -> str:
        label, _, rest = name.partition("/")
        return f"{self._sets[self._labels.index(label)].location}/{rest}"

    def _subject(self, label: str, subject: str) -> str:
        return subject if self._subjects == "shared" else f"{label}:{subject}"


class _UnionStorage:
    """The shards of several sets under `<name of the set>/<shard>`; tables are read by the sets themselves."""

    def __init__(self, sets: Mapping[str, ShardSet]) -> None:
        self.location = ", ".join(opened.location for opened in sets.values())
        self._storages: dict[str, Storage] = {label: opened.storage for label, opened in sets.items()}

    def read_file(self, name: str) -> bytes:
        label, _, rest = name.partition("/")
        return self._storages[label].read_file(rest)

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Nothing to do: every set has told its own storage."""

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        label, _, rest = name.partition("/")
        self._storages[label].read_into(rest, offset, room)

    def close(self) -> None:
        for storage in self._storages.values():
            storage.close()


def _check_pair(first: ShardSet, other: ShardSet) -> None:
    own, its = first.manifest, other.manifest
    if own.mask_hash != its.mask_hash:
        raise MismatchError(
            f"{other.location}: grid and mask {its.mask_hash}, {first.location} has {own.mask_hash}; ingest one of "
            "them anew with --mask of the other (and --resample if the grids differ)"
        )
    if own.dtype != its.dtype:
        raise MismatchError(
            f"{other.location}: dtype {its.dtype}, {first.location} has {own.dtype}; ingest one of them anew"
        )
    if own.set_hash == its.set_hash:
        raise UsageError(f"{other.location}: the same set as {first.location}; name it once, and weigh it instead")


def _labels(names: list[str]) -> list[str]:
    """Names of the sets, numbered where two are the same."""
    total, seen = Counter(names), Counter[str]()
    labels = []
    for name in names:
        seen[name] += 1
        labels.append(name if total[name] == 1 else f"{name}-{seen[name]}")
    return labels


def _joined(sets: Mapping[str, ShardSet]) -> Manifest:
    """One manifest for all: its set_hash changes with any of theirs."""
    parts = {label: opened.manifest for label, opened in sets.items()}
    subjects = {entry.subject for opened in sets.values() for entry in opened.runs}
    return replace(
        next(iter(parts.values())),
        name="+".join(parts),
        shards=tuple(
            replace(shard, name=f"{label}/{shard.name}") for label, part in parts.items() for shard in part.shards
        ),
        num_runs=sum(part.num_runs for part in parts.values()),
        num_subjects=len(subjects),
        num_frames=sum(part.num_frames for part in parts.values()),
        tables={},
    )


def open_sets(
    locations: Sequence[str | Path],
    cache: CacheConfig | None = None,
    subjects: Literal["shared", "distinct"] = "shared",
) -> ShardSet:
    """One set as it is, several as a union; raises what `ShardSet` and `ShardUnion` raise."""
    return ShardSet(locations[0], cache) if len(locations) == 1 else ShardUnion(locations, cache, subjects)
