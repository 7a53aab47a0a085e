"""All metrics of one model on one set of subjects, resampled together, so that models can be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.scoring.bootstrap import (
    Estimate,
    Ints,
    acceleration_of,
    estimate,
    family_blocks,
    jackknife_counts,
    resample_counts,
)
from eval.scoring.comparison import paired_difference
from eval.scoring.metrics import Floats, score
from eval.scoring.weighted import weighted_scores
from eval.subjects import Predictions
from eval.targets import Target

SHARES = ("auroc", "balanced_accuracy", "accuracy", "f1_macro")
"""Metrics that stop at 0 and 1, where a bootstrap of few subjects knows no uncertainty."""
_CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The resamples of a set of subjects, the same for every model.

    Attributes
    ----------
    counts : numpy.ndarray, shape (B, N)
        Of the bootstrap.
    left_out : numpy.ndarray, shape (G, N)
        Of the jackknife.
    stratum : numpy.ndarray, shape (G,)
        Class of each of the jackknife's groups.
    least : int
        Independent blocks of the smallest class: those of its subjects that are not relatives.
    degrees : int
        Blocks less one.
    of_classes : bool
        The target has classes.
    """

    counts: Ints
    left_out: Ints
    stratum: Ints
    least: int
    degrees: int
    of_classes: bool


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """Metrics of one model: of all subjects, of each resample, and without each of the jackknife's groups."""

    point: Mapping[str, float]
    bootstrap: Mapping[str, Floats]
    jackknife: Mapping[str, Floats]


def draw(y_true: Floats, target: Target, *, families: Sequence[str] | None, num_resamples: int, seed: int) -> Draws:
    """Resample subjects, within each class and in families where these are known.

    Parameters
    ----------
    y_true : numpy.ndarray, shape (N,)
        Level numbers or values.
    target : Target
        Its kind.
    families : sequence of str, shape (N,), or None
        '' where unknown.
    num_resamples, seed : int
        See `eval.config.ReportConfig`.
    """
    strata = None if target.kind == "regression" else y_true.astype(np.int64)
    counts = resample_counts(num_resamples, y_true.size, seed=seed, strata=strata, families=families)
    left_out, stratum = jackknife_counts(y_true.size, seed=seed, strata=strata, families=families)
    block = family_blocks(families, y_true.size)
    classes = [block] if strata is None else [block[strata == level] for level in np.unique(strata)]
    least = min(np.unique(members).size for members in classes)
    return Draws(
        counts=counts,
        left_out=left_out,
        stratum=stratum,
        least=least,
        degrees=np.unique(block).size - 1,
        of_classes=strata is not None,
    )


def resample(predicted: Predictions, target: Target, threshold: float, draws: Draws) -> Resampled:
    """All metrics of a model in all resamples."""
    mean, std = (value if np.isfinite(value) else None for value in (target.mean, target.std))
    point = score(predicted.y_true, predicted.output, target.kind, threshold=threshold, train_mean=mean, train_std=std)

    def scores(counts: Ints) -> dict[str, Floats]:
        at_once = max(1, _CELLS_AT_ONCE // counts.shape[1])
        parts = [
            weighted_scores(
                predicted.y_true,
                predicted.output,
                target.kind,
                counts[start : start + at_once],
                threshold=threshold,
                train_mean=mean,
                train_std=std,
            )
            for start in range(0, len(counts), at_once)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return Resampled(point=point, bootstrap=scores(draws.counts), jackknife=scores(draws.left_out))


def intervals(found: Resampled, draws: Draws) -> dict[str, Estimate]:
    """Each metric of a model with its 95 % interval.

    A share of 0 or 1 (every subject right, perfect order) has no spread in any resample; its interval then reaches to
    the exact binomial limit of as many successes as the smallest class has blocks.
    """
    degrees = None if draws.of_classes else draws.degrees
    values = {}
    for key, point in found.point.items():
        bent = acceleration_of(found.jackknife[key], draws.stratum)
        interval = estimate(point, found.bootstrap[key], acceleration=bent, degrees=degrees)
        if key in SHARES and point in (0.0, 1.0):
            interval = _widened(interval, draws.least, bounds=(0.0, 1.0))
        values[key] = interval
    return values


def difference(better: Resampled, worse: Resampled, key: str, draws: Draws) -> tuple[Estimate, float]:
    """A metric of one model minus that of another on the same resamples, and the two-sided p of no difference.

    Where one of them is a share of 0 or 1 and the difference has no spread, interval and p are the exact binomial ones,
    as in `intervals`.
    """
    point = better.point[key] - worse.point[key]
    resampled = better.bootstrap[key] - worse.bootstrap[key]
    interval, p = paired_difference(point, resampled, draws.degrees)
    extreme = any(found.point[key] in (0.0, 1.0) for found in (better, worse))
    if key in SHARES and extreme and interval.high - interval.low <= 1e-12 and point:
        interval = _widened(interval, draws.least, bounds=(-1.0, 1.0))
        p = max(p, min(1.0, 2.0 * (1.0 - abs(point)) ** draws.least))
    return interval, p


def _widened(found: Estimate, num_blocks: int, bounds: tuple[float, float]) -> Estimate:
    """The interval, at least as wide as the exact one of `num_blocks` of `num_blocks` successes."""
    slack = 1.0 - 0.025 ** (1.0 / num_blocks)
    return Estimate(
        value=found.value,
        low=max(bounds[0], min(found.low, found.value - slack)),
        high=min(bounds[1], max(found.high, found.value + slack)),
        num_undefined=found.num_undefined,
    )
