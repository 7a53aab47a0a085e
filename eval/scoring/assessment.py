"""From predictions to judgement: every model on the same subjects and the same resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.scoring.bootstrap import Estimate
from eval.scoring.comparison import holm
from eval.scoring.intervals import Draws, Resampled, difference, draw, intervals, resample
from eval.scoring.metrics import Floats, Metric, headline
from eval.scoring.permutation import p_value, permutation_null
from eval.scoring.thresholds import threshold_of
from eval.scoring.weighted import headline_of_labels
from eval.subjects import OURS, Model, Predictions, Scored
from eval.targets import Target


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model's line in the table.

    Attributes
    ----------
    model, predictions
        Which one, and what it says of the scored subjects.
    threshold : float
        Cut of the logit that decides between the two levels of a binary target; 0 for other kinds, which need none.
    num_held_out : int
        Subjects, none of them scored, that chose the threshold; 0 where there were none and the cut is 0.
    scores : mapping of str to Estimate
        By metric key.
    resampled : Resampled
        The same metrics in each resample.
    p_value : float
        One-sided, of the headline metric against shuffled labels.
    advantage : Estimate or None
        How much better *ours* is in the headline metric, positive when ours is better whatever the metric's
        direction; None for ours.
    advantage_p : float
        Two-sided, of an advantage of 0; `nan` for ours.
    adjusted_p : float
        `advantage_p` after Holm's correction over all baselines; `nan` for ours and for controls.
    """

    model: Model
    predictions: Predictions
    threshold: float
    num_held_out: int
    scores: Mapping[str, Estimate]
    resampled: Resampled
    p_value: float
    advantage: Estimate | None
    advantage_p: float
    adjusted_p: float


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All rows in the order of the models, and the permutation null of ours.

    Attributes
    ----------
    metric : Metric
        The headline metric.
    rows : tuple of Row
        Baselines, controls and ours.
    draws : Draws
        The resamples that all rows share.
    null : numpy.ndarray, shape (number of permutations,)
        The headline metric of ours against shuffled labels.
    num_families : int or None
        Known families; None without a column of them.
    num_resamples : int
        Behind each interval.
    """

    metric: Metric
    rows: tuple[Row, ...]
    draws: Draws
    null: Floats
    num_families: int | None
    num_resamples: int

    def row(self, key: str) -> Row:
        """The row of a model."""
        return next(row for row in self.rows if row.model.key == key)

    @property
    def ours(self) -> Row:
        """The row of the trained model."""
        return self.row(OURS)

    @property
    def baselines(self) -> tuple[Row, ...]:
        """The simpler rivals."""
        return tuple(row for row in self.rows if row.model.role == "baseline")

    @property
    def controls(self) -> tuple[Row, ...]:
        """Our model with something taken away."""
        return tuple(row for row in self.rows if row.model.role == "control")

    def best_baseline(self) -> Row:
        """The baseline with the best point estimate of the headline metric, the first of equals.

        Raises
        ------
        ValueError
            There are no baselines (see `baselines`).
        """
        return _best(self.baselines, self.metric)


def _best(rows: Sequence[Row], metric: Metric) -> Row:
    def worth(row: Row) -> float:
        value = row.scores[metric.key].value
        return -np.inf if not np.isfinite(value) else value if metric.higher_is_better else -value

    return max(rows, key=worth)


def paired(assessment: Assessment, a: str, b: str) -> Estimate:
    """How much better a row is than another in the headline metric, on the same resamples.

    Parameters
    ----------
    assessment : Assessment
        With both rows.
    a, b : str
        Keys; positive when `a` is better, whatever the metric's direction.
    """
    return _ahead(assessment.row(a).resampled, assessment.row(b).resampled, assessment.metric, assessment.draws)[0]


def _ahead(a: Resampled, b: Resampled, metric: Metric, draws: Draws) -> tuple[Estimate, float]:
    better, worse = (a, b) if metric.higher_is_better else (b, a)
    return difference(better, worse, metric.key, draws)


def assess(
    models: Sequence[Scored],
    target: Target,
    *,
    families: Sequence[str] | None,
    num_resamples: int,
    num_permutations: int,
    seed: int,
) -> Assessment:
    """Score all models.

    Parameters
    ----------
    models : sequence of Scored
        All on the same subjects; ours has the key 'ours'.
    target : Target
        Kind, and the training mean that R2 refers to.
    families : sequence of str or None
        Family of each subject, '' where unknown.
    num_resamples, num_permutations, seed : int
        See `eval.config.ReportConfig`.

    Raises
    ------
    ValueError
        The models were not asked about the same subjects.
    """
    _check_same_subjects(models)
    truth, metric = models[0].predictions.y_true, headline(target.kind)
    draws = draw(truth, target, families=families, num_resamples=num_resamples, seed=seed)
    cuts = {entry.model.key: threshold_of(entry.held_out, target.kind) for entry in models}
    found = {entry.model.key: resample(entry.predictions, target, cuts[entry.model.key], draws) for entry in models}
    ahead = {key: _ahead(found[OURS], rows, metric, draws) for key, rows in found.items() if key != OURS}
    rivals = [entry.model.key for entry in models if entry.model.role == "baseline"]
    adjusted = dict(zip(rivals, holm([ahead[key][1] for key in rivals]), strict=True))

    def null_of(entry: Scored) -> Floats:
        statistic = headline_of_labels(entry.predictions.output, target.kind)
        return permutation_null(truth, statistic, num_permutations=num_permutations, seed=seed, families=families)

    def row(entry: Scored, null: Floats) -> Row:
        key = entry.model.key
        advantage, advantage_p = ahead.get(key, (None, float("nan")))
        return Row(
            model=entry.model,
            predictions=entry.predictions,
            threshold=cuts[key],
            num_held_out=0 if entry.held_out is None else len(entry.held_out.subjects),
            scores=intervals(found[key], draws),
            resampled=found[key],
            p_value=p_value(found[key].point[metric.key], null, higher_is_better=bool(metric.higher_is_better)),
            advantage=advantage,
            advantage_p=advantage_p,
            adjusted_p=adjusted.get(key, float("nan")),
        )

    nulls = {entry.model.key: null_of(entry) for entry in models}
    return Assessment(
        metric=metric,
        rows=tuple(row(entry, nulls[entry.model.key]) for entry in models),
        draws=draws,
        null=nulls[OURS],
        num_families=None if families is None else len({name for name in families if name}),
        num_resamples=num_resamples,
    )


def _check_same_subjects(models: Sequence[Scored]) -> None:
    first = models[0].predictions
    for entry in models:
        rows = entry.predictions
        if rows.subjects != first.subjects or not np.array_equal(rows.y_true, first.y_true):
            raise ValueError(f"{entry.model.key} was scored on other subjects than {models[0].model.key}")
        if entry.held_out is not None and not set(entry.held_out.subjects).isdisjoint(first.subjects):
            raise ValueError(f"{entry.model.key}: subjects that are scored would choose its threshold")
