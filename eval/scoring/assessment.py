"""From predictions to judgement: every model on the same subjects and the same resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.scoring.bootstrap import Estimate, Ints, estimate, p_value, permutation_null, resample_counts
from eval.scoring.metrics import METRICS, Floats, headline, score
from eval.scoring.weighted import headline_of_labels, weighted_scores
from eval.subjects import OURS, Model, Predictions
from eval.targets import Target

REFERENCE = "fc"
"""Key of the baseline that the verdict is about."""
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line in the table.

    `advantage` is how much better *ours* is in the headline metric, positive when ours is better whatever
    the metric's direction; None for ours.
    """

    model: Model
    predictions: Predictions
    scores: Mapping[str, Estimate]
    advantage: Estimate | None
    p_value: float


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """Headline metric among some of the subjects (a site, a third of motion)."""

    role: str
    name: str
    num_subjects: int
    ours: Estimate
    reference: Estimate


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All rows, baselines first and ours last, and the permutation null of ours."""

    rows: tuple[Row, ...]
    null: Floats
    groups: tuple[GroupScore, ...]
    num_families: int | None
    num_resamples: int

    def row(self, key: str) -> Row:
        """The row of a model."""
        return next(row for row in self.rows if row.model.key == key)

    @property
    def ours(self) -> Row:
        """The row of the trained model."""
        return self.row(OURS)


def assess(
    models: Sequence[tuple[Model, Predictions]],
    target: Target,
    *,
    families: Sequence[str] | None,
    memberships: Mapping[str, Mapping[str, Sequence[int]]],
    num_resamples: int,
    num_permutations: int,
    seed: int,
) -> Assessment:
    """Score all models.

    Parameters
    ----------
    models : sequence of (Model, Predictions)
        Baselines first, ours (key 'ours') last; all on the same subjects.
    target : Target
        Kind, and the training mean that R2 refers to.
    families : sequence of str or None
        Family of each subject, '' where unknown.
    memberships : mapping of str to mapping
        Role ('site', ...) to group name to the rows that belong to it.
    num_resamples, num_permutations, seed : int
        See `eval.config.ReportConfig`.

    Raises
    ------
    ValueError
        The models were not asked about the same subjects.
    """
    first = models[0][1]
    for model, rows in models:
        if rows.subjects != first.subjects or not np.array_equal(rows.y_true, first.y_true):
            raise ValueError(f"{model.key} was scored on other subjects than {models[0][0].key}")
    counts = _resamples(first, target, families, num_resamples, seed)
    resampled = {model.key: _resampled(rows, target, counts) for model, rows in models}
    points = {model.key: _point(rows, target) for model, rows in models}
    nulls = {
        model.key: permutation_null(
            rows.y_true,
            headline_of_labels(rows.output, target.kind),
            num_permutations=num_permutations,
            seed=seed,
            families=families,
        )
        for model, rows in models
    }
    metric = headline(target.kind)
    sign = 1.0 if metric.higher_is_better else -1.0
    lines = []
    for model, predicted in models:
        scores = {key: estimate(value, resampled[model.key][key]) for key, value in points[model.key].items()}
        advantage = estimate(
            sign * (points[OURS][metric.key] - points[model.key][metric.key]),
            sign * (resampled[OURS][metric.key] - resampled[model.key][metric.key]),
        )
        p = p_value(points[model.key][metric.key], nulls[model.key], higher_is_better=metric.higher_is_better)
        lines.append(
            Row(
                model=model,
                predictions=predicted,
                scores=scores,
                advantage=None if model.key == OURS else advantage,
                p_value=p,
            )
        )
    return Assessment(
        rows=tuple(lines),
        null=nulls[OURS],
        groups=_group_scores(
            {model.key: rows for model, rows in models}, target, families, memberships, num_resamples, seed
        ),
        num_families=None if families is None else len({name for name in families if name}),
        num_resamples=num_resamples,
    )


def metric_order(target: Target) -> tuple[str, ...]:
    """Keys of the target's metrics, headline first."""
    return tuple(metric.key for metric in METRICS[target.kind])


def _point(predicted: Predictions, target: Target) -> dict[str, float]:
    return score(predicted.y_true, predicted.output, target.kind, train_mean=_train_mean(target))


def _train_mean(target: Target) -> float | None:
    return target.mean if np.isfinite(target.mean) else None


def _resamples(
    predicted: Predictions, target: Target, families: Sequence[str] | None, num_resamples: int, seed: int
) -> Ints:
    strata = None if target.kind == "regression" else predicted.y_true.astype(np.int64)
    return resample_counts(num_resamples, len(predicted.subjects), seed=seed, strata=strata, families=families)


def _resampled(predicted: Predictions, target: Target, counts: Ints) -> dict[str, Floats]:
    at_once = max(1, _CELLS_AT_ONCE // max(1, counts.shape[1]))
    parts = [
        weighted_scores(
            predicted.y_true,
            predicted.output,
            target.kind,
            counts[start : start + at_once],
            train_mean=_train_mean(target),
        )
        for start in range(0, len(counts), at_once)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _group_scores(
    predicted: Mapping[str, Predictions],
    target: Target,
    families: Sequence[str] | None,
    memberships: Mapping[str, Mapping[str, Sequence[int]]],
    num_resamples: int,
    seed: int,
) -> tuple[GroupScore, ...]:
    key = headline(target.kind).key
    scores = []
    for role, groups in memberships.items():
        for name, rows in groups.items():
            values: dict[str, Estimate] = {}
            for model in (OURS, REFERENCE):
                part = _take(predicted[model], rows)
                names = None if families is None else [families[row] for row in rows]
                counts = _resamples(part, target, names, num_resamples, seed)
                values[model] = estimate(_point(part, target)[key], _resampled(part, target, counts)[key])
            scores.append(
                GroupScore(
                    role=role,
                    name=name,
                    num_subjects=len(rows),
                    ours=values[OURS],
                    reference=values[REFERENCE],
                )
            )
    return tuple(scores)


def _take(predicted: Predictions, rows: Sequence[int]) -> Predictions:
    wanted = np.asarray(rows, dtype=np.int64)
    return Predictions(
        model=predicted.model,
        subset=predicted.subset,
        subjects=tuple(predicted.subjects[row] for row in wanted),
        y_true=predicted.y_true[wanted],
        output=predicted.output[wanted],
    )
