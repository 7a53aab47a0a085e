"""The metrics of `eval.scoring.metrics` for many resamples at once.

A resample is a vector of counts: how often each subject was drawn. All metrics are then ratios of matrix
products, so thousands of resamples cost about as much as a few calls of scikit-learn. The tests hold these
to scikit-learn's `sample_weight` and to repeated rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from eval.scoring.calibration import calibration_errors
from eval.scoring.metrics import METRICS, Floats, Kind, as_logits, confidence, decide, probabilities
from eval.scoring.ties import auroc, midranks


def weighted_scores(
    y_true: npt.ArrayLike,
    output: npt.ArrayLike,
    kind: Kind,
    counts: npt.ArrayLike,
    *,
    threshold: float = 0.0,
    train_mean: float | None = None,
    train_std: float | None = None,
) -> dict[str, Floats]:
    """Each metric of each resample.

    Parameters
    ----------
    y_true : array_like, shape (N,)
        Level numbers or values.
    output : array_like, shape (N, K)
        Logits or values, see `eval.scoring.metrics`.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    counts : array_like, shape (B, N)
        How often subject n is in resample b.
    threshold, train_mean, train_std : float, optional
        As in `eval.scoring.metrics.score`.

    Returns
    -------
    dict of str to numpy.ndarray, shape (B,)
        `nan` where a metric is undefined in a resample.
    """
    truth = np.asarray(y_true, dtype=np.float64)
    weights = np.asarray(counts, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "regression":
            values = _regression(truth, as_logits(output, kind)[:, 0], weights, train_mean, train_std)
        else:
            values = _classes(truth, decide(output, kind, threshold), weights)
            values |= _probabilities(truth, output, kind, weights)
    return {metric.key: values[metric.key] for metric in METRICS[kind]}


def _probabilities(truth: Floats, output: npt.ArrayLike, kind: Kind, weights: Floats) -> dict[str, Floats]:
    shares = probabilities(output, kind)
    is_level = truth[:, None] == np.arange(shares.shape[1])
    error = np.sum((shares - is_level) ** 2, axis=1) / (2.0 if kind == "binary" else 1.0)
    if kind == "binary":
        curve = auroc(as_logits(output, kind)[:, 0], weights * truth, weights * (1.0 - truth))
    else:
        curve = _one_against_rest(shares, is_level.astype(np.float64), weights)
    sure, came_true = confidence(truth, output, kind)
    return {
        "auroc": curve,
        "brier": weights @ error / weights.sum(axis=1),
        "ece": calibration_errors(sure, came_true, weights),
    }


def _one_against_rest(shares: Floats, is_level: Floats, weights: Floats) -> Floats:
    """Mean AUROC of the levels that are in a resample; `nan` where there is one only."""
    curves = [
        auroc(shares[:, k], weights * is_level[:, k], weights * (1 - is_level[:, k])) for k in range(len(shares.T))
    ]
    found = np.stack(curves)
    defined = np.isfinite(found)
    return np.asarray(np.where(defined, found, 0.0).sum(axis=0) / defined.sum(axis=0), dtype=np.float64)


def _classes(truth: Floats, decided: npt.NDArray[np.int64], weights: Floats) -> dict[str, Floats]:
    levels = np.unique(truth)
    is_true = (truth[:, None] == levels).astype(np.float64)
    is_decided = (decided[:, None] == levels).astype(np.float64)
    num_true, num_decided = weights @ is_true, weights @ is_decided
    num_right = weights @ (is_true * is_decided)
    present = num_true > 0
    num_present = present.sum(axis=1)
    recall = np.where(present, num_right / num_true, 0.0)
    f1 = np.where(present, 2.0 * num_right / (num_true + num_decided), 0.0)
    several = num_present > 1
    return {
        "accuracy": num_right.sum(axis=1) / weights.sum(axis=1),
        "balanced_accuracy": np.where(several, recall.sum(axis=1) / num_present, np.nan),
        "f1_macro": np.where(several, f1.sum(axis=1) / num_present, np.nan),
    }


def _regression(
    truth: Floats, predicted: Floats, weights: Floats, train_mean: float | None, train_std: float | None
) -> dict[str, Floats]:
    total = weights.sum(axis=1)
    error = truth - predicted
    squared = weights @ error**2
    variance = (weights @ (truth - truth.mean()) ** 2 - (weights @ (truth - truth.mean())) ** 2 / total) / total
    spread = variance * total if train_mean is None else weights @ (truth - train_mean) ** 2
    unit = np.maximum(variance, 0.0) if train_std is None else np.full(total.shape, train_std**2)
    wide = (np.broadcast_to(truth, weights.shape), np.broadcast_to(predicted, weights.shape))
    return {
        "mae": weights @ np.abs(error) / total,
        "rmse": np.sqrt(squared / total),
        "r2": np.where(spread > 0, 1.0 - squared / spread, np.nan),
        "pearson": _correlation(*wide, weights),
        "spearman": _correlation(midranks(truth, weights), midranks(predicted, weights), weights),
        "mse_z": np.where(unit > 0, squared / total / unit, np.nan),
        "slope": _slope(truth, predicted, weights),
    }


def _slope(truth: Floats, predicted: Floats, weights: Floats) -> Floats:
    """Least-squares slope of truth on prediction."""
    total = weights.sum(axis=1)
    x, y = predicted - predicted.mean(), truth - truth.mean()
    spread = weights @ x**2 - (weights @ x) ** 2 / total
    shared = weights @ (x * y) - (weights @ x) * (weights @ y) / total
    return np.asarray(np.where(spread > 1e-12 * total, shared / spread, np.nan), dtype=np.float64)


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted Pearson correlation along the last axis; all (B, N)."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    x_sum, y_sum = (weights * x * x).sum(axis=1), (weights * y * y).sum(axis=1)
    tiny = 1e-12 * total[:, 0]
    usable = (x_sum > tiny) & (y_sum > tiny)
    covariance = (weights * x * y).sum(axis=1)
    return np.where(usable, covariance / np.sqrt(x_sum * y_sum), np.nan)


def headline_of_labels(output: npt.ArrayLike, kind: Kind) -> Callable[[Floats], float]:
    """The headline metric of fixed outputs as a function of the labels, for permutation tests."""
    from scipy.stats import rankdata

    values = as_logits(output, kind)
    if kind == "regression":
        return lambda labels: float(np.mean(np.abs(labels - values[:, 0])))
    decided = decide(values, kind)
    if kind == "multiclass":
        return lambda labels: _mean_recall(labels, decided)
    ranks = rankdata(values[:, 0])

    def of_labels(labels: Floats) -> float:
        num_positive = labels.sum()
        pairs = num_positive * (labels.size - num_positive)
        wins = labels @ ranks - num_positive * (num_positive + 1) / 2
        return float(wins / pairs) if pairs else float("nan")

    return of_labels


def _mean_recall(labels: Floats, decided: npt.NDArray[np.int64]) -> float:
    levels = np.unique(labels)
    if levels.size < 2:
        return float("nan")
    return float(np.mean([np.mean(decided[labels == level] == level) for level in levels]))
