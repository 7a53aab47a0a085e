"""The report's figures, each with what to look for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.page.canvas import OUR_COLOUR, REFERENCE_COLOUR, Drawing, colour_of, drawn, interval_bar, unit_of
from eval.page.outcomes import calibration, confusion, roc, score_distribution
from eval.page.prose import number
from eval.scoring.assessment import REFERENCE, Assessment, Row
from eval.scoring.metrics import Floats, headline
from eval.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(assessment: Assessment, target: Target) -> list[Drawing]:
    """All figures that the kind of target calls for."""
    drawings = [_forest(assessment, target)]
    if target.kind == "binary" and _two_classes(assessment):
        drawings += [roc(assessment, target), score_distribution(assessment, target)]
    if target.kind == "multiclass":
        drawings.append(confusion(assessment, target))
    if target.kind == "regression":
        drawings.append(calibration(assessment, target))
    if np.isfinite(assessment.null).all():
        drawings.append(_null(assessment, target))
    if assessment.groups:
        drawings.append(_groups(assessment, target))
    return drawings


def _two_classes(assessment: Assessment) -> bool:
    return np.unique(assessment.ours.predictions.y_true).size > 1


def _forest(assessment: Assessment, target: Target) -> Drawing:
    metric = headline(target.kind)
    rows = assessment.rows
    heights = np.arange(len(rows))[::-1]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [1.35, 1]})
        if metric.chance is not None:
            left.axvline(metric.chance, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        right.axvline(0, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        for row, height in zip(rows, heights, strict=True):
            interval_bar(left, row.scores[metric.key], height, colour_of(row.model.key))
            if row.advantage is not None:
                interval_bar(right, row.advantage, height, colour_of(row.model.key), "D")
        left.set_yticks(heights, [row.model.label for row in rows])
        left.set_ylim(-0.6, len(rows) - 0.4)
        left.get_yticklabels()[-1].set_fontweight("bold")
        left.set_xlabel(f"{metric.label}{unit_of(target)}")
        left.set_title("Each model")
        right.set_xlabel(f"advantage of our model in {metric.label}")
        right.set_title("Our model against each baseline")
        right.tick_params(left=False)
        for axis in (left, right):
            axis.grid(axis="x", color="#e8ecef", lw=0.8)
            axis.set_axisbelow(True)

    better = "right" if metric.higher_is_better else "left"
    chance = "" if metric.chance is None else f" The dashed line is chance ({metric.chance:g})."
    return Drawing(
        title="All models side by side",
        uri=drawn(draw, 9.6, 1.3 + 0.42 * len(rows)),
        alt="; ".join(f"{row.model.label} {number(row.scores[metric.key].value)}" for row in rows),
        caption=f"Left: {metric.label} with 95 % intervals, better is further {better}.{chance} Right: how far "
        "our model is ahead of each baseline on the same resamples. Look at the right panel for a comparison: "
        "an interval that crosses 0 leaves the order open, whatever the intervals on the left look like.",
    )


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
        uri=drawn(draw, 6.4, 2.8),
        alt=f"Permutation null of {metric.label}, observed {number(observed)}",
        caption=f"Grey: {metric.label} of our model's outputs against shuffled labels, {assessment.null.size} times. "
        f"Look at how far our model (line) stands out of it; p = {ours.p_value:.4f}, one-sided, and no p can be "
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


def _groups(assessment: Assessment, target: Target) -> Drawing:
    metric = headline(target.kind)
    groups = assessment.groups
    pair: Sequence[Row] = (assessment.row(REFERENCE), assessment.ours)
    heights = np.arange(len(groups))[::-1].astype(np.float64)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        if metric.chance is not None:
            axis.axvline(metric.chance, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        for group, height in zip(groups, heights, strict=True):
            interval_bar(axis, group.reference, height + 0.16, REFERENCE_COLOUR)
            interval_bar(axis, group.ours, height - 0.16, OUR_COLOUR)
        axis.set_yticks(heights, [f"{group.role}: {group.name}, n = {group.num_subjects}" for group in groups])
        axis.set_ylim(-0.6, len(groups) - 0.4)
        axis.set_xlabel(f"{metric.label}{unit_of(target)}")
        axis.grid(axis="x", color="#e8ecef", lw=0.8)
        axis.set_axisbelow(True)
        handles = [axis.plot([], [], "o-", color=colour_of(row.model.key), label=row.model.label)[0] for row in pair]
        axis.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

    return Drawing(
        title="Does it hold in every group?",
        uri=drawn(draw, 8.6, 1.4 + 0.5 * len(groups)),
        alt="; ".join(f"{group.role} {group.name}: {number(group.ours.value)}" for group in groups),
        caption=f"{metric.label} with 95 % intervals within each site and each third of head motion. Look for a "
        "score that lives in one group only. Groups are small: their intervals are wide, and a "
        "group of one class is undefined.",
    )
