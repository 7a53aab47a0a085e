"""Do probabilities mean what they say: the expected calibration error.

Bins hold equally many subjects (Nixon et al. 2019), subjects of equal confidence always share one, and there is one
bin for every ten subjects, ten at most. The error of few subjects is too large: even a perfectly calibrated model of
30 subjects shows one of about 0.1, so compare it between models on the same subjects, not with 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats
from eval.scoring.ties import by_value

SUBJECTS_PER_BIN = 10
MOST_BINS = 10


def num_bins(num_subjects: float) -> int:
    """Bins of the expected calibration error of that many subjects."""
    return int(np.clip(num_subjects // SUBJECTS_PER_BIN, 1, MOST_BINS))


def calibration_errors(confidence: npt.ArrayLike, outcome: npt.ArrayLike, counts: npt.ArrayLike) -> Floats:
    """Expected calibration error of each resample.

    Parameters
    ----------
    confidence : array_like, shape (N,)
        Probability of the outcome: of level 1 (binary), or of the level that was decided for (multi-class).
    outcome : array_like, shape (N,)
        1 where it came true, else 0.
    counts : array_like, shape (B, N)
        How often subject n is in resample b.

    Returns
    -------
    numpy.ndarray, shape (B,)
        Mean distance between confidence and frequency over the bins, weighted by their subjects.
    """
    sure, came_true = np.asarray(confidence, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    weights = np.asarray(counts, dtype=np.float64)
    total = weights.sum(axis=1, keepdims=True)
    bins = np.clip(total // SUBJECTS_PER_BIN, 1, MOST_BINS)
    mass, gap = by_value(sure, weights), by_value(sure, weights * (sure - came_true))
    place = np.floor((np.cumsum(mass, axis=1) - 0.5 * mass) / total * bins)
    errors = [np.abs(np.where(place == number, gap, 0.0).sum(axis=1)) for number in range(MOST_BINS)]
    return np.asarray(np.sum(errors, axis=0) / total[:, 0], dtype=np.float64)
