"""Sums and ranks over equal values, for many weightings of the same subjects at once."""

from __future__ import annotations

import numpy as np

from eval.scoring.metrics import Floats


def by_value(values: Floats, weights: Floats) -> Floats:
    """Sum weights over equal values.

    Parameters
    ----------
    values : numpy.ndarray, shape (N,)
        Of each subject.
    weights : numpy.ndarray, shape (B, N)
        Anything to be summed.

    Returns
    -------
    numpy.ndarray, shape (B, G)
        A column for each distinct value, ascending.
    """
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) != 0)
    return np.asarray(np.add.reduceat(weights[:, order], starts, axis=1), dtype=np.float64)


def midranks(values: Floats, weights: Floats) -> Floats:
    """Rank of each subject's value within each resample, ties at their middle: (B, N)."""
    grouped = by_value(values, weights)
    middle = np.cumsum(grouped, axis=1) - 0.5 * grouped + 0.5
    _, place = np.unique(values, return_inverse=True)
    return np.asarray(middle[:, place], dtype=np.float64)


def auroc(score: Floats, positives: Floats, negatives: Floats) -> Floats:
    """Mann-Whitney U over tied groups of the score; (B, N) counts of positives and negatives give (B,)."""
    positives, negatives = by_value(score, positives), by_value(score, negatives)
    below = np.cumsum(negatives, axis=1) - negatives
    wins = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return np.asarray(wins / (positives.sum(axis=1) * negatives.sum(axis=1)), dtype=np.float64)
