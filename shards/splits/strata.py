"""Columns of participants.tsv as strata and groups: which there are, and measures cut into quantile bins."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shards.errors import UsageError
from shards.reader import ShardSet

logger = logging.getLogger(__name__)

FAMILY_COLUMNS = ("family", "family_id", "Pedigree_ID", "rel_family_id", "Family_ID")
"""Where families stand, the first found counts. HCP's Pedigree_ID goes before its Family_ID, which is narrower."""
MISSING_VALUE = "n/a"
MAX_LEVELS = 20
DEFAULT_BINS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Strata:
    """What a split is balanced by.

    Attributes
    ----------
    values
        Subject to its values, one for each column; a missing one is `n/a`.
    words
        The columns and their bins as a reader sees them: `group, age in 4 quantile bins`; None without columns.
    """

    values: dict[str, tuple[str, ...]]
    words: str | None

    @property
    def names(self) -> dict[str, str]:
        """Subject to the name of its stratum."""
        return stratum_names(self.values)


def stratum_names(values: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Subject to the name of its stratum: its values, joined."""
    return {subject: ", ".join(parts) for subject, parts in values.items()}


def read_strata(shard_set: ShardSet, columns: Sequence[str], subjects: Iterable[str]) -> Strata:
    """Strata from columns of participants.tsv.

    Parameters
    ----------
    shard_set
        Whose participants table to read.
    columns
        `site`: its values; a column of numbers with more than 20 different ones is cut into 4 quantile bins.
        `age:6`: six quantile bins. `site:each`: its values, however many numbers they are.
    subjects
        Those to split; the quantiles are theirs.

    Raises
    ------
    UsageError
        No such column, bins of something that is no number, or a column named twice.
    """
    names = sorted(set(subjects))
    read = [_read_column(shard_set, column, names) for column in columns]
    titles = [name for name, _, _ in read]
    if len(set(titles)) < len(titles):
        raise UsageError(f"--stratify {' '.join(columns)}: a column is named twice; name it once")
    values = {name: tuple(found.get(name, MISSING_VALUE) for _, _, found in read) for name in names} if read else {}
    for title, _, found in read:
        if len(found) < len(names):
            logger.info("%s: %d of %d subjects have no value", title, len(names) - len(found), len(names))
    return Strata(values=values, words=", ".join(words for _, words, _ in read) or None)


def quantile_bins(values: Mapping[str, str], num_bins: int, column: str) -> dict[str, str]:
    """Cut numbers into bins of about equal size, by rank; equal numbers share a bin.

    Returns
    -------
    dict
        Subject to `Q1/4` (lowest) ... `Q4/4`.

    Raises
    ------
    UsageError
        Fewer than two bins, or a value is no finite number; its subject is named.
    """
    if num_bins < 2:
        raise UsageError(f"--stratify {column}:{num_bins}: at least 2 bins are needed")
    numbers = {subject: _as_number(text) for subject, text in values.items()}
    odd = sorted(subject for subject, number in numbers.items() if not math.isfinite(number))
    if odd:
        raise UsageError(
            f"--stratify {column}:{num_bins}: {len(odd)} values are no numbers, first that of subject {odd[0]}; "
            f"correct participants.tsv or give {column} without bins"
        )
    ranked = sorted(numbers.values())
    bins = {}
    for subject, number in numbers.items():
        middle = (bisect_left(ranked, number) + bisect_right(ranked, number)) / 2
        bins[subject] = f"Q{int(middle * num_bins / len(ranked)) + 1}/{num_bins}"
    return bins


def family_column(shard_set: ShardSet) -> str | None:
    """The first column of participants.tsv that names families, or None."""
    return next((name for name in FAMILY_COLUMNS if name in shard_set.columns), None)


def _read_column(shard_set: ShardSet, column: str, subjects: Sequence[str]) -> tuple[str, str, dict[str, str]]:
    """Name of a column, its words, and subject to value or bin."""
    name, _, suffix = column.rpartition(":")
    if not name or not (suffix.isdecimal() or suffix == "each"):
        name, suffix = column, ""
    known = shard_set.phenotype(name)
    values = {subject: known[subject] for subject in subjects if subject in known}
    levels = set(values.values())
    if not suffix and len(levels) > MAX_LEVELS and all(math.isfinite(_as_number(text)) for text in levels):
        suffix = str(DEFAULT_BINS)
        logger.info(
            "%s: %d different numbers, cut into %s quantile bins; %s:each keeps them", name, len(levels), suffix, name
        )
    if suffix in ("", "each"):
        return name, name, values
    return name, f"{name} in {int(suffix)} quantile bins", quantile_bins(values, int(suffix), name)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
