"""From what a person types to runs of a set."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from shards.errors import UsageError

if TYPE_CHECKING:
    from shards.reader import ShardSet

MOST_NAMED = 4
"""Names in a message."""


def find_run(shard_set: ShardSet, text: str) -> int:
    """Number of the run whose id is `text`, or else the only one that begins with it, or else that contains it.

    Raises
    ------
    UsageError
        There is none, or more than one; the message names the nearest.
    """
    ids = [entry.run_id for entry in shard_set.runs]
    beginning = [number for number, run_id in enumerate(ids) if run_id.startswith(text)]
    containing = [number for number, run_id in enumerate(ids) if text in run_id]
    exact = [number for number in beginning if ids[number] == text]
    for found in (exact, beginning, containing):
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{shard_set.location}: {text!r} fits {len(found):,} runs: "
                f"{_some([ids[number] for number in found])}; give more of the run id"
            )
    raise UsageError(f"{shard_set.location}: no run {text!r}; {nearest(text, ids)}")


def nearest(text: str, known: Iterable[str]) -> str:
    """The names that look most like `text`, in a sentence."""
    names = list(dict.fromkeys(known))
    alike = difflib.get_close_matches(text, names, MOST_NAMED, 0.5)
    return f"the nearest: {', '.join(alike)}" if alike else f"there are: {_some(names)}"


def _some(names: Collection[str]) -> str:
    shown = list(names)[:MOST_NAMED]
    more = f", ... ({len(names) - len(shown):,} more)" if len(names) > len(shown) else ""
    return (", ".join(shown) or "none") + more
