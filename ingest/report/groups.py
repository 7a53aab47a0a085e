"""Failures that are alike, and runs with the same content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ingest.failures import Failure
from shards.format import RunEntry

_NAMES = re.compile(r"\S*[/_]\S*")
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureGroup:
    """Failures of one stage, class and remedy whose reasons differ in names and numbers at most."""

    stage: str
    kind: str
    remedy: str
    reason: str
    """That of the first."""
    same: bool
    """Whether it is that of all."""
    failures: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Runs whose sources have the same bytes."""

    rows: tuple[RunEntry, ...]

    @property
    def across_subjects(self) -> bool:
        """Whether they claim to be of different people."""
        return len({row.subject for row in self.rows}) > 1


def group_failures(failures: Sequence[Failure]) -> list[FailureGroup]:
    """Groups of failures, the largest first; within a group in order of run."""
    groups: dict[tuple[str, ...], list[Failure]] = {}
    for failure in sorted(failures, key=lambda failure: (failure.run_id, failure.source)):
        groups.setdefault(_alike(failure), []).append(failure)
    found = [
        FailureGroup(
            stage=members[0].stage,
            kind=members[0].kind,
            remedy=members[0].remedy,
            reason=members[0].reason,
            same=len({member.reason for member in members}) == 1,
            failures=tuple(members),
        )
        for members in groups.values()
    ]
    return sorted(found, key=lambda group: (-len(group.failures), group.stage, group.reason))


def find_duplicates(rows: Sequence[RunEntry]) -> list[Duplicates]:
    """Runs with the same source content, in order of run; those of different subjects first."""
    by_content: dict[str, list[RunEntry]] = {}
    for row in rows:
        by_content.setdefault(row.source_xxh3, []).append(row)
    found = [Duplicates(rows=tuple(members)) for members in by_content.values() if len(members) > 1]
    return sorted(found, key=lambda twins: (not twins.across_subjects, twins.rows[0].run_id))


def _alike(failure: Failure) -> tuple[str, ...]:
    return failure.stage, failure.kind, failure.remedy, _NUMBERS.sub("#", _NAMES.sub("*", failure.reason))
