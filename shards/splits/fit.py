"""Whether a split fits a shard set: no family divided, subjects known, and how even the parts are."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import MismatchError
from shards.reader import ShardSet
from shards.splits.designs import some_names
from shards.splits.split import PARTS, Split
from shards.splits.strata import family_column

logger = logging.getLogger(__name__)

NO_GROUP = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a split and a shard set meet.

    Attributes
    ----------
    group
        Column that was checked, or None.
    unused
        Subjects of the set that are in no part: nothing trains or tests on them.
    absent
        Subjects of the split that the set does not have.
    """

    group: str | None
    unused: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """The stratum whose share of a part is furthest from that part's share of everyone.

    Attributes
    ----------
    subjects
        Counted minus proportional number of subjects.
    part, stratum
        Where.
    """

    subjects: float
    part: str
    stratum: str


def check_groups(split: Split, groups: Mapping[str, str], where: str, column: str) -> None:
    """Refuse a split that divides a group.

    Parameters
    ----------
    split
        Split to check.
    groups
        Subject to group; who has none is alone.
    where, column
        File of the split and column of the groups, for the message.

    Raises
    ------
    MismatchError
        Names the first group that crosses, its subjects, and how many more there are.
    """
    crossing = crossing_groups(split, groups)
    if crossing:
        group, members = next(iter(crossing.items()))
        there = "; ".join(f"{part} has {some_names(members[part])}" for part in PARTS if part in members)
        more = f" ({len(crossing) - 1} more groups cross)" if len(crossing) > 1 else ""
        raise MismatchError(
            f"{where}: divides {group} of the column {column}: {there}{more}; relatives give the test away, make the "
            "split anew with this column"
        )


def crossing_groups(split: Split, groups: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Groups with subjects in more than one part: group to part to subjects, sorted."""
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for subject, part in split.part_of.items():
        if subject in groups:
            members[groups[subject]][part].append(subject)
    return {group: dict(parts) for group, parts in sorted(members.items()) if len(parts) > 1}


def check_split(split: Split, shard_set: ShardSet, where: str, group: str | None = None) -> Fit:
    """Check that a split may be used with a shard set; say what is left unused.

    Parameters
    ----------
    split, shard_set
        The two.
    where
        File of the split, for messages.
    group
        Column whose groups must not cross. Default: the one of the split's rule, else a family column of the set.
        `none`: do not check. A split whose rule says that it was made without groups is warned about, not refused.

    Raises
    ------
    UsageError
        No such column.
    MismatchError
        No subject of the split is in the set, or a group crosses.
    """
    present = {entry.subject for entry in shard_set.runs}
    placed = split.part_of
    if not present & placed.keys():
        raise MismatchError(
            f"{where}: none of its {len(placed)} subjects is in the shard set; give the split of this set"
        )
    column = _column_to_check(split, shard_set, where, group)
    if column is not None:
        groups = shard_set.phenotype(column)
        if group is None and split.rule.get("group", "") is None:
            _warn_of_crossing(split, groups, where, column)
        else:
            check_groups(split, groups, where, column)
    fit = Fit(
        group=column, unused=tuple(sorted(present - placed.keys())), absent=tuple(sorted(placed.keys() - present))
    )
    for names, words in ((fit.unused, "of the shard set are in no part"), (fit.absent, "have no run in the shard set")):
        if names:
            logger.info("%s: %d subjects %s: %s", where, len(names), words, some_names(names))
    return fit


def largest_deviation(split: Split) -> Deviation:
    """How far the split is from proportional strata, from the counts in its file."""
    sizes = {part: sum(split.counts[part].values()) for part in PARTS}
    everyone = max(1, sum(sizes.values()))
    totals = Counter[str]()
    for counts in split.counts.values():
        totals.update(counts)
    deviations = [
        Deviation(
            subjects=split.counts[part].get(stratum, 0) - total * sizes[part] / everyone, part=part, stratum=stratum
        )
        for stratum, total in sorted(totals.items())
        for part in PARTS
    ]
    return max(deviations, key=lambda found: abs(found.subjects), default=Deviation(subjects=0, part="", stratum=""))


def _column_to_check(split: Split, shard_set: ShardSet, where: str, asked: str | None) -> str | None:
    if asked is not None:
        return None if asked == NO_GROUP else asked
    column = split.rule.get("group")
    if column is not None and column not in shard_set.columns:
        logger.warning("%s: grouped by %s, a column that the shard set does not have: not checked", where, column)
        return None
    return column or family_column(shard_set)


def _warn_of_crossing(split: Split, groups: Mapping[str, str], where: str, column: str) -> None:
    crossing = crossing_groups(split, groups)
    if crossing:
        logger.warning("%s: made without groups; it divides %d groups of column %s", where, len(crossing), column)
