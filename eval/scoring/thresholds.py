"""Where a binary model's logit is cut: chosen on subjects that are not scored.

Outputs of another training rank subjects well and still lie all on one side of 0. A cut chosen on the scored subjects
would flatter every decision, so it comes from held-out ones only, and stays at 0 where there are none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats, Kind
from eval.subjects import Predictions


def balanced_cut(y_true: npt.ArrayLike, logit: npt.ArrayLike) -> float:
    """The cut of the logit with the best balanced accuracy.

    Candidates lie in the middle between neighbouring distinct logits. Of several that are equally good the middle
    one is taken, and of two middle ones the lower.

    Parameters
    ----------
    y_true : array_like, shape (N,)
        0 or 1.
    logit : array_like, shape (N,)
        Above the cut means 1.

    Returns
    -------
    float
        0 where no cut is better than chance: one class only, one logit only, or no order in them.
    """
    truth = np.asarray(y_true, dtype=np.float64)
    values = np.asarray(logit, dtype=np.float64)
    distinct, place = np.unique(values, return_inverse=True)
    positives = np.bincount(place, weights=truth)
    negatives = np.bincount(place) - positives
    if distinct.size < 2 or not positives.any() or not negatives.any():
        return 0.0
    cuts: Floats = (distinct[:-1] + distinct[1:]) / 2.0
    found = 1.0 - np.cumsum(positives)[:-1] / positives.sum()
    rejected = np.cumsum(negatives)[:-1] / negatives.sum()
    accuracy = (found + rejected) / 2.0
    best = np.flatnonzero(accuracy >= accuracy.max() - 1e-12)
    if accuracy.max() <= 0.5 + 1e-12:
        return 0.0
    return float(cuts[best[(best.size - 1) // 2]])


def threshold_of(held_out: Predictions | None, kind: Kind) -> float:
    """The cut that a model's held-out subjects give: 0 without them, and for targets that are not binary."""
    if held_out is None or kind != "binary" or not held_out.subjects:
        return 0.0
    return balanced_cut(held_out.y_true, held_out.output[:, 0])
