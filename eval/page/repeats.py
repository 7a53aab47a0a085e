"""The page of several reports put together: `aggregate.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from eval.page.canvas import CLASS_COLOURS, Drawing, drawn
from eval.page.prose import counted, number, p_number
from eval.page.report import page_environment
from eval.page.section import Table
from eval.page.verdict import SIGNIFICANT
from eval.provenance import GENERATOR, software_versions
from eval.scoring.metrics import METRICS, headline
from eval.scoring.repeats import ModelSummary, Repeat, Spread
from eval.subjects import OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_SPLITS = 6


def aggregate_html(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> str:
    """The page; it needs nothing but itself."""
    splits = len({repeat.split_hash for repeat in repeats})
    return (
        page_environment()
        .get_template("aggregate.html.j2")
        .render(
            generator=GENERATOR,
            task=repeats[0].task,
            headline=headline(repeats[0].kind),
            counted_reports=counted(len(repeats), "report"),
            counted_splits=counted(splits, "split"),
            verdict=verdict(repeats, models),
            first=headline_table(repeats, models),
            metrics=metrics_table(repeats, models),
            values=values_table(repeats, models),
            drawing=draw_values(repeats, models),
            software=software_versions(),
        )
    )


def verdict(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> str:
    """One sentence about our model and all baselines."""
    baselines = [model for model in models if model.role == "baseline"]
    if not baselines:
        return "The reports hold no baselines to compare our model with"
    if any(model.test is None for model in baselines):
        return "One split: how our model compares with the baselines on other subjects is not tested"
    ahead = [model for model in baselines if _mean(model) > 0 and model.adjusted_p <= SIGNIFICANT]
    behind = [model.label for model in baselines if _mean(model) < 0 and model.adjusted_p <= SIGNIFICANT]
    if behind:
        return f"{behind[0]} beats our model" if len(behind) == 1 else f"{len(behind)} baselines beat our model"
    if len(ahead) == len(baselines):
        return "Our model beats every baseline"
    return f"Our model is shown to be ahead of {len(ahead)} of {counted(len(baselines), 'baseline')}"


def _mean(model: ModelSummary) -> float:
    return math.nan if model.test is None else model.test.mean


def spread_text(found: Spread) -> str:
    """'0.812 ± 0.031', or the mean alone where there is one value."""
    return number(found.mean) + (f" ± {number(found.sd)}" if math.isfinite(found.sd) else "")


def headline_table(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> Table:
    """The headline metric, and our advantage with its test over splits."""
    metric = headline(repeats[0].kind)
    rows = []
    for model in models:
        told = ("", "", "", "")
        if model.advantage is not None:
            test = model.test
            tested = test is not None and math.isfinite(test.p_value)
            told = (
                spread_text(model.advantage),
                f"{number(test.low)} to {number(test.high)}" if test is not None and tested else "not tested",
                p_number(test.p_value) if test is not None and tested else "",
                p_number(model.adjusted_p) if math.isfinite(model.adjusted_p) else "",
            )
        scores = model.scores[metric.key]
        rows.append((model.label, model.role, str(model.num_reports), spread_text(scores), *told))
    return Table(
        columns=(
            "Model",
            "Role",
            "Reports",
            f"{metric.label}, mean ± SD",
            "Advantage of ours",
            "95 % interval",
            "p",
            "p, adjusted",
        ),
        rows=tuple(rows),
    )


def metrics_table(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> Table:
    """Mean and SD of every metric."""
    metrics = METRICS[repeats[0].kind]
    rows = ((model.label, *(spread_text(model.scores[metric.key]) for metric in metrics)) for model in models)
    return Table(columns=("Model", *(metric.label for metric in metrics)), rows=tuple(rows))


def values_table(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> Table:
    """The headline metric of every model in every report."""
    key = headline(repeats[0].kind).key
    rows = (
        (repeat.folder.name, repeat.split_hash[:8], *(_there(model, key, index) for model in models))
        for index, repeat in enumerate(repeats)
    )
    return Table(columns=("Report", "Split", *(model.label for model in models)), rows=tuple(rows))


def _there(model: ModelSummary, key: str, index: int) -> str:
    value = model.scores[key].values[index]
    return number(value) if math.isfinite(value) else "–"


def draw_values(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> Drawing:
    """Every report's headline metric of every model, coloured by split."""
    metric = headline(repeats[0].kind)
    splits = list(dict.fromkeys(repeat.split_hash for repeat in repeats))
    heights = np.arange(len(models))[::-1]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        if metric.chance is not None:
            axis.axvline(metric.chance, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        for number_of, split in enumerate(splits):
            here = [index for index, repeat in enumerate(repeats) if repeat.split_hash == split]
            values = [[model.scores[metric.key].values[index] for index in here] for model in models]
            shift = 0.36 * ((number_of + 0.5) / len(splits) - 0.5)
            axis.scatter(
                np.ravel(values),
                np.repeat(heights - shift, len(here)),
                s=34,
                alpha=0.8,
                lw=0,
                color=CLASS_COLOURS[number_of % len(CLASS_COLOURS)],
                label=f"split {split[:8]}",
            )
        means = [model.scores[metric.key].mean for model in models]
        axis.scatter(means, heights, marker="|", s=420, color="#1c242c", lw=2, label="mean", zorder=3)
        axis.set_yticks(heights, [model.label for model in models])
        for label, model in zip(axis.get_yticklabels(), models, strict=True):
            label.set_fontweight("bold" if model.key == OURS else "normal")
        axis.set_ylim(-0.6, len(models) - 0.4)
        axis.set_xlabel(metric.label)
        axis.grid(axis="x", color="#e8ecef", lw=0.8)
        axis.set_axisbelow(True)
        if len(splits) <= LEGEND_SPLITS:
            figure.legend(loc="outside right center")

    chance = "" if metric.chance is None else f" The dashed line is chance ({metric.chance:g})."
    return Drawing(
        title="Every report",
        uri=drawn(draw, 9.2, 1.2 + 0.45 * len(models)),
        alt="; ".join(f"{model.label} {spread_text(model.scores[metric.key])}" for model in models),
        caption=f"One dot is one report, its colour the split; dots of one split are other trainings on the same "
        f"subjects. The bar is the mean.{chance} Look whether the order of the models is the same in every colour.",
    )
