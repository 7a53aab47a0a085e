"""What a layout is: a module with a pattern and three functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ingest.layouts.tree import Tree
from ingest.record import RunRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The runs of a tree in one layout."""

    records: tuple[RunRecord, ...] = ()
    """Every version of every run, in no promised order."""
    notes: tuple[str, ...] = ()
    """What looks like a run and was left out, and why; one line each."""


class Layout(Protocol):
    """A module of this package that knows one organisation of folders."""

    PATTERN: str
    """Where the runs lie, for people."""

    def find_runs(self, tree: Tree) -> Found:
        """Every run, in every space and every version that there is."""

    def settle(self, records: Sequence[RunRecord]) -> Found:
        """Of the runs wanted, one version each, and what was decided.

        Raises
        ------
        UsageError
            The versions are too different for a choice that was not asked for.
        """

    def explain(self, tree: Tree) -> str:
        """Why a tree that looks like this layout has no run to offer; empty if it does not look like it."""
