"""One evaluation from start to end: checks, predictions, baselines, assessment."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.baselines.simple import Problem, all_baselines
from eval.checkpoint import check_shard_set, read_run_config
from eval.cohort import Cohort, open_cohort
from eval.config import ReportConfig
from eval.parcels.parcels import Parcels, atlas_parcels, geometric_parcels
from eval.scoring.assessment import Assessment, assess
from eval.scoring.metrics import Floats
from eval.subjects import OURS, Model, Predictions, gather_subjects, predictions
from eval.targets import Target
from shards.errors import MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import PARTS, Split

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

MOTION_GROUPS = ("lowest third", "middle third", "highest third")


@dataclass(frozen=True, kw_only=True)
class SplitPart:
    """Who is in a part of the split: subjects with a target, by class, site; families; those without."""

    name: str
    num_subjects: int
    num_without_target: int
    by_class: Mapping[str, int]
    by_site: Mapping[str, int]
    num_families: int | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that a report tells."""

    config: ReportConfig
    target: Target
    split: Split
    parts: tuple[SplitPart, ...]
    fitted_on: tuple[str, ...]
    set_hash: str
    set_name: str
    run_config: Mapping[str, Any]
    num_runs: int
    num_frames: int
    columns: Mapping[str, str]
    assessment: Assessment
    motion_correlation: tuple[float, float] | None
    """Spearman rho and p of our output with mean FD, where FD is known and there are two outputs to rank."""
    seconds: float


def evaluate(config: ReportConfig) -> Evaluation:
    """Score a phase-3 run beside the baselines.

    Parameters
    ----------
    config : ReportConfig
        What to score, and where.

    Raises
    ------
    UsageError
        The checkpoint, the shard set, the target column or the atlas cannot be used.
    MismatchError
        Checkpoint, split and shard set do not belong together.
    """
    began = time.monotonic()
    run_config = read_run_config(config.checkpoint)
    with ShardSet(config.shards) as shard_set:
        check_shard_set(run_config, shard_set, config.checkpoint)
        from training.checkpoints.export import load_model

        loaded = load_model(config.checkpoint)
        split, target = loaded.split, Target.from_json(loaded.target)
        cohort = open_cohort(shard_set, target.column, split.rule.get("group"))
        check_split(cohort, split)
        values = target.encode(shard_set.phenotype(target.column))
        scored = subjects_with_target(split, config.subset, values)
        parcels = geometric_parcels(shard_set) if config.atlas is None else atlas_parcels(shard_set, config.atlas)
        fitted_on = ("train", "val") if config.subset == "test" else ("train",)
        problem = Problem(
            cohort=cohort,
            target=target,
            y_fit={s: values[s] for part in fitted_on for s in split.subjects(part) if s in values},
            to_score=scored,
            threads=config.threads,
            seed=config.seed,
        )
        runs = sorted(run for subject in scored for run in cohort.runs[subject])
        ours = predict_ours(config, run_config, loaded.model, problem, runs, values)
        models = [*run_baselines(problem, parcels, values, config.subset), ours]
        log.info("intervals from %d resamples of %d subjects", config.bootstrap, len(scored))
        assessment = assess(
            models,
            target,
            families=cohort.family_names(scored),
            memberships=subgroups(cohort, scored),
            num_resamples=config.bootstrap,
            num_permutations=config.permutations,
            seed=config.seed,
        )
        return Evaluation(
            config=config,
            target=target,
            split=split,
            parts=tuple(describe_part(cohort, target, split, part, values) for part in PARTS),
            fitted_on=fitted_on,
            set_hash=shard_set.manifest.set_hash,
            set_name=shard_set.manifest.name,
            run_config=run_config,
            num_runs=len(runs),
            num_frames=sum(shard_set.runs[run].num_frames for run in runs),
            columns=dict(cohort.columns),
            assessment=assessment,
            motion_correlation=motion_correlation(cohort, ours[1], target),
            seconds=time.monotonic() - began,
        )


def predict_ours(
    config: ReportConfig,
    run_config: Mapping[str, Any],
    model: nn.Module,
    problem: Problem,
    runs: list[int],
    values: Mapping[str, float],
) -> tuple[Model, Predictions]:
    """Run the trained model over all windows of the subjects to score, each frame once."""
    from training.predict import predict_windows

    shard_set = problem.cohort.shard_set
    log.info("our model: %d runs of %d subjects", len(runs), len(problem.to_score))
    windows = predict_windows(model, shard_set, runs, run_config["window"], config.batch_size, config.threads)
    outputs = gather_subjects(windows, shard_set.runs, runs, problem.target.kind)
    described = Model(
        key=OURS,
        label="Our model",
        role="ours",
        sees=f"the 4-D signal in windows of {window_in_words(run_config['window'])}",
        note=f"preset {run_config.get('preset', 'unknown')}; checkpoint chosen on the validation subjects",
    )
    return described, predictions(OURS, config.subset, outputs, values)


def window_in_words(window: int | str) -> str:
    """'20' or 20 as '20 frames', '16s' as '16 s'."""
    text = str(window)
    return f"{text[:-1]} s" if text.endswith("s") else f"{text} frames"


def check_split(cohort: Cohort, split: Split) -> None:
    """Refuse a split of subjects that the shard set does not have.

    Raises
    ------
    MismatchError
        Names how many are missing, and the first.
    """
    wanted = [subject for part in PARTS for subject in split.subjects(part)]
    missing = sorted(subject for subject in wanted if subject not in cohort.runs)
    if missing:
        raise MismatchError(
            f"{cohort.shard_set.location}: {len(missing)} of {len(wanted)} subjects of the split have no run in it, "
            f"first {missing[0]}; give the shard set of the training"
        )


def subjects_with_target(split: Split, part: str, values: Mapping[str, float]) -> tuple[str, ...]:
    """Subjects of a part that can be scored, sorted.

    Raises
    ------
    UsageError
        There are none.
    """
    subjects = split.subjects(part)
    found = tuple(sorted(subject for subject in subjects if subject in values))
    if not found:
        raise UsageError(
            f"none of the {len(subjects)} {part} subjects of the split has a value of the target; "
            "add it to participants.tsv, or score the other part with --subset"
        )
    return found


def run_baselines(
    problem: Problem, parcels: Parcels, values: Mapping[str, float], subset: str
) -> list[tuple[Model, Predictions]]:
    """Fit each baseline and predict the subjects to score.

    Raises
    ------
    UsageError
        The subjects to fit on are all of one class.
    """
    if problem.target.kind != "regression" and len(set(problem.y_fit.values())) < 2:
        raise UsageError(
            f"the {len(problem.y_fit)} subjects to fit baselines on are all of one class; make another split"
        )
    models = []
    for baseline in all_baselines(problem.target.kind, parcels):
        log.info("baseline: %s", baseline.label)
        readout = baseline.fit_predict(problem)
        model = Model(key=baseline.key, label=baseline.label, role="baseline", sees=baseline.sees, note=readout.note)
        outputs = dict(zip(problem.to_score, readout.output, strict=True))
        models.append((model, predictions(baseline.key, subset, outputs, values)))
    return models


def subgroups(cohort: Cohort, subjects: tuple[str, ...]) -> dict[str, dict[str, list[int]]]:
    """Rows of `subjects` by site, and by third of mean framewise displacement, where these are known."""
    groups: dict[str, dict[str, list[int]]] = {}
    sites = cohort.values.get("site", {})
    levels = sorted({sites[subject] for subject in subjects if subject in sites})
    if len(levels) > 1:
        groups["site"] = {level: [i for i, s in enumerate(subjects) if sites.get(s) == level] for level in levels}
    motion = np.array([cohort.weighted("mean_fd_mm", subject) for subject in subjects])
    known = np.flatnonzero(np.isfinite(motion))
    if known.size >= 6 and np.ptp(motion[known]) > 0:
        ranked = known[np.argsort(motion[known], kind="stable")]
        groups["motion"] = {
            f"{name} (mean FD {motion[part].min():.2f} to {motion[part].max():.2f} mm)": sorted(part.tolist())
            for name, part in zip(MOTION_GROUPS, np.array_split(ranked, 3), strict=True)
        }
    return groups


def describe_part(cohort: Cohort, target: Target, split: Split, part: str, values: Mapping[str, float]) -> SplitPart:
    """Counts of a part of the split."""
    everyone = split.subjects(part)
    subjects = [subject for subject in everyone if subject in values]
    classes = Counter(target.levels[int(values[subject])] for subject in subjects if target.levels)
    sites = cohort.values.get("site", {})
    families = cohort.family_names(tuple(subjects))
    return SplitPart(
        name=part,
        num_subjects=len(subjects),
        num_without_target=len(everyone) - len(subjects),
        by_class={level: classes[level] for level in target.levels},
        by_site=dict(sorted(Counter(sites.get(subject, "unknown") for subject in subjects).items())) if sites else {},
        num_families=None if families is None else len({name for name in families if name}),
    )


def motion_correlation(cohort: Cohort, ours: Predictions, target: Target) -> tuple[float, float] | None:
    """Spearman rho and p of our output with mean framewise displacement; None where there is nothing to rank."""
    from scipy.stats import spearmanr

    motion: Floats = np.array([cohort.weighted("mean_fd_mm", subject) for subject in ours.subjects])
    known = np.isfinite(motion)
    output = ours.output[known, 0]
    if target.kind == "multiclass" or known.sum() < 4 or np.ptp(motion[known]) == 0 or np.ptp(output) == 0:
        return None
    rho, p = spearmanr(motion[known], output)
    return float(rho), float(p)
