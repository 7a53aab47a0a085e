"""The metrics of `eval.scoring.metrics` for many resamples at once.

A resample is a vector of counts: how often each subject was drawn. All metrics are then ratios of matrix
products, so thousands of resamples cost about as much as a few calls of scikit-learn. The tests hold these
to scikit-learn's `sample_weight` and to repeated rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import METRICS, Floats, Kind, as_logits, decide, probabilities


def weighted_scores(
    y_true: npt.ArrayLike,
    output: npt.ArrayLike,
    kind: Kind,
    counts: npt.ArrayLike,
    *,
    train_mean: float | None = None,
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
    train_mean : float, optional
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
            values = _regression(truth, as_logits(output, kind)[:, 0], weights, train_mean)
        else:
            values = _classes(truth, decide(output, kind), weights)
        if kind == "binary":
            logit = as_logits(output, kind)[:, 0]
            error = (probabilities(logit, kind)[:, 1] - truth) ** 2
            values["auroc"] = _auroc(logit, weights * truth, weights * (1.0 - truth))
            values["brier"] = weights @ error / weights.sum(axis=1)
    return {metric.key: values[metric.key] for metric in METRICS[kind]}


def _auroc(score: Floats, positives: Floats, negatives: Floats) -> Floats:
    """Mann-Whitney U over tied groups of the score; (B, N) counts of positives and negatives."""
    positives, negatives = _by_value(score, positives), _by_value(score, negatives)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return np.asarray(wins / (positives.sum(axis=1) * negatives.sum(axis=1)), dtype=np.float64)


def _by_value(score: Floats, weights: Floats) -> Floats:
    """Sum the columns of (B, N) weights over equal scores, ascending: (B, distinct values)."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf) != 0)
    return np.asarray(np.add.reduceat(weights[:, order], starts, axis=1), dtype=np.float64)


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


def _regression(truth: Floats, predicted: Floats, weights: Floats, train_mean: float | None) -> dict[str, Floats]:
    total = weights.sum(axis=1)
    error = truth - predicted
    squared = weights @ error**2
    if train_mean is None:
        spread = weights @ truth**2 - (weights @ truth) ** 2 / total
    else:
        spread = weights @ (truth - train_mean) ** 2
    return {
        "mae": weights @ np.abs(error) / total,
        "rmse": np.sqrt(squared / total),
        "r2": np.where(spread > 0, 1.0 - squared / spread, np.nan),
        "pearson": _correlation(
            np.broadcast_to(truth, weights.shape), np.broadcast_to(predicted, weights.shape), weights
        ),
        "spearman": _correlation(_midranks(truth, weights), _midranks(predicted, weights), weights),
    }


def _midranks(values: Floats, weights: Floats) -> Floats:
    """Rank of each subject's value within each resample, ties at their middle: (B, N)."""
    grouped = _by_value(values, weights)
    middle = np.cumsum(grouped, axis=1) - 0.5 * grouped + 0.5
    _, place = np.unique(values, return_inverse=True)
    return np.asarray(middle[:, place], dtype=np.float64)


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

    def auroc(labels: Floats) -> float:
        num_positive = labels.sum()
        pairs = num_positive * (labels.size - num_positive)
        wins = labels @ ranks - num_positive * (num_positive + 1) / 2
        return float(wins / pairs) if pairs else float("nan")

    return auroc


def _mean_recall(labels: Floats, decided: npt.NDArray[np.int64]) -> float:
    levels = np.unique(labels)
    if levels.size < 2:
        return float("nan")
    return float(np.mean([np.mean(decided[labels == level] == level) for level in levels]))
