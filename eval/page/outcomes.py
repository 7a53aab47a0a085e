"""Figures of what models say of each subject: one set per kind of target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from eval.page.canvas import BEST_COLOUR, CLASS_COLOURS, DOTS, OUR_COLOUR, Drawing, drawn
from eval.page.prose import counted, number
from eval.page.verdict import strongest
from eval.scoring.assessment import Assessment, Row
from eval.scoring.metrics import decide, probabilities
from eval.subjects import OURS
from eval.targets import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY_CLASSES = 4
MOST_NUMBERED = 24
"""Cells of a confusion matrix with more classes than this are shaded, without counts."""


def roc(assessment: Assessment, target: Target) -> Drawing:
    """ROC curves of all models; the others stay in the background of ours and of the strongest baseline."""
    best = strongest(assessment)
    shown = {OURS, "" if best is None else best.model.key}
    others = [row for row in assessment.rows if row.model.key not in shown]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="#c6cdd3", lw=1)
        for role, name, style in (("baseline", "other baseline", "solid"), ("control", "control", (0, (4, 2)))):
            rows = [row for row in others if row.model.role == role]
            for index, row in enumerate(rows):
                label = None if index else counted(len(rows), name)
                _roc_curve(axis, row, color="#a9b2ba", lw=1, ls=style, label=label)
        for front, colour, width in ((best, BEST_COLOUR, 1.8), (assessment.ours, OUR_COLOUR, 2.8)):
            if front is not None:
                label = f"{front.model.label}  {number(front.scores['auroc'].value)}"
                _roc_curve(axis, front, color=colour, lw=width, label=label)
        axis.set_xlabel(f"share of “{target.levels[0]}” called “{target.levels[1]}”")
        axis.set_ylabel(f"share of “{target.levels[1]}” found")
        axis.set_box_aspect(1)
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.01)
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], labels[::-1], loc="lower right", fontsize=9, handlelength=1.6)

    strong = "" if best is None else " The strongest baseline is orange."
    return Drawing(
        title="ROC curves",
        uri=drawn(draw, 5.0, 4.7),
        alt="ROC curves of all models, ours and the strongest baseline in colour",
        caption=f"Each curve runs through all thresholds; the diagonal is chance.{strong} Look for a curve that lies "
        "above another everywhere. The steps are single subjects: coarse steps mean few of them.",
    )


def _roc_curve(axis: Axes, row: Row, **style: Any) -> None:
    from sklearn.metrics import roc_curve

    wrong, right, _ = roc_curve(row.predictions.y_true, row.predictions.output[:, 0], drop_intermediate=False)
    axis.plot(wrong, right, **style)


def score_distribution(assessment: Assessment, target: Target) -> Drawing:
    """Probability of each subject by true class, with the threshold."""
    from scipy.special import expit

    predicted, threshold = assessment.ours.predictions, float(expit(assessment.ours.threshold))
    chance = probabilities(predicted.output, "binary")[:, 1]
    rng = np.random.default_rng(0)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(threshold, color="#5a6570", ls=(0, (4, 3)), lw=1.2)
        axis.text(threshold, 1.5, f" threshold {number(threshold, 2)}", color="#5a6570", fontsize=9, va="top")
        for level in range(2):
            values = chance[predicted.y_true == level]
            heights = 1 - level + rng.uniform(-0.2, 0.2, values.size)
            axis.scatter(values, heights, color=CLASS_COLOURS[level], rasterized=values.size > 500, **DOTS)
            if values.size:
                axis.plot([np.median(values)] * 2, [1 - level - 0.3, 1 - level + 0.3], color="#1c242c", lw=2)
        counts = [int(np.sum(predicted.y_true == level)) for level in range(2)]
        ticks = [f"true “{name}”\nn = {count}" for name, count in zip(target.levels, counts, strict=True)]
        axis.set_yticks([1, 0], ticks)
        axis.set_ylim(-0.5, 1.5)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel(f"predicted probability of “{target.levels[1]}”")

    return Drawing(
        title="What our model says of each subject",
        uri=drawn(draw, 5.0, 3.6),
        alt="Predicted probability of each subject by true class",
        caption="One dot is one subject, the bar is the median, dots are spread vertically so that they can be "
        f"seen. Look for two clouds that keep apart. The dashed line is the threshold, {chosen_on(assessment.ours)}.",
    )


def chosen_on(row: Row) -> str:
    """Where a binary model's threshold comes from, in words."""
    if row.num_held_out == 0:
        return "fixed beforehand"
    return f"chosen on {counted(row.num_held_out, 'subject')} who are not scored here"


def confusion(assessment: Assessment, target: Target) -> Drawing:
    """Confusion matrix of our model."""
    ours = assessment.ours
    size = len(target.levels)
    decided = decide(ours.predictions.output, target.kind, ours.threshold)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (ours.predictions.y_true.astype(np.int64), decided), 1)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(shown, ax=axis, label="share of the true class", shrink=0.8).outline.set_visible(False)  # type: ignore[operator]
        if size <= MOST_NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.55 else "#1c242c"
                axis.text(column, row, str(count), ha="center", va="center", color=colour)
        turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(size), target.levels, **(turned if size > MANY_CLASSES else {}))
        axis.set_yticks(range(size), target.levels)
        axis.set_xlabel("predicted")
        axis.set_ylabel("true")
        axis.spines[:].set_visible(False)

    side = min(8.4, max(3.4, 2.4 + 0.45 * size))
    threshold = f" Decided at the threshold, {chosen_on(ours)}." if target.kind == "binary" else ""
    return Drawing(
        title="Confusions of our model",
        uri=drawn(draw, side + 1.2, side),
        alt="Confusion matrix of our model",
        caption="Subjects of each true class (rows) by predicted class (columns), shaded by their share of the "
        f"row. Look for a dark diagonal, and for classes that are mixed up.{threshold}",
    )


def true_and_predicted(assessment: Assessment, target: Target) -> Drawing:
    """True against predicted values of our model, with the calibration slope."""
    predicted = assessment.ours.predictions
    guess, truth = predicted.output[:, 0], predicted.y_true
    varies = guess.size > 2 and np.ptp(guess) > 0
    slope, offset = np.polyfit(guess, truth, 1) if varies else (np.nan, np.nan)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        low, high = min(guess.min(), truth.min()), max(guess.max(), truth.max())
        axis.plot([low, high], [low, high], color="#9aa4ae", ls=(0, (4, 3)), lw=1, label="perfect")
        axis.axhline(target.mean, color="#c6cdd3", lw=1, label="training mean")
        axis.scatter(guess, truth, color=OUR_COLOUR, rasterized=guess.size > 500, **DOTS)
        if varies:
            ends = np.array([guess.min(), guess.max()])
            axis.plot(ends, offset + slope * ends, color=OUR_COLOUR, lw=2, label=f"fit, slope {number(slope, 2)}")
        axis.set_xlabel(f"predicted {target.column}")
        axis.set_ylabel(f"true {target.column}")
        axis.set_box_aspect(1)
        axis.legend(loc="best", fontsize=9)

    return Drawing(
        title="Predicted and true values of our model",
        uri=drawn(draw, 5.0, 4.7),
        alt=f"True against predicted values, calibration slope {number(slope, 2)}",
        caption=f"One dot is one subject. The calibration slope (true on predicted) is {number(slope, 2)}: 1 is "
        "calibrated, below 1 the predictions are too extreme, above 1 too timid. Look for a narrow cloud of "
        "predictions around the mean: high values guessed too low and low ones too high (regression to the mean).",
    )
