"""The figures of the scores: which of them a kind of target calls for, and the null of shuffled labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eval.page.canvas import OUR_COLOUR, Drawing, drawn, unit_of
from eval.page.outcomes import confusion, roc, score_distribution, true_and_predicted
from eval.page.prose import number, p_number
from eval.page.reliability import reliability
from eval.scoring.assessment import Assessment
from eval.scoring.metrics import Floats, headline
from eval.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(assessment: Assessment, target: Target) -> list[Drawing]:
    """All figures that the kind of target, and these subjects, allow."""
    drawings = []
    if target.kind == "binary" and np.unique(assessment.ours.predictions.y_true).size > 1:
        drawings.append(roc(assessment, target))
    if target.kind == "regression":
        drawings.append(true_and_predicted(assessment, target))
    else:
        drawings += [reliability(assessment, target), confusion(assessment, target)]
    if target.kind == "binary":
        drawings.append(score_distribution(assessment, target))
    if np.isfinite(assessment.null).all() and assessment.null.size:
        drawings.append(_null(assessment, target))
    return drawings


def _null(assessment: Assessment, target: Target) -> Drawing:
    metric = headline(target.kind)
    ours = assessment.ours
    observed = ours.scores[metric.key].value

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        _draw_null(axis, assessment.null)
        axis.axvline(observed, color=OUR_COLOUR, lw=2.4)
        top = axis.get_ylim()[1]
        axis.set_ylim(0, top * 1.18)
        left = observed > np.mean(axis.get_xlim())
        axis.annotate(
            f"our model {number(observed)}",
            (observed, top * 1.09),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=OUR_COLOUR,
            fontweight="bold",
        )
        axis.set_xlabel(f"{metric.label} with shuffled labels{unit_of(target)}")
        axis.set_ylabel("permutations")

    return Drawing(
        title="Could it be chance?",
        uri=drawn(draw, 5.0, 3.3),
        alt=f"Permutation null of {metric.label}, observed {number(observed)}",
        caption=f"Grey: {metric.label} of our model's outputs against shuffled labels, {assessment.null.size} times. "
        f"Look at how far our model (line) stands out of it; p = {p_number(ours.p_value)}, one-sided, and no p can be "
        f"smaller than {1 / (1 + assessment.null.size):.4f} with so many permutations.",
    )


def _draw_null(axis: Axes, null: Floats) -> None:
    """A histogram; one bar per value where there are few, as with small balanced classes."""
    values, counts = np.unique(np.round(null, 9), return_counts=True)
    if values.size > 30 or values.size < 2:
        axis.hist(null, bins=30, color="#c6cdd3")
        return
    width = min(float(np.diff(values).min()), float(np.ptp(values)) / 15)
    axis.bar(values, counts, width=0.85 * width, color="#c6cdd3")
