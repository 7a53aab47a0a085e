"""Figures of the controls: who is told apart, what confounds leave, and models in groups of subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eval.controls.confounding import Adjusted
from eval.controls.fingerprint import EDGES, Fingerprint
from eval.controls.groups import GroupScore
from eval.controls.sides import COMPARISONS
from eval.page.canvas import BEST_COLOUR, OTHER_COLOUR, OUR_COLOUR, Drawing, drawn
from eval.scoring.metrics import Metric
from eval.subjects import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCES = {"ours": "What our model's head sees", "fc": "Static connectivity"}
WIDTH = 9.0


def similarity_figure(found: Fingerprint) -> Drawing:
    """Similarities of a subject with itself and with others, in the hardest comparison."""
    comparison = found.rows[0].comparison
    rows = [row for row in found.rows if row.comparison == comparison]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
        for axis, row in zip(axes, rows, strict=True):
            for counts, colour, label in (
                (found.others[row.key], OTHER_COLOUR, "another subject"),
                (found.own[row.key], OUR_COLOUR, "the same subject"),
            ):
                axis.stairs(counts / max(1, counts.sum()), EDGES, fill=True, color=colour, alpha=0.55, label=label)
            axis.set_title(SOURCES[row.source])
            axis.locator_params(axis="x", nbins=5)
            axis.set_xlim(_range(found.others[row.key] + found.own[row.key]))
            axis.set_xlabel("cosine similarity, relative to the mean subject")
        axes[0].set_ylabel("share of the pairs")
        axes[-1].legend(loc="upper right")

    return Drawing(
        title="Similarity with oneself and with others",
        uri=drawn(draw, WIDTH, 3.2),
        alt="Histograms of similarities of each probe with its own subject and with the other subjects",
        caption=f"{COMPARISONS[comparison].capitalize()}, {rows[0].num_subjects} subjects. The further the two "
        "histograms are apart, the better people are told from each other.",
    )


def _range(counts: npt.NDArray) -> tuple[float, float]:
    """Where the bins are that hold anything."""
    held = np.flatnonzero(counts)
    return float(EDGES[max(0, held[0] - 1)]), float(EDGES[min(len(EDGES) - 1, held[-1] + 2)])


def adjusted_figure(rows: Sequence[Adjusted], *, ranked: bool, given: str) -> Drawing:
    """Correlation of each model's output with the target, and what confounds leave of it."""

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for place, row in enumerate(reversed(rows)):
            raw, left = (row.spearman, row.partial_spearman) if ranked else (row.pearson, row.partial_pearson)
            colour = OUR_COLOUR if row.model == OURS else OTHER_COLOUR
            axis.plot([left.low, left.high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axis.plot([left.value], [place], "o", color=colour, ms=7)
            axis.plot([raw.value], [place], "|", color="#2a333c", ms=13, mew=1.8)
        axis.axvline(0, color="#9aa4ae", lw=0.8)
        axis.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.set_xlabel(f"{'Spearman' if ranked else 'Pearson'} correlation of output and target")

    return Drawing(
        title="Correlation with the target, before and after confounds are taken out",
        uri=drawn(draw, WIDTH, 1.1 + 0.34 * len(rows)),
        alt="Correlation of each model's output with the target, plain and given all confounds",
        caption=f"Upright strokes: plain correlation. Dots with 95 % intervals: given {given}. A dot far left of its "
        "stroke means that the model's success is shared with confounds. Models that give everybody the same output "
        "have neither.",
    )


def groups_figure(
    groups: Sequence[GroupScore], labels: Mapping[str, str], metric: Metric, reference: str | None
) -> Drawing:
    """Our model and the strongest baseline in each group of subjects."""
    shown = [key for key in (OURS, reference) if key is not None]
    names = list(dict.fromkeys((row.role, row.name) for row in groups))
    by_key = {(row.role, row.name, row.model): row for row in groups}

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for place, name in enumerate(reversed(names)):
            for index, key in enumerate(shown):
                colour = OUR_COLOUR if key == OURS else BEST_COLOUR
                _dot(axis, by_key[(*name, key)], place + 0.14 * (1 - 2 * index) * (len(shown) > 1), colour)
        if metric.chance is not None:
            axis.axvline(metric.chance, color="#9aa4ae", lw=0.9, ls=(0, (4, 3)))
        ticks = [f"{name} (n = {by_key[(role, name, OURS)].num_subjects})" for role, name in reversed(names)]
        axis.set_yticks(range(len(names)), ticks)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_xlabel(metric.label)
        for key in shown:
            axis.plot([], [], "o-", color=OUR_COLOUR if key == OURS else BEST_COLOUR, label=labels[key])
        figure.legend(loc="outside upper left", ncols=2)

    return Drawing(
        title="In groups of subjects",
        uri=drawn(draw, WIDTH, 1.3 + 0.46 * len(names)),
        alt=f"{metric.label} of our model and of the strongest baseline by site and by third of motion",
        caption="95 % bootstrap intervals of the subjects of each group; wide ones are small groups."
        + (" The dashed line is chance." if metric.chance is not None else ""),
    )


def _dot(axis: Axes, row: GroupScore, height: float, colour: str) -> None:
    if np.isfinite(row.low):
        axis.plot([row.low, row.high], [height, height], color=colour, lw=2.2, solid_capstyle="round")
    if np.isfinite(row.value):
        axis.plot([row.value], [height], "o", color=colour, ms=6.5)
