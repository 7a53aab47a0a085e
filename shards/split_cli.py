"""`split-fmri`: make the split of a shard set, or judge one.

Exit codes: 0 done or already there; 1 internal error; 2 usage; 5 the output cannot be written or is something else;
6 a file holds another split, a family crosses, or split and shard set do not belong together; 7 the shard set is
damaged or out of reach; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from tyro.conf import Positional, arg

from shards.errors import EXIT_INTERRUPTED, EXIT_OK, BoldstreamError, UsageError
from shards.flags import read_flags

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from shards.splits import Split

_DESCRIPTION = """Make the split of a shard set into train, validation and test subjects, or judge one.

Families are never divided; a split file is never replaced by another one. Train with it: train.py --split FILE

examples:
  split-fmri make shards/ --out split.json --stratify diagnosis site age:4
  split-fmri folds shards/ --out folds/ --k 5 --seeds 0 1 2
  split-fmri leave-site-out shards/ --site-column site --out sites/
  split-fmri lists shards/ --out split.json --train train.txt --val val.txt --test test.txt
  split-fmri check split.json shards/

exit codes: 0 done or already there, 1 internal error, 2 usage, 5 output unusable, 6 a file holds another split,
a family crosses or the set is another one, 7 shard set damaged or out of reach, 130 interrupted
"""


@dataclass(frozen=True, kw_only=True)
class _Cohort:
    """What all splits of a shard set need."""

    set: Annotated[Positional[str], arg(metavar="SET")]
    """Folder or URL of the shard set."""
    out: Path
    """Where to write."""
    stratify: Annotated[tuple[str, ...], arg(metavar="COL [COL ...]")] = ()
    """Columns to balance, also in pairs. Over 20 different numbers become 4 bins; age:6 makes 6, site:each none."""
    group: Annotated[str | None, arg(metavar="COL")] = None
    """Column whose groups are never divided; default: a family column if there is one; 'none' for none."""


@dataclass(frozen=True, kw_only=True)
class Make(_Cohort):
    """One split by fractions; --out is its file."""

    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, validation and test subjects."""
    seed: int = 0
    """Another seed, another split."""


@dataclass(frozen=True, kw_only=True)
class Folds(_Cohort):
    """K splits that test every subject once; --out is a folder."""

    k: int = 5
    """Number of folds."""
    val_fraction: float = 0.15
    """Share of validation among the subjects that a fold does not test."""
    seeds: tuple[int, ...] = (0,)
    """K folds for each seed."""


@dataclass(frozen=True, kw_only=True)
class LeaveSiteOut(_Cohort):
    """Test on sites that training never sees; --out is a folder, with one split for each site.

    Relatives of tested subjects at other sites, and subjects without a site, are in no part.
    """

    site_column: Annotated[str, arg(metavar="COL")]
    """Column of the sites."""
    site: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    """Only one split, which tests on these sites together."""
    val_fraction: float = 0.15
    """Share of validation among the other sites' subjects."""
    seed: int = 0
    """Another seed, another validation part."""


@dataclass(frozen=True, kw_only=True)
class Lists(_Cohort):
    """A split that somebody else made; --out is its file. Subjects on no list are in no part."""

    train: Annotated[Path | None, arg(metavar="FILE")] = None
    """Text file of training subjects, one a line, with or without sub-."""
    val: Annotated[Path | None, arg(metavar="FILE")] = None
    """The same for validation."""
    test: Annotated[Path | None, arg(metavar="FILE")] = None
    """The same for test."""
    table: Annotated[Path | None, arg(metavar="FILE")] = None
    """Instead of three files: a tab-separated table with the columns participant_id and part (train, val, test)."""
    allow_unknown: bool = False
    """Leave out listed subjects that the shard set does not have; refused otherwise."""

    def __post_init__(self) -> None:
        if (self.table is None) == (self.train is None) or (self.table is not None and (self.val or self.test)):
            raise UsageError("give either --table FILE, or --train FILE with --val FILE and --test FILE")


@dataclass(frozen=True, kw_only=True)
class Check:
    """Show a split; with a shard set, refuse it when it does not fit."""

    split: Annotated[Positional[Path], arg(metavar="SPLIT")]
    """Split file."""
    set: Annotated[Positional[str | None], arg(metavar="[SET]")] = None
    """Folder or URL of the shard set."""
    group: Annotated[str | None, arg(metavar="COL")] = None
    """Column whose groups must not cross; default: that of the split's rule, else a family column; 'none' for none."""


Verb = Make | Folds | LeaveSiteOut | Lists | Check
_VERBS: dict[str, type[Verb]] = {
    "make": Make, "folds": Folds, "leave-site-out": LeaveSiteOut, "lists": Lists, "check": Check,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run `split-fmri`; returns the exit code (see the module's first lines)."""
    import tyro

    parse = partial(
        tyro.extras.subcommand_cli_from_dict,
        _VERBS,
        prog="split-fmri",
        description=_DESCRIPTION,
        args=list(sys.argv[1:] if argv is None else argv),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        _run(read_flags(parse, "split-fmri"))
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; every file written is whole, run the same command again", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _run(config: Verb) -> None:
    import logging

    from shards.reader import ShardSet
    from shards.splits import publish_splits
    from shards.splits.table import one_split, several_splits

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(config, Check):
        _check(config)
        return
    with ShardSet(config.set) as shard_set:
        splits = _splits(config, shard_set)
    written = publish_splits(splits)
    for path, split in splits.items():
        state = "written" if path in written else "already there, unchanged"
        print(f"{path}: {state}, hash {split.hash}")
    for line in one_split(splits[config.out]) if config.out in splits else several_splits(splits):
        print(line)


def _check(config: Check) -> None:
    from shards.reader import ShardSet
    from shards.splits import check_split, load_split
    from shards.splits.table import one_split

    split = load_split(config.split)
    if config.set is not None:
        with ShardSet(config.set) as shard_set:
            fit = check_split(split, shard_set, str(config.split), config.group)
        grouped = f"no group of {fit.group} crosses" if fit.group else "groups not checked"
        print(f"fits {config.set}: {grouped}; {len(fit.unused)} subjects unused, {len(fit.absent)} absent")
    elif config.group is not None:
        raise UsageError(f"--group {config.group}: the column is one of a shard set; name the set after the split")
    print(f"{config.split}: hash {split.hash}, seed {split.seed}")
    for name, value in split.rule.items():
        print(f"  {name}: {value}")
    for line in one_split(split):
        print(line)


def _splits(config: Make | Folds | LeaveSiteOut | Lists, shard_set: ShardSet) -> dict[Path, Split]:
    """The splits asked for, by the path of each."""
    from shards import splits

    subjects = sorted({entry.subject for entry in shard_set.runs})
    strata = splits.read_strata(shard_set, config.stratify, subjects)
    group = splits.family_column(shard_set) if config.group is None else config.group
    group = None if group == "none" else group
    rule = {"group": group, "stratify": strata.words}
    if isinstance(config, Lists):
        split = splits.fixed_split(
            _lists(config), subjects, strata=strata.values, allow_unknown=config.allow_unknown, rule=rule
        )
        splits.check_split(split, shard_set, str(config.train or config.table), group or "none")
        return {config.out: split}
    groups = shard_set.phenotype(group) if group else {}
    options: dict[str, Any] = {"groups": groups, "strata": strata.values, "rule": rule}
    if group:
        alone = len(set(subjects) - groups.keys())
        print(f"families: column {group}; {alone} of {len(subjects)} subjects have none and count alone")
    if isinstance(config, Make):
        return {config.out: splits.make_split(subjects, fractions=config.fractions, seed=config.seed, **options)}
    options["val_fraction"] = config.val_fraction
    if isinstance(config, Folds):
        return {
            config.out / f"seed-{seed}_fold-{number}-of-{config.k}.json": split
            for seed in config.seeds
            for number, split in enumerate(splits.make_folds(subjects, config.k, seed=seed, **options), 1)
        }
    return _leave_out(config, shard_set.phenotype(config.site_column), subjects, options)


def _leave_out(
    config: LeaveSiteOut, sites: dict[str, str], subjects: list[str], options: dict[str, Any]
) -> dict[Path, Split]:
    from shards.splits import leave_each_site_out, leave_sites_out

    options["seed"] = config.seed
    options["rule"] |= {"site_column": config.site_column}
    if config.site:
        found = {"+".join(sorted(config.site)): leave_sites_out(subjects, sites, config.site, **options)}
    else:
        found = leave_each_site_out(subjects, sites, **options)
    return {config.out / f"leave-{quote(name, safe='+')}.json": split for name, split in found.items()}


def _lists(config: Lists) -> dict[str, tuple[str, ...]]:
    from shards.splits import read_list, read_parts

    if config.table is not None:
        return read_parts(config.table)
    given = {"train": config.train, "val": config.val, "test": config.test}
    return {part: read_list(path) for part, path in given.items() if path is not None}


if __name__ == "__main__":
    sys.exit(main())
