"""Do probabilities mean what they say? Predicted against observed shares, in bins of equally many subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eval.page.canvas import BEST_COLOUR, OUR_COLOUR, Drawing, drawn
from eval.page.prose import counted, number
from eval.page.verdict import strongest
from eval.scoring.assessment import Assessment
from eval.scoring.calibration import num_bins
from eval.scoring.metrics import Floats, confidence
from eval.subjects import Predictions
from eval.targets import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z = 1.96
"""Normal quantile of a 95 % interval."""


def reliability(assessment: Assessment, target: Target) -> Drawing:
    """Reliability diagram of our model and of the strongest baseline."""
    best = strongest(assessment)
    shown = [(assessment.ours, OUR_COLOUR), *([] if best is None else [(best, BEST_COLOUR)])]
    count = num_bins(len(assessment.ours.predictions.subjects))

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        for place, (row, colour) in enumerate(shown):
            said, found, low, high = bins(row.predictions, target)
            label = f"{row.model.label}  ECE {number(row.scores['ece'].value, 2)}" if "ece" in row.scores else None
            axis.vlines(said, low, high, color=colour, lw=1.4, alpha=0.55)
            axis.plot(said, found, "o-", color=colour, ms=6, lw=1.4, label=label or row.model.label, zorder=3 - place)
        what = f"“{target.levels[1]}”" if target.kind == "binary" else "the class that is named"
        axis.set_xlabel(f"predicted probability of {what}")
        axis.set_ylabel(f"observed share of {what}" if target.kind == "binary" else "share that is right")
        axis.set_box_aspect(1)
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.02)
        axis.legend(loc="upper left" if target.kind == "binary" else "lower right", fontsize=9)

    return Drawing(
        title="Do the probabilities mean what they say?",
        uri=drawn(draw, 5.0, 4.7),
        alt="Reliability diagram of our model and of the strongest baseline",
        caption=f"Subjects in {counted(count, 'bin')} of about equally many, with 95 % Wilson intervals; the dashed "
        "line is perfect. Points below it: the model is too sure. Look at it only after the ranking holds: a model "
        "that always says the share of a class is calibrated and useless.",
    )


def bins(predicted: Predictions, target: Target) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean prediction, observed share, and the Wilson interval of the share, in each bin that holds subjects.

    The bins are those of the expected calibration error: about equally many subjects, ties together. For a binary
    target the event is the second level, for several classes that the most probable level is the true one.

    Parameters
    ----------
    predicted : Predictions
        At least one subject.
    target : Target
        Binary or multi-class.

    Returns
    -------
    tuple of four numpy.ndarray, shape (bins,)
    """
    sure, came_true = confidence(predicted.y_true, predicted.output, target.kind)
    _, value, mass = np.unique(sure, return_inverse=True, return_counts=True)
    place = np.floor((np.cumsum(mass) - 0.5 * mass) / sure.size * num_bins(sure.size))[value]
    parts = [place == number for number in np.unique(place)]
    mean = np.array([sure[part].mean() for part in parts])
    found = np.array([came_true[part].mean() for part in parts])
    size = np.array([part.sum() for part in parts], dtype=np.float64)
    centre = (found + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z * np.sqrt(found * (1 - found) / size + Z**2 / (4 * size**2)) / (1 + Z**2 / size)
    return mean, found, centre - half, centre + half
