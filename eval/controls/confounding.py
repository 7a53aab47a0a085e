"""What is not the brain but goes with the target: motion, data quality, site, age, sex.

A model that is right about the target may be so because of a confound that goes with both. Three questions are
asked of the scored subjects: what goes with the target and with our output, what is left of the correlation of every
model's output with the target once confounds are taken out of both, and whether a model is right at every site and
at every level of motion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.cohort import Cohort, confound_features
from eval.context import Context
from eval.controls.association import UNDEFINED, Association, Correlation, associate, partial_correlation
from eval.controls.groups import GroupScore, group_scores, subgroups
from eval.scoring.metrics import Floats, decide, headline, probabilities, score
from eval.stages import Stage
from eval.subjects import OURS, Predictions, Scored
from eval.targets import Target
from shards.format import config_hash
from shards.json_text import strict_json

RESULT, GROUPS = "confounding.json", "groups.tsv"
MOTION = "mean FD (mm)"
RUN_FIELDS = {MOTION: "mean_fd_mm", "median tSNR": "tsnr_median"}
"""Confounds that `confound_features` takes from runs.tsv, and their fields."""
CONFOUND_MODEL = "confounds"
"""Key of the baseline that sees confounds alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One confound among the scored subjects.

    Attributes
    ----------
    name : str
        With its unit.
    num_subjects : int
        Who has it.
    target, output, error : Association
        With the target; with our output (the predicted class of several); with what our model gets wrong: target
        minus prediction, for two classes with probabilities, and for more the probability that is missing from the
        right class.
    partial : Correlation
        Spearman correlation of our output with the target given this confound.
    """

    name: str
    num_subjects: int
    target: Association
    output: Association
    error: Association
    partial: Correlation


@dataclass(frozen=True, kw_only=True, slots=True)
class Adjusted:
    """Correlation of a model's output with the target, as it is and given all confounds.

    For more than two classes it is the mean over classes of the correlation of the probability of a class with being
    in it; these means have no interval.
    """

    model: str
    label: str
    pearson: Correlation
    partial_pearson: Correlation
    spearman: Correlation
    partial_spearman: Correlation


@dataclass(frozen=True, kw_only=True)
class Confounding:
    """Everything that was asked about confounds.

    Attributes
    ----------
    num_subjects : int
        Scored.
    names : tuple of str
        Confounds that are taken out; empty where none varies.
    measures : tuple of Measure
        One a confound.
    adjusted : tuple of Adjusted
        One a model, in the order of the table.
    groups : tuple of GroupScore
        Models by site and third of motion.
    from_confounds : float or None
        Headline metric of the baseline that sees nothing but confounds; None where it was not fitted.
    reference : str or None
        Key of the baseline with the best headline metric; None where no baseline was scored.
    """

    num_subjects: int
    names: tuple[str, ...]
    measures: tuple[Measure, ...]
    adjusted: tuple[Adjusted, ...]
    groups: tuple[GroupScore, ...]
    from_confounds: float | None
    reference: str | None


def confounding(context: Context, scored: Sequence[Scored], num_resamples: int = 1000) -> Confounding:
    """Ask what confounds have to do with the outputs.

    Stage `confounding`: `confounding.json` (all of it) and `groups.tsv` (models by site and third of motion).

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`; every rank calls this.
    scored : sequence of Scored
        Ours and whatever it is compared with, on the same subjects.
    num_resamples : int
        Behind each interval of a group's score.
    """
    outputs = {each.model.key: each.predictions.output.tolist() for each in scored}
    truth = scored[0].predictions.y_true.tolist()
    stage = context.stage(
        "confounding",
        subset=context.config.subset,
        seed=context.config.seed,
        num_resamples=num_resamples,
        scored=config_hash({"outputs": outputs, "truth": truth}),
        cohort=config_hash({role: dict(values) for role, values in context.cohort.values.items()}),
    )

    def compute() -> Confounding:
        return ask(context.cohort, context.target, scored, num_resamples, context.config.seed)

    if context.ranks.first(stage.record) is None:
        found = context.ranks.first(compute)
        stage.finish({RESULT: strict_json(asdict(found)) + "\n", GROUPS: _group_table(found, context.target)})
    return _read(stage)


def ask(cohort: Cohort, target: Target, scored: Sequence[Scored], num_resamples: int, seed: int) -> Confounding:
    """`confounding` without its stage."""
    ours = next(each for each in scored if each.model.key == OURS).predictions
    subjects = ours.subjects
    features, names = confound_features(cohort, subjects, subjects)
    points = _headline_of_baselines(scored, target)
    return Confounding(
        num_subjects=len(subjects),
        names=tuple(names),
        measures=tuple(_measures(cohort, ours, target, features, names)),
        adjusted=tuple(_adjusted(each, target, features) for each in scored),
        groups=group_scores(
            scored,
            target,
            subgroups(cohort, subjects),
            families=cohort.family_names(subjects),
            num_resamples=num_resamples,
            seed=seed,
        ),
        from_confounds=points.get(CONFOUND_MODEL),
        reference=_best(points, target),
    )


def _headline_of_baselines(scored: Sequence[Scored], target: Target) -> dict[str, float]:
    """Headline metric of each baseline that has one."""
    key = headline(target.kind).key
    rows = {each.model.key: each.predictions for each in scored if each.model.role == "baseline"}
    points = {name: score(row.y_true, row.output, target.kind)[key] for name, row in rows.items()}
    return {name: value for name, value in points.items() if math.isfinite(value)}


def _best(points: Mapping[str, float], target: Target) -> str | None:
    if not points:
        return None
    sign = 1.0 if headline(target.kind).higher_is_better else -1.0
    return max(points, key=lambda name: sign * points[name])


def _measures(
    cohort: Cohort, ours: Predictions, target: Target, features: Floats, names: Sequence[str]
) -> list[Measure]:
    """Each confound that varies; the columns of a site's or sex's levels are one."""
    truth: npt.NDArray = ours.y_true
    output: npt.NDArray = ours.output[:, 0]
    if target.kind == "multiclass":
        truth, output = (np.array(target.levels)[x.astype(np.int64)] for x in (truth, decide(ours.output, target.kind)))
    found = []
    for name, columns in _by_confound(names).items():
        values = _values(cohort, ours.subjects, name)
        found.append(
            Measure(
                name=name,
                num_subjects=int(np.sum(np.isfinite(values) if values.dtype.kind == "f" else values != "")),
                target=associate(values, truth),
                output=associate(values, output),
                error=associate(values, error_of(ours, target)),
                partial=_correlation(ours, target, features[:, columns], ranked=True),
            )
        )
    return found


def error_of(predicted: Predictions, target: Target) -> Floats:
    """What a model gets wrong of each subject, (N,): see `Measure`."""
    if target.kind == "regression":
        return predicted.y_true - predicted.output[:, 0]
    chances = probabilities(predicted.output, target.kind)
    if target.kind == "binary":
        return predicted.y_true - chances[:, 1]
    return np.asarray(1.0 - chances[np.arange(len(chances)), predicted.y_true.astype(np.int64)])


def _adjusted(each: Scored, target: Target, features: Floats) -> Adjusted:
    nothing = features[:, :0]
    return Adjusted(
        model=each.model.key,
        label=each.model.label,
        pearson=_correlation(each.predictions, target, nothing, ranked=False),
        partial_pearson=_correlation(each.predictions, target, features, ranked=False),
        spearman=_correlation(each.predictions, target, nothing, ranked=True),
        partial_spearman=_correlation(each.predictions, target, features, ranked=True),
    )


def _correlation(predicted: Predictions, target: Target, given: Floats, *, ranked: bool) -> Correlation:
    if target.kind != "multiclass":
        return partial_correlation(predicted.output[:, 0], predicted.y_true, given, ranked=ranked)
    chances = probabilities(predicted.output, target.kind)
    levels = np.unique(predicted.y_true).astype(np.int64)
    found = [partial_correlation(chances[:, k], predicted.y_true == k, given, ranked=ranked).value for k in levels]
    if not np.isfinite(found).all():
        return UNDEFINED
    return Correlation(value=float(np.mean(found)), low=np.nan, high=np.nan, p=np.nan)


def _by_confound(names: Sequence[str]) -> dict[str, list[int]]:
    """Confound to its columns among those of `confound_features`, which names a level's column 'site X' or 'sex X'."""
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        role = name.split(" ", 1)[0]
        found.setdefault(role if role in ("site", "sex") else name, []).append(column)
    return found


def _values(cohort: Cohort, subjects: tuple[str, ...], name: str) -> npt.NDArray:
    """A confound of each subject as it is, nothing filled in: text ('' unknown) of site and sex, else a number."""
    import pandas as pd

    raw = cohort.values.get(name, {})
    if name in ("site", "sex"):
        return np.array([raw.get(subject, "") for subject in subjects])
    if name in RUN_FIELDS:
        return np.array([cohort.weighted(RUN_FIELDS[name], subject) for subject in subjects])
    if name == "number of frames":
        return np.array([float(cohort.num_frames(subject)) for subject in subjects])
    return np.asarray(pd.to_numeric(pd.Series([raw.get(subject, "") for subject in subjects]), errors="coerce"))


def _group_table(found: Confounding, target: Target) -> str:
    head = ("role", "group", "subjects", "model", headline(target.kind).key, "low", "high")
    lines = ["\t".join(head)]
    for row in found.groups:
        numbers = (f"{x:.9g}" if math.isfinite(x) else "n/a" for x in (row.value, row.low, row.high))
        lines.append("\t".join((row.role, row.name, str(row.num_subjects), row.model, *numbers)))
    return "\n".join(lines) + "\n"


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _read(stage: Stage) -> Confounding:
    found = json.loads((stage.folder / RESULT).read_text())
    measures = [
        Measure(
            **row
            | {name: Association(**_numbers(row[name])) for name in ("target", "output", "error")}
            | {"partial": Correlation(**_numbers(row["partial"]))}
        )
        for row in found["measures"]
    ]
    correlations = ("pearson", "partial_pearson", "spearman", "partial_spearman")
    adjusted = [
        Adjusted(**row | {name: Correlation(**_numbers(row[name])) for name in correlations})
        for row in found["adjusted"]
    ]
    return Confounding(
        num_subjects=found["num_subjects"],
        names=tuple(found["names"]),
        measures=tuple(measures),
        adjusted=tuple(adjusted),
        groups=tuple(GroupScore(**_numbers(row)) for row in found["groups"]),
        from_confounds=found["from_confounds"],
        reference=found["reference"],
    )
