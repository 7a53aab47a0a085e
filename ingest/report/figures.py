"""How the runs' figures are distributed, each with what to look for and what is normal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ingest.report.canvas import FAR, INK, LINE, USUAL, Panel, drawn
from ingest.report.measures import Floats, Measured
from ingest.report.prose import NO_MOTION, summary_of
from ingest.report.wording import number, of_runs, significant, tally
from shards.format import RunEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

_MOST_KINDS = 7
_MOST_POINTS = 1500
_STEP_ERROR = {"int8": 100 / 16 / 12**0.5, "int16": 100 / 1024 / 12**0.5}
"""rms of an even spread over one step of SD/16 or SD/1024, % of the SD."""
_FLAGGED = " Orange, and a triangle below the axis: runs that stand out."


def draw_all(measured: Mapping[str, Measured], rows: Sequence[RunEntry], dtype: str) -> list[Panel]:
    """The panels, in the order of the page."""
    together = [_together(measured["tsnr"], measured["fd"])] if measured["fd"].known.any() else []
    return [
        _tsnr(measured["tsnr"]),
        _motion(measured["fd"]),
        *together,
        _intensity(measured["intensity"]),
        _error(measured["error"], dtype),
        _length(measured["minutes"], rows),
    ]


def _tsnr(found: Measured) -> Panel:
    what = (
        "A run's tSNR is the median over voxels of temporal mean over temporal SD. After preprocessing, 30 to 100 is "
        "common at 3 T with voxels of 2 to 3 mm; small voxels and short TRs lower it."
    )
    return _panel(found, "Signal to noise", "tSNR", what, "Compare within the set, and look for a tail on the left.")


def _motion(found: Measured) -> Panel:
    if not found.known.any():
        return Panel(title="Motion", svg="", caption=NO_MOTION)
    what = (
        "Mean framewise displacement (Power et al. 2012): the head's movement from frame to frame. Below 0.2 mm is a "
        "still head; studies often leave out runs above 0.5 mm."
    )
    return _panel(found, "Motion", "mean FD (mm)", what, "Dashed: 0.5 mm. Look for a tail on the right.", limit=0.5)


def _intensity(found: Measured) -> Panel:
    if not found.known.any():
        return Panel(title="Intensity", svg="", caption="Not recorded when these runs were ingested.")
    what = (
        "The median over voxels of the temporal mean, in the source's own units. Some pipelines scale every run to one "
        "value (10,000 or 1,000), others keep the scanner's."
    )
    look = "Look for a second heap: runs of another scanner, pipeline or scaling."
    return _panel(found, "Intensity", "median intensity", what, look)


def _error(found: Measured, dtype: str) -> Panel:
    title = "Quantisation error"
    known = found.values[found.known]
    if not known.any():
        return Panel(title=title, svg="", caption="None: every run is stored without loss.")
    what = "The rms difference between what is stored and what it was made from, in % of the temporal SD."
    lossless = len(found.values) - known.size
    if lossless:
        what += f" {of_runs(lossless)} stored without loss {'is' if lossless == 1 else 'are'} left out."
    look, step = "Look for runs to the right.", _STEP_ERROR.get(dtype)
    if step is not None:
        what += f" The step of {dtype} by itself gives {significant(step)} %."
        look = (
            "Dashed: that of the step alone. Look for runs to the right: a few large deviations made the steps of many "
            "voxels wider."
        )
    return _panel(found, title, "rms error (% of SD)", what, look, limit=step)


def _panel(found: Measured, title: str, label: str, what: str, look: str, limit: float | None = None) -> Panel:
    """A histogram of a measure; a single value needs none."""
    values, far = found.values[found.known], found.far[found.known]
    caption = f"{summary_of(found)} {what}".strip()
    if values.size < 2:
        return Panel(title=title, svg="", caption=caption)
    by_ratio = bool((values > 0).all() and values.max() > 100 * values.min())

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        _histogram(axis, values, far, by_ratio, _span(found))
        low, high = axis.get_xlim()
        if limit is not None and low <= limit <= high:
            axis.axvline(limit, color=INK, lw=1.1, ls=(0, (4, 3)), zorder=3)
        axis.set_xlabel(label + (", logarithmic" if by_ratio else ""))

    svg = drawn(draw, found.measure.key, f"{title}: {summary_of(found)}")
    return Panel(title=title, svg=svg, caption=f"{caption} {look}{_FLAGGED if far.any() else ''}")


def _histogram(axis: Axes, values: Floats, far: NDArray[np.bool_], by_ratio: bool, span: float) -> None:
    """Runs per bin; those that stand out lie on top, and below the axis where a bar would be too low to see."""
    edges = _edges(np.log10(values), 0.0) if by_ratio else _edges(values, span)
    if by_ratio:
        edges = 10**edges
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    usual, _ = np.histogram(values[~far], edges)
    beyond, _ = np.histogram(values[far], edges)
    width = np.diff(edges)
    axis.bar(edges[:-1], usual, 0.9 * width, align="edge", color=USUAL)
    axis.bar(edges[:-1], beyond, 0.9 * width, bottom=usual, align="edge", color=FAR)
    axis.set_ylim(0, 1.06 * max(1, int((usual + beyond).max())))
    marks = np.unique(edges[:-1][beyond > 0] + 0.45 * width[beyond > 0])
    axis.plot(
        marks, np.full(marks.shape, -0.045), "^", color=FAR, ms=4.5, clip_on=False, transform=axis.get_xaxis_transform()
    )
    axis.tick_params(axis="x", pad=7 if far.any() else 4)
    axis.yaxis.set_major_locator(_whole_numbers())
    axis.grid(axis="y", lw=0.8)
    axis.set_ylabel("runs")


def _whole_numbers() -> Locator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, integer=True)


def _span(found: Measured) -> float:
    """The least width of an axis: differences below what counts shall not look large."""
    least = found.measure.least
    return 4 * (least if found.measure.absolute else least * max(abs(found.median), 1e-6))


def _edges(values: Floats, span: float) -> Floats:
    low, high = float(values.min()), float(values.max())
    missing = max(0.0, span - (high - low))
    usual = len(np.histogram_bin_edges(values, "auto")) - 1 if high > low else 1
    return np.linspace(low - missing / 2, high + missing / 2, min(max(usual, 16), 36) + 1)


def _together(tsnr: Measured, fd: Measured) -> Panel:
    title = "Motion against signal to noise"
    both = tsnr.known & fd.known
    if np.count_nonzero(both) < 3:
        return Panel(title=title, svg="", caption="Motion is known for fewer than three runs.")
    x, y = fd.values[both], tsnr.values[both]
    far = (tsnr.far | fd.far)[both]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        cells = None if x.size <= _MOST_POINTS else [np.linspace(v.min(), v.max(), n) for v, n in ((x, 43), (y, 23))]
        for chosen, colour, marker in ((~far, USUAL, "o"), (far, FAR, "^")):
            if cells is None:
                axis.plot(x[chosen], y[chosen], marker, color=colour, ms=4.5, alpha=0.75, mew=0)
            else:
                _cells(axis, x[chosen], y[chosen], cells, colour, marker)
        axis.set_xlabel("mean FD (mm)")
        axis.set_ylabel("tSNR")
        axis.grid(lw=0.8)
        axis.spines["bottom"].set_color(LINE)

    what = "Each point is a run" if x.size <= _MOST_POINTS else "The larger a point, the more runs lie there"
    return Panel(
        title=title,
        svg=drawn(draw, "together", f"tSNR against mean FD of {of_runs(int(both.sum()))}"),
        caption=f"{what}; orange triangles stand out in either. Motion lowers tSNR, so a slope down to the right is "
        "normal. Look at the lower left: noise without motion is the scanner's or the pipeline's.",
    )


def _cells(axis: Axes, x: Floats, y: Floats, cells: list[Floats], colour: str, marker: str) -> None:
    """One mark for each cell that has runs, its area by their number."""
    counts, _, _ = np.histogram2d(x, y, cells)
    column, line = np.nonzero(counts)
    middles = [0.5 * (edges[1:] + edges[:-1]) for edges in cells]
    area = 3 + 19 * counts[column, line] / max(1.0, counts.max())
    axis.scatter(middles[0][column], middles[1][line], s=area, color=colour, marker=marker, lw=0)


def _length(found: Measured, rows: Sequence[RunEntry]) -> Panel:
    title = "Length and repetition time"
    kinds = Counter((row.num_frames, row.tr_s) for row in rows)
    if len(kinds) == 1:
        (frames, tr), _ = kinds.most_common(1)[0]
        minutes = number(frames * tr / 60, 1)
        return Panel(
            title=title,
            svg="",
            caption=f"The same for every run: {frames:,} frames at a TR of {tr:g} s ({minutes} min).",
        )
    times = tally((f"{row.tr_s:g} s" for row in rows), "run")
    look = "Look for short runs (stopped early) and for a second TR."
    if len(kinds) > _MOST_KINDS:
        return _panel(found, title, "length (min)", f"TR: {times}.", look)

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        ordered = sorted(kinds.items(), key=lambda item: item[0], reverse=True)
        heights = np.arange(len(ordered))
        counts = [count for _, count in ordered]
        axis.barh(heights, counts, 0.7, color=USUAL)
        for height, count in zip(heights, counts, strict=True):
            at = (count, float(height))
            axis.annotate(f"{count:,}", at, xytext=(4, 0), textcoords="offset points", va="center", color=INK)
        axis.set_yticks(heights, [f"{frames:,} × {tr:g} s" for (frames, tr), _ in ordered])
        axis.set_xlim(0, 1.15 * max(counts))
        axis.set_xlabel("runs")
        axis.xaxis.set_major_locator(_whole_numbers())

    height = 0.9 + 0.28 * len(kinds)
    svg = drawn(draw, "length", f"Frames and TR: {times}", height=max(2.05, height))
    return Panel(title=title, svg=svg, caption=f"TR: {times}. {summary_of(found)} {look}")
