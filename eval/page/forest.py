"""The first table of the page: every model's score and our advantage, as numbers and drawn beside them.

The drawings are lines of the table itself: their positions are per cent of a cell's width, so they follow the width
of the page and its colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.page.verdict import OTHER_RUN, Standing, standing, strongest
from eval.scoring.assessment import Assessment, Row
from eval.scoring.bootstrap import Estimate
from eval.scoring.metrics import Metric

MARGIN = 6.0
"""Per cent of a cell left free at either end."""
NUM_TICKS = 5
WIDEST = 1.5
"""An interval is drawn at most so many times the spread of all scores beyond them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """From values to per cent of a cell's width."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Position in per cent, kept inside the cell."""
        share = (value - self.low) / (self.high - self.low)
        return round(MARGIN + (100 - 2 * MARGIN) * min(max(share, 0.0), 1.0), 2)

    @property
    def digits(self) -> int:
        """Decimals that tell the ticks apart."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(self.ticks[0]) or 1.0
        return max(0, -math.floor(math.log10(step) + 1e-9))


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A point with its interval in a cell, in per cent of its width; a piece that is undefined is None."""

    point: float | None
    low: float | None
    high: float | None
    cut: bool
    """The interval goes on beyond what is drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row of the table: what the assessment says, and where it is drawn."""

    row: Row
    is_strongest: bool
    standing: Standing
    score: Estimate
    score_mark: Mark
    advantage_mark: Mark | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Rows that belong together, under one name."""

    key: str
    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forest:
    """The whole table."""

    groups: tuple[Group, ...]
    scores: Scale
    advantages: Scale | None
    """None where there is nothing to compare with."""


def forest(assessment: Assessment, metric: Metric) -> Forest:
    """Lay out the table: baselines, controls, other runs, and our model below them.

    Parameters
    ----------
    assessment : Assessment
        The rows.
    metric : Metric
        The headline; `chance` is on the scale where there is one.
    """
    best = strongest(assessment)
    scores = scale([row.scores[metric.key] for row in assessment.rows], metric.chance)
    found = [row.advantage for row in assessment.rows if row.advantage is not None]
    advantages = scale(found, 0.0) if found else None

    def line(row: Row) -> Line:
        drawn = None if row.advantage is None or advantages is None else mark(row.advantage, advantages)
        score = row.scores[metric.key]
        return Line(
            row=row,
            is_strongest=row is best,
            standing=standing(row),
            score=score,
            score_mark=mark(score, scores),
            advantage_mark=drawn,
        )

    groups = [
        Group(key=key, name=name, lines=tuple(line(row) for row in rows)) for key, name, rows in grouped(assessment)
    ]
    return Forest(groups=tuple(groups), scores=scores, advantages=advantages)


def grouped(assessment: Assessment) -> list[tuple[str, str, list[Row]]]:
    """Key, name and rows of each group that has rows, in the order of the page."""
    runs = [row for row in assessment.controls if row.model.key.startswith(OTHER_RUN)]
    controls = [row for row in assessment.controls if not row.model.key.startswith(OTHER_RUN)]
    found = [
        ("baselines", "Baselines", list(assessment.baselines)),
        ("controls", "Controls: our model with something taken away", controls),
        ("runs", "Other trained models", runs),
        ("ours", "", [assessment.ours]),
    ]
    return [(key, name, rows) for key, name, rows in found if rows]


def scale(found: Sequence[Estimate], reference: float | None) -> Scale:
    """A scale that holds every value, the reference, and the intervals as far as they are not absurdly wide."""
    from matplotlib.ticker import MaxNLocator

    values = _finite([*(estimate.value for estimate in found), *([] if reference is None else [reference])])
    ends = _finite(end for estimate in found for end in (estimate.low, estimate.high))
    if not values:
        return Scale(low=0.0, high=1.0, ticks=(0.0, 0.5, 1.0))
    low, high = min(values), max(values)
    reach = WIDEST * (high - low) or max(ends, default=high) - min(ends, default=low)
    low, high = max(min([low, *ends]), low - reach), min(max([high, *ends]), high + reach)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    ticks = MaxNLocator(NUM_TICKS, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    shown = tuple(float(tick) for tick in ticks if low - slack <= tick <= high + slack)
    return Scale(low=low, high=high, ticks=shown or (low, high))


def mark(found: Estimate, on: Scale) -> Mark:
    """Where a point and its interval are drawn."""
    defined = math.isfinite(found.low) and math.isfinite(found.high)
    return Mark(
        point=on.at(found.value) if math.isfinite(found.value) else None,
        low=on.at(found.low) if defined else None,
        high=on.at(found.high) if defined else None,
        cut=defined and (found.low < on.low or found.high > on.high),
    )


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
