"""Which family goes to which part: pure functions of labels, groups, strata and a seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import xxhash

from shards.errors import UsageError
from shards.splits.split import PARTS

Label = tuple[tuple[int, str], ...]
"""What a subject counts for: () everyone, ((column, value),) a value, or a pair of values of two columns."""

_PAIR_WEIGHT = 5
"""Against 1 for everyone and for single values: cells of pairs are many and small, and would else be balanced last."""
_PASSES = 5


def divide(
    subjects: Iterable[str],
    shares: Sequence[float],
    *,
    groups: Mapping[str, str] | None = None,
    strata: Mapping[str, tuple[str, ...]] | None = None,
    seed: int = 0,
) -> list[list[str]]:
    """Divide subjects into parts of given shares; families stay whole.

    Every part should hold its share of everyone, of each value of each column, and of each pair of values.
    Families go one by one, those that weigh most first (chance decides among equals), to where the sum of
    squared deviations grows least; then each may move while that lowers the sum. Strata of one or two subjects
    cannot be divided by shares: their columns are still balanced one by one.

    Parameters
    ----------
    subjects
        Labels; their order does not matter.
    shares
        One for each part; they sum to 1. A share of 0 gets nobody.
    groups
        Subject to group (family). Subjects without one are alone.
    strata
        Subject to its values, one for each column.
    seed
        Another seed, another division.

    Returns
    -------
    list of list of str
        Sorted subjects of each part.
    """
    names = sorted(set(subjects))
    labels = {name: _labels((strata or {}).get(name, ())) for name in names}
    needs = {tuple(family): Counter(x for name in family for x in labels[name]) for family in families(names, groups)}
    units = sorted(needs, key=lambda f: (-sum(count * count for count in needs[f].values()), *_draw(f, seed)))
    totals = Counter(label for name in names for label in labels[name])
    excess = {part: {x: -share * n for x, n in totals.items()} for part, share in enumerate(shares) if share > 0}
    placed: dict[tuple[str, ...], int] = {}
    for _ in range(_PASSES):
        before = dict(placed)
        for unit in units:
            need, home = needs[unit], placed.get(unit, -1)
            if home >= 0:
                _add(excess[home], need, -1)
            placed[unit] = _cheapest(excess, need, shares, home)
            _add(excess[placed[unit]], need, 1)
        if placed == before:
            break
    return [sorted(name for unit, part in placed.items() if part == k for name in unit) for k in range(len(shares))]


def families(names: Iterable[str], groups: Mapping[str, str] | None) -> list[list[str]]:
    """Subjects that must stay together; who has no group is alone."""
    groups = groups or {}
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        members[("group", groups[name]) if name in groups else ("alone", name)].append(name)
    return list(members.values())


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse fractions that are none; NaN included."""
    if not (abs(sum(fractions) - 1) <= 1e-6 and min(fractions) >= 0 and fractions[0] > 0):
        raise UsageError(f"fractions {fractions}: three numbers >= 0 that sum to 1, the first > 0")


def refuse_empty_parts(parts: Sequence[Sequence[str]], fractions: Sequence[float], num_families: int) -> None:
    """Refuse a part that should have subjects and has none."""
    for part, fraction, members in zip(PARTS, fractions, parts, strict=True):
        if fraction > 0 and not members:
            raise UsageError(
                f"split of {sum(map(len, parts))} subjects in {num_families} families: {part} gets none at "
                f"{fraction:g}; add subjects or change the fractions"
            )


def _draw(family: Sequence[str], seed: int) -> tuple[int, str]:
    return xxhash.xxh3_64_intdigest(family[0].encode(), seed % 2**64), family[0]


def _labels(values: tuple[str, ...]) -> list[Label]:
    named = list(enumerate(values))
    return [(), *((one,) for one in named), *combinations(named, 2)]


def _cheapest(
    excess: Mapping[int, Mapping[Label, float]], need: Mapping[Label, int], shares: Sequence[float], home: int
) -> int:
    """The part whose deviations grow least; among equals the family's home, then the first."""
    return min(excess, key=lambda part: (_growth(excess[part], need) / shares[part], part != home))


def _growth(excess: Mapping[Label, float], need: Mapping[Label, int]) -> float:
    """How much a part's sum of squared deviations grows with a family; `excess` is subjects above the share."""
    return sum(
        (_PAIR_WEIGHT if len(label) == 2 else 1) * count * (2 * excess[label] + count) for label, count in need.items()
    )


def _add(excess: dict[Label, float], need: Mapping[Label, int], sign: int) -> None:
    for label, count in need.items():
        excess[label] += sign * count
