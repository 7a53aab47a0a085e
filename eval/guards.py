"""Leakage: everything by which knowledge of the scored subjects could have reached the model, checked and told.

A check passes, fails, or cannot be decided. A failed one is an error before anything is scored; the others stand in
the report, those that cannot be decided with their reason.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.cohort import ROLES
from eval.context import Context
from eval.lineage import Ancestor, ancestors
from shards.errors import BoldstreamError, MismatchError
from shards.reader import ShardSet
from shards.splits import PARTS, Split, family_column
from shards.splits.designs import some_names
from shards.splits.fit import crossing_groups

log = logging.getLogger(__name__)

LEAVE_SITE_OUT = "leave-site-out"
SAME = 1e-6
"""Relative difference up to which recomputed statistics are the recorded ones."""
UNKNOWN, FOR_INFORMATION = "unknown: ", "for information: "
"""How the detail of a check begins that neither passed nor failed."""
NEW_SPLIT = "make a new split (split-fmri make) and train all phases with it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One way in which a result could be too good to be true.

    Attributes
    ----------
    name : str
        What holds if it passed, in words.
    passed : bool or None
        None: it cannot be decided, or is told for information; `detail` says which.
    detail : str
        What was looked at, and what was found.
    remedy : str
        What to do where it failed; else ''.
    """

    name: str
    passed: bool | None
    detail: str
    remedy: str = ""


def leakage(context: Context) -> tuple[Check, ...]:
    """Every check, on every rank; rank 0 makes them.

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`.

    Returns
    -------
    tuple of Check
        Passed ones included.
    """
    return context.ranks.first(lambda: tuple(_checks(context)))


def refuse_leaks(context: Context) -> tuple[Check, ...]:
    """The checks, if none failed; every rank calls this.

    Raises
    ------
    MismatchError
        The first that failed, in one line with its remedy, and how many more did.
    """
    checks = leakage(context)
    failed = [check for check in checks if check.passed is False]
    if failed:
        more = f" ({len(failed) - 1} more found)" if len(failed) > 1 else ""
        first = failed[0]
        raise MismatchError(f"{context.config.checkpoint}: leak: {first.detail}{more}; {first.remedy}")
    for check in checks if context.ranks.is_first else ():
        if check.passed is None and check.detail.startswith(UNKNOWN):
            log.warning("%s: %s", check.name, check.detail)
    return checks


def _checks(context: Context) -> Iterator[Check]:
    split, shard_set, run_config = context.split, context.shard_set, context.run_config
    yield subjects_apart(split)
    yield families_apart(split, shard_set, context.cohort.columns.get("site"))
    yield sites_apart(split, shard_set, context.cohort.columns.get("site"))
    yield content_apart(split, shard_set)
    yield pretraining(context.config.checkpoint, run_config, split)
    yield same_split(context.config.checkpoint, run_config, split)
    yield target_statistics(context)
    yield same_set(run_config, shard_set)


def subjects_apart(split: Split) -> Check:
    """No subject stands in two parts."""
    counts = Counter(subject for part in PARTS for subject in split.subjects(part))
    twice = sorted(subject for subject, count in counts.items() if count > 1)
    sizes = ", ".join(f"{len(split.subjects(part))} {part}" for part in PARTS)
    if twice:
        detail = f"{len(twice)} of {len(counts)} subjects stand in more than one part: {some_names(twice)}"
        return Check(name="Each subject is in one part", passed=False, detail=detail, remedy=NEW_SPLIT)
    detail = f"{len(counts)} subjects ({sizes}); all sessions and runs of a subject are in its part"
    return Check(name="Each subject is in one part", passed=True, detail=detail)


def families_apart(split: Split, shard_set: ShardSet, site: str | None) -> Check:
    """No family, or other group that the split's rule names, is divided between parts."""
    name = "No family is divided between parts"
    column = _family_column(split, shard_set, site)
    if column is None:
        detail = f"{UNKNOWN}participants.tsv has no column that names families; relatives may be in different parts"
        return Check(name=name, passed=None, detail=detail)
    if column not in shard_set.columns:
        detail = f"{UNKNOWN}the split was grouped by the column {column}, which the shard set does not have any more"
        return Check(name=name, passed=None, detail=detail)
    groups = shard_set.phenotype(column)
    crossing = crossing_groups(split, groups)
    if crossing:
        remedy = (
            f"make a new split with --group {column} (split-fmri) and train all phases with it, or rename the column "
            "in participants.tsv if it does not name relatives"
        )
        return Check(name=name, passed=False, detail=f"{_crossing(crossing)} of the column {column}", remedy=remedy)
    known = [subject for subject in split.part_of if subject in groups]
    detail = f"{len({groups[who] for who in known})} families of the column {column}, {len(known)} subjects with one"
    return Check(name=name, passed=True, detail=f"{detail}, {len(split.part_of) - len(known)} without")


def sites_apart(split: Split, shard_set: ShardSet, site: str | None) -> Check:
    """No site is divided, where the split's rule says so; else how many are, for information."""
    name = "Sites are divided only where the split means to"
    column = split.rule.get("site_column") or site
    if column is None or column not in shard_set.columns:
        known = "" if column is None else f"{column}: "
        return Check(name=name, passed=None, detail=f"{UNKNOWN}{known}no column of participants.tsv names sites")
    sites = shard_set.phenotype(column)
    left_out = split.rule.get("design") == LEAVE_SITE_OUT
    crossing = crossing_groups(split, sites)
    if left_out:  # training and validation may share sites
        crossing = {where: parts for where, parts in crossing.items() if "test" in parts}
    if crossing and (left_out or split.rule.get("group") == column):
        rule = LEAVE_SITE_OUT if left_out else f"grouped by {column}"
        return Check(name=name, passed=False, detail=f"the split's rule is {rule}, but {_crossing(crossing)}",
                     remedy=NEW_SPLIT)  # fmt: skip
    count = len({sites[who] for who in split.part_of if who in sites})
    if crossing:
        detail = (
            f"{FOR_INFORMATION}{len(crossing)} of {count} sites of the column {column} are in more than one part, as "
            "the split's rule allows; the scores do not tell how the model does at a site that it has not seen"
        )
        return Check(name=name, passed=None, detail=detail)
    return Check(name=name, passed=True, detail=f"{count} sites of the column {column}; none is in test and training")


def content_apart(split: Split, shard_set: ShardSet) -> Check:
    """No recording is in two parts under two names."""
    name = "No recording is in two parts under two names"
    part_of = split.part_of
    copies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    unknown = 0
    for entry in shard_set.runs:
        if entry.subject in part_of:
            if entry.source_xxh3 in ("", "n/a"):
                unknown += 1
            else:
                copies[entry.source_xxh3].append((part_of[entry.subject], entry.run_id))
    crossing = [sorted(found) for found in copies.values() if len({part for part, _ in found}) > 1]
    if crossing:
        (part, first), *others = min(crossing)
        other, second = next(pair for pair in others if pair[0] != part)
        detail = f"{len(crossing)} recordings are in two parts: {first} ({part}) has the bytes of {second} ({other})"
        remedy = "remove the copies from the source, ingest again, and train all phases"
        return Check(name=name, passed=False, detail=detail, remedy=remedy)
    if unknown:
        detail = f"{UNKNOWN}{unknown} runs have no hash of their source in runs.tsv; the others differ between parts"
        return Check(name=name, passed=None, detail=detail)
    return Check(name=name, passed=True, detail=f"{sum(map(len, copies.values()))} runs, told apart by their content")


def pretraining(folder: Path, run_config: Mapping[str, Any], split: Split) -> Check:
    """No run that the weights come from was trained or validated on this split's test subjects.

    Parameters
    ----------
    folder : Path
        A phase-3 run folder.
    run_config : mapping
        Its configuration.
    split : Split
        Whose test subjects must be unseen.
    """
    name = "Pre-training did not see the test subjects"
    found = ancestors(folder, run_config)
    if not found:
        return Check(name=name, passed=True, detail="the run started from random weights")
    for ancestor in found:
        seen = _seen(ancestor, split)
        if seen:
            detail = (
                f"{ancestor.folder}, which {folder} started from, was pre-trained with {len(seen)} of "
                f"{len(split.test)} test subjects: {some_names(seen)}"
            )
            remedy = "pre-train with a split that has these subjects in test, and train phase 3 from that"
            return Check(name=name, passed=False, detail=detail, remedy=remedy)
    last = found[-1]
    if last.folder is None:
        detail = f"{UNKNOWN}{last.named}, which the weights come from, cannot be looked at: {last.reason}"
        return Check(name=name, passed=None, detail=detail)
    told = ", ".join(f"{run.named} (phase {run.phase})" for run in found)
    detail = f"followed back to random weights through {told}: they saw none of the {len(split.test)} test subjects"
    elsewhere = [run.named for run in found if run.config.get("set_hash") != run_config.get("set_hash")]
    if elsewhere:
        detail = (
            f"{UNKNOWN}{', '.join(elsewhere)} was trained on another shard set; none of its subjects has the label of "
            "a test subject, but the same person may have another label there"
        )
    return Check(name=name, passed=None if elsewhere else True, detail=detail)


def same_split(folder: Path, run_config: Mapping[str, Any], split: Split) -> Check:
    """The split is the one that the weights were trained with."""
    from training.checkpoints.export import read_description

    name = "The split is the one of the training"
    recorded = {
        "model.json": read_description(folder).get("split_hash"),
        "config.json": run_config.get("split_hash"),
    }
    wrong = [where for where, found in recorded.items() if found != split.hash]
    if wrong:
        detail = f"{wrong[0]} has the split {recorded[wrong[0]]}, the subjects of split.json give {split.hash}"
        return Check(name=name, passed=False, detail=detail, remedy="restore the files of the run folder")
    detail = f"hash {split.hash}, recomputed from the subjects and equal in model.json, config.json and split.json"
    return Check(name=name, passed=True, detail=detail)


def target_statistics(context: Context) -> Check:
    """Levels, mean and SD of the target are those of the training subjects alone."""
    from training.finetuning.targets import learn_target

    name = "Target statistics come from the training subjects alone"
    target = context.target
    values = context.shard_set.phenotype(target.column)
    remedy = "restore participants.tsv as it was in training, or train phase 3 again"

    def learned(subjects: tuple[str, ...]) -> tuple[tuple[str, ...], float, float]:
        present = [subject for subject in subjects if subject in context.cohort.runs]
        found = learn_target(target.column, values, present, target.kind)
        return found.levels, _number(found.mean), _number(found.std)

    recorded = (target.levels, target.mean, target.std)
    number = len(context.subjects("train"))
    try:
        recomputed = learned(context.split.train)
    except BoldstreamError as error:
        return Check(name=name, passed=False, detail=f"they cannot be recomputed: {error}", remedy=remedy)
    if _equal(recorded, recomputed):
        detail = f"{_in_words(recomputed)}, recomputed from {number} training subjects"
        return Check(name=name, passed=True, detail=detail)
    everyone = tuple(subject for part in PARTS for subject in context.split.subjects(part))
    of_all = target.kind == "regression" and _equal(recorded, learned(everyone))
    detail = (
        f"target.json has {_in_words(recorded)}{', those of all subjects' if of_all else ''}; "
        f"the {number} training subjects give {_in_words(recomputed)}"
    )
    return Check(name=name, passed=False, detail=detail, remedy=remedy)


def same_set(run_config: Mapping[str, Any], shard_set: ShardSet) -> Check:
    """The shard set is the one of the training."""
    name, found = "The shard set is the one of the training", shard_set.manifest.set_hash
    if run_config.get("set_hash") != found:
        detail = f"trained on the shard set {run_config.get('set_hash')}, {shard_set.location} is {found}"
        return Check(name=name, passed=False, detail=detail, remedy="give the shard set of the training")
    return Check(name=name, passed=True, detail=f"hash {found}")


def _family_column(split: Split, shard_set: ShardSet, site: str | None) -> str | None:
    """The column that the split was grouped by, unless that is a site; else one that names families."""
    column = split.rule.get("group")
    return str(column) if column is not None and column not in (site, *ROLES["site"]) else family_column(shard_set)


def _crossing(crossing: Mapping[str, Mapping[str, list[str]]]) -> str:
    group, members = next(iter(crossing.items()))
    there = "; ".join(f"{part} has {some_names(members[part])}" for part in PARTS if part in members)
    more = f", and {len(crossing) - 1} more groups" if len(crossing) > 1 else ""
    return f"{group} is divided ({there}){more}"


def _seen(ancestor: Ancestor, split: Split) -> list[str]:
    """Test subjects that a run was trained or validated on."""
    if ancestor.split is None:
        return []
    return sorted({*ancestor.split.train, *ancestor.split.val}.intersection(split.test))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _equal(one: tuple[tuple[str, ...], float, float], other: tuple[tuple[str, ...], float, float]) -> bool:
    pairs = list(zip(one[1:], other[1:], strict=True))
    close = all(math.isclose(a, b, rel_tol=SAME, abs_tol=0) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    return one[0] == other[0] and close


def _in_words(found: tuple[tuple[str, ...], float, float]) -> str:
    levels, mean, std = found
    return f"levels {', '.join(levels)}" if levels else f"mean {mean:.6g} and SD {std:.6g}"
