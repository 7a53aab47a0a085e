"""Telling people apart: is the vector of a subject most like another one of the same subject?

Shapes: N subject, E dimension.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats


def similarities(gallery: npt.ArrayLike, probe: npt.ArrayLike) -> Floats:
    """Cosine of every probe with every gallery vector, both relative to the gallery's mean vector.

    Parameters
    ----------
    gallery, probe : array_like, shape (N, E)
        Row n of both is the same subject.

    Returns
    -------
    numpy.ndarray, shape (N, N)
        Row: probe, column: gallery; 0 for a vector that is the mean.
    """
    first, second = np.asarray(gallery, dtype=np.float64), np.asarray(probe, dtype=np.float64)
    mean = first.mean(axis=0)
    return np.clip(_unit(second - mean) @ _unit(first - mean).T, -1.0, 1.0)


def ranks(similarity: Floats) -> Floats:
    """Rank of each probe's own subject in the gallery, (N,): 1 is best; ties get the mean of their ranks."""
    own = np.diag(similarity)[:, None]
    return np.asarray(1 + (similarity > own).sum(axis=1) + ((similarity == own).sum(axis=1) - 1) / 2)


def rank_1(rank: Floats) -> tuple[float, float, float]:
    """Share of the probes whose own subject is first, with its 95 % Wilson interval."""
    from scipy.stats import binomtest

    hits = int((rank == 1).sum())
    interval = binomtest(hits, rank.size).proportion_ci(method="wilson")
    return hits / rank.size, float(interval.low), float(interval.high)


def mean_average_precision(rank: Floats) -> float:
    """mAP; with one gallery vector a subject, the mean of 1 / rank."""
    return float(np.mean(1.0 / rank))


def chance(num_subjects: int) -> tuple[float, float]:
    """Rank-1 and mAP of vectors that say nothing: 1 / N, and the mean of 1 / 1 ... 1 / N."""
    return 1.0 / num_subjects, float(np.mean(1.0 / np.arange(1, num_subjects + 1)))


def _unit(x: Floats) -> Floats:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(np.divide(x, length, out=np.zeros_like(x), where=length > 0), dtype=np.float64)
