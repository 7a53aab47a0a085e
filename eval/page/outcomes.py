"""Figures of what models say of each subject: one set per kind of target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eval.page.canvas import CLASS_COLOURS, DASHES, DOTS, OUR_COLOUR, Drawing, colour_of, drawn
from eval.page.prose import number
from eval.scoring.assessment import REFERENCE, Assessment
from eval.scoring.metrics import decide, probabilities
from eval.subjects import OURS
from eval.targets import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def roc(assessment: Assessment, target: Target) -> Drawing:
    """ROC curves of all models."""
    from sklearn.metrics import roc_curve

    others = [row for row in assessment.rows if row.model.key not in (OURS, REFERENCE)]
    dashes = {row.model.key: DASHES[1 + index % 3] for index, row in enumerate(others)}

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="#c6cdd3", lw=1)
        for row in assessment.rows:
            wrong, right, _ = roc_curve(row.predictions.y_true, row.predictions.output[:, 0], drop_intermediate=False)
            axis.plot(
                wrong,
                right,
                color=colour_of(row.model.key),
                lw=2.6 if row.model.key == OURS else 1.6,
                ls=dashes.get(row.model.key, "solid"),
                label=f"{row.model.label}  {number(row.scores['auroc'].value)}",
                zorder=3 if row.model.key == OURS else 2,
            )
        axis.set_xlabel(f"share of “{target.levels[0]}” called “{target.levels[1]}”")
        axis.set_ylabel(f"share of “{target.levels[1]}” found")
        axis.set_box_aspect(1)
        axis.set_xlim(-0.01, 1.01)
        axis.set_ylim(-0.01, 1.01)
        figure.legend(title="AUROC", alignment="left", loc="outside right center")

    return Drawing(
        title="ROC curves",
        uri=drawn(draw, 6.9, 4.3),
        alt="ROC curves of all models",
        caption="Each curve runs through all thresholds; the diagonal is chance. Look for a curve that lies "
        "above another everywhere. The steps are single subjects: coarse steps mean few of them.",
    )


def score_distribution(assessment: Assessment, target: Target) -> Drawing:
    """Probability of each subject by true class."""
    predicted = assessment.ours.predictions
    chance = probabilities(predicted.output, "binary")[:, 1]
    rng = np.random.default_rng(0)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(0.5, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        for level in range(2):
            values = chance[predicted.y_true == level]
            heights = 1 - level + rng.uniform(-0.2, 0.2, values.size)
            axis.scatter(values, heights, color=CLASS_COLOURS[level], rasterized=values.size > 500, **DOTS)
            axis.plot([np.median(values)] * 2, [1 - level - 0.3, 1 - level + 0.3], color="#1c242c", lw=2)
            axis.text(1.015, 1 - level, f"n = {values.size}", va="center", color="#5a6570")
        axis.set_yticks([1, 0], [f"true “{name}”" for name in target.levels])
        axis.set_ylim(-0.5, 1.5)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel(f"predicted probability of “{target.levels[1]}”")

    return Drawing(
        title="What our model says of each subject",
        uri=drawn(draw, 7.6, 2.5),
        alt="Predicted probability of each subject by true class",
        caption="One dot is one subject, the bar is the median, dots are spread vertically so that they can be "
        "seen. Look for two "
        "clouds that keep apart, and whether the threshold of 0.5 (dashed) lies between them: if not, the "
        "ranking may be right while the decisions are not.",
    )


def confusion(assessment: Assessment, target: Target) -> Drawing:
    """Confusion matrix of our model."""
    predicted = assessment.ours.predictions
    size = len(target.levels)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (predicted.y_true.astype(np.int64), decide(predicted.output, "multiclass")), 1)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 else "#1c242c"
            axis.text(column, row, str(count), ha="center", va="center", color=colour)
        axis.set_xticks(range(size), target.levels, rotation=30 if size > 4 else 0)
        axis.set_yticks(range(size), target.levels)
        axis.set_xlabel("predicted")
        axis.set_ylabel("true")
        axis.spines[:].set_visible(False)

    side = min(8.0, 2.2 + 0.55 * size)
    return Drawing(
        title="Confusions of our model",
        uri=drawn(draw, side + 0.6, side),
        alt="Confusion matrix of our model",
        caption="Subjects of each true class (rows) by predicted class (columns), shaded by their share of the "
        "row. Look for a dark diagonal, and for pairs of classes that are mixed up.",
    )


def calibration(assessment: Assessment, target: Target) -> Drawing:
    """True against predicted values of our model, with the calibration slope."""
    predicted = assessment.ours.predictions
    guess, truth = predicted.output[:, 0], predicted.y_true
    varies = guess.size > 2 and np.ptp(guess) > 0
    slope, offset = np.polyfit(guess, truth, 1) if varies else (np.nan, np.nan)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        low, high = min(guess.min(), truth.min()), max(guess.max(), truth.max())
        axis.plot([low, high], [low, high], color="#9aa4ae", ls=(0, (4, 3)), lw=1, label="perfect")
        axis.scatter(guess, truth, color=OUR_COLOUR, rasterized=guess.size > 500, **DOTS)
        if varies:
            ends = np.array([guess.min(), guess.max()])
            axis.plot(ends, offset + slope * ends, color=OUR_COLOUR, lw=2, label=f"fit, slope {number(slope, 2)}")
        axis.set_xlabel(f"predicted {target.column}")
        axis.set_ylabel(f"true {target.column}")
        axis.set_box_aspect(1)
        figure.legend(loc="outside right center")

    return Drawing(
        title="Predicted and true values of our model",
        uri=drawn(draw, 6.4, 4.4),
        alt=f"True against predicted values, calibration slope {number(slope, 2)}",
        caption=f"One dot is one subject. The calibration slope (true on predicted) is {number(slope, 2)}: 1 is "
        f"calibrated, below 1 "
        "the predictions are too extreme, above 1 too timid. Look for a narrow cloud of predictions around the mean: "
        "high values guessed too low and low ones too high (regression to the mean).",
    )
