"""Ways to split a cohort: once by fractions, k folds, sites left out, and fixed lists."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shards.errors import MismatchError, UsageError
from shards.splits.assign import check_fractions, divide, families, refuse_empty_parts
from shards.splits.split import PARTS, Split, compose_split
from shards.splits.strata import stratum_names

logger = logging.getLogger(__name__)

Groups = Mapping[str, str] | None
Strata = Mapping[str, tuple[str, ...]] | None


def make_split(
    subjects: Iterable[str],
    *,
    groups: Groups = None,
    strata: Strata = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    rule: Mapping[str, Any] | None = None,
) -> Split:
    """Divide subjects into train, validation and test, balanced by several columns at once.

    Parameters
    ----------
    subjects
        Labels; repeats count once.
    groups
        Subject to group (family); a group is never divided. Subjects without one are alone.
    fractions
        Of train, validation, test; they sum to 1.
    seed
        Another seed, another split.
    rule
        Words to store with it, such as the names of the columns.
    strata
        Subject to its values, one for each column; balanced are each column and each pair of columns.

    Raises
    ------
    UsageError
        The fractions do not sum to 1, or a part with a positive fraction gets no subject.
    """
    check_fractions(fractions)
    names = sorted(set(subjects))
    parts = divide(names, fractions, groups=groups, strata=strata, seed=seed)
    refuse_empty_parts(parts, fractions, len(families(names, groups)))
    words = {"design": "fractions", "fractions": list(fractions)} | dict(rule or {})
    return compose_split(parts, stratum_names(strata or {}), seed=seed, rule=words)


def make_folds(
    subjects: Iterable[str],
    num_folds: int,
    *,
    groups: Groups = None,
    strata: Strata = None,
    val_fraction: float = 0.15,
    seed: int = 0,
    rule: Mapping[str, Any] | None = None,
) -> tuple[Split, ...]:
    """K splits whose test parts cover every subject exactly once.

    Parameters
    ----------
    subjects, groups, strata, seed, rule
        As for `make_split`.
    num_folds
        K, at least 2.
    val_fraction
        Share of validation among the subjects that a fold does not test; 0 for no validation part.

    Raises
    ------
    UsageError
        K does not fit the number of families, or a part gets no subject.
    """
    names = sorted(set(subjects))
    num_families = len(families(names, groups))
    if not 2 <= num_folds <= num_families:
        raise UsageError(f"--k {num_folds}: allowed are 2 to {num_families}, the number of families")
    folds = divide(names, [1 / num_folds] * num_folds, groups=groups, strata=strata, seed=seed)
    splits = []
    for number, test in enumerate(folds, 1):
        rest = sorted(set(names).difference(test))
        words = {"design": f"fold {number} of {num_folds}", "val_fraction": val_fraction} | dict(rule or {})
        splits.append(_around(test, rest, groups, strata, val_fraction, seed, words))
    return tuple(splits)


def leave_sites_out(
    subjects: Iterable[str],
    sites: Mapping[str, str],
    test_sites: Sequence[str],
    *,
    groups: Groups = None,
    strata: Strata = None,
    val_fraction: float = 0.15,
    seed: int = 0,
    rule: Mapping[str, Any] | None = None,
) -> Split:
    """Test on all subjects of some sites, train and validate on the others.

    The test part is exactly the subjects of those sites. Whoever could carry knowledge of them into training is in
    no part: relatives of theirs at other sites, and subjects whose site is not known. How many these are stands in
    the rule under `left_out`, and in the log.

    Parameters
    ----------
    subjects, groups, strata, seed, rule
        As for `make_split`; groups and strata act on training and validation.
    sites
        Subject to site.
    test_sites
        Names of the sites to test on.
    val_fraction
        Share of validation among the other sites' subjects; 0 for no validation part.

    Raises
    ------
    UsageError
        No such site, or nobody is left for a part.
    """
    names = sorted(set(subjects))
    known = {sites[name] for name in names if name in sites}
    unknown = sorted(set(test_sites) - known)
    if unknown or not test_sites:
        raise UsageError(f"--site {', '.join(unknown)}: no subject is there; sites are {', '.join(sorted(known))}")
    test = [name for name in names if sites.get(name) in set(test_sites)]
    homeless = {name for name in names if name not in sites}
    tested = {(groups or {})[name] for name in test if name in (groups or {})}
    related = {name for name in names if (groups or {}).get(name) in tested}.difference(test) - homeless
    for count, why in ((len(homeless), "their site is not known"), (len(related), "relatives at the tested sites")):
        if count:
            logger.info("leave out %s: %d subjects are in no part: %s", ", ".join(test_sites), count, why)
    words = {"design": "leave-site-out", "sites": sorted(set(test_sites)), "val_fraction": val_fraction}
    left_out = {"site not known": len(homeless), "relatives at the tested sites": len(related)}
    rest = sorted(set(names) - homeless - related - set(test))
    return _around(test, rest, groups, strata, val_fraction, seed, words | {"left_out": left_out} | dict(rule or {}))


def leave_each_site_out(subjects: Iterable[str], sites: Mapping[str, str], **options: Any) -> dict[str, Split]:
    """One split a site, by `leave_sites_out` with the same options; site to split."""
    names = sorted(set(subjects))
    known = sorted({sites[name] for name in names if name in sites})
    if len(known) < 2:
        raise UsageError(f"the site column has {len(known)} site(s): at least 2 are needed to leave one out")
    return {site: leave_sites_out(names, sites, [site], **options) for site in known}


def fixed_split(
    lists: Mapping[str, Iterable[str]],
    subjects: Iterable[str],
    *,
    strata: Strata = None,
    allow_unknown: bool = False,
    rule: Mapping[str, Any] | None = None,
) -> Split:
    """A split from lists that somebody else made.

    Parameters
    ----------
    lists
        Part to subjects, without `sub-`. Subjects of the set that no list has are in no part.
    subjects
        Those that the shard set has.
    strata
        For the counts only.
    allow_unknown
        Leave out listed subjects that the set does not have, and say how many; refused otherwise, since a typo or
        another cohort's list looks the same.
    rule
        Words to store with it.

    Raises
    ------
    UsageError
        Nobody to train on, or a subject on two lists.
    MismatchError
        Unknown subjects; they are counted and the first named.
    """
    wanted = {part: set(lists.get(part, ())) for part in PARTS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(wanted[first] & wanted[second])
        if both:
            raise UsageError(f"{len(both)} subjects are on the lists of {first} and {second}, first {both[0]}")
    present = set(subjects)
    listed = set().union(*wanted.values())
    unknown = sorted(listed - present)
    if unknown and not allow_unknown:
        raise MismatchError(
            f"{len(unknown)} of {len(listed)} listed subjects are not in the shard set: {some_names(unknown)}; "
            "correct the lists, or leave these out with --allow-unknown"
        )
    if unknown:
        logger.info("%d listed subjects are not in the shard set and left out: %s", len(unknown), some_names(unknown))
    parts = [wanted[part] & present for part in PARTS]
    if not parts[0]:
        raise UsageError("the list of train names no subject of the shard set; training needs at least one")
    words = {"design": "lists", "unknown_left_out": len(unknown)} | dict(rule or {})
    return compose_split(parts, stratum_names(strata or {}), seed=0, rule=words)


def some_names(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _around(
    test: Sequence[str],
    rest: Sequence[str],
    groups: Groups,
    strata: Strata,
    val_fraction: float,
    seed: int,
    rule: Mapping[str, Any],
) -> Split:
    """The split with this test part, and training and validation from the rest."""
    if not 0 <= val_fraction < 1:
        raise UsageError(f"--val-fraction {val_fraction:g}: at least 0 and below 1")
    train, val = divide(rest, (1 - val_fraction, val_fraction), groups=groups, strata=strata, seed=seed)
    if not train or (val_fraction > 0 and not val):
        raise UsageError(
            f"{rule['design']}: {len(rest)} subjects in {len(families(rest, groups))} families remain for training "
            f"and validation at {val_fraction:g}; too few, change --val-fraction"
        )
    return compose_split((train, val, test), stratum_names(strata or {}), seed=seed, rule=rule)
