"""Figures of an explanation: maps on the mean image, the checks, attention by lag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from eval.explain.explanation import Explanation
from eval.page.canvas import CLASS_COLOURS, OTHER_COLOUR, OUR_COLOUR, Drawing, drawn
from eval.scoring.metrics import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = (("z", 6), ("x", 6))
"""Direction and number of the slices of each row."""
HEAD_COLOURS = "viridis"


def draw_significance(found: Explanation) -> Drawing:
    """The map of the group against shuffled labels."""
    passed = int((np.abs(found.z_V) >= found.threshold).sum())
    limit = max(1.2 * found.threshold, float(np.abs(found.z_V).max()))

    def draw(figure: Figure) -> None:
        for display in _slices(figure, found, found.z_V, "RdBu_r", (-limit, limit), "z against shuffled labels"):
            if passed:
                display.add_contours(
                    found.image(np.abs(found.z_V)), levels=[found.threshold], colors="black", linewidths=0.9
                )

    return Drawing(
        title="Which voxels speak for the target",
        uri=drawn(draw, 9.6, 3.5),
        alt=f"Slices of the map of the group, {passed} voxels pass the threshold",
        caption="Map of the group on the mean image of the explained subjects, smoothed, as z against shuffled labels; "
        "axial slices above, sagittal slices below, position in mm. Red voxels speak for the subjects' true "
        f"{'classes' if found.target.levels else 'values'}, blue ones against. The fainter the colour, the closer to "
        f"0; black lines surround |z| above {found.threshold:.2f}, which chance passes anywhere in the brain in 5 % of "
        "shuffles.",
    )


def draw_importance(found: Explanation) -> Drawing:
    """SmoothGrad-squared."""
    root_V = np.sqrt(found.importance_V)
    top = float(np.quantile(root_V, 0.995)) or 1.0

    def draw(figure: Figure) -> None:
        _slices(figure, found, root_V, "inferno", (0.0, top), f"attribution, rms{unit(found)}")

    return Drawing(
        title="Which voxels the output depends on",
        uri=drawn(draw, 9.6, 3.5),
        alt="Slices of the SmoothGrad-squared map",
        caption="SmoothGrad-squared: root mean square of what a voxel adds to the output, with the sum over the frames "
        "of a window under the root, whatever the sign and whoever the subject. A bright voxel moves the output, if "
        "only by chance: for where the label is, the map of the group is the better guide.",
    )


def draw_checks(found: Explanation) -> Drawing:
    """Completeness, and the likeness of maps that should and should not be alike."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.5]})
        _draw_completeness(left, found)
        _draw_likeness(right, found)

    return Drawing(
        title="Can the maps be believed?",
        uri=drawn(draw, 9.6, 3.1),
        alt=f"Completeness {found.completeness[0]:.2%}; rank correlations of maps",
        caption="Left: for each subject, the sum of its map against the change of the output that the map explains; "
        "the points should lie on the line. Right: rank correlation over voxels of two maps of the group. Halves of "
        "the subjects should agree (right of 0, each grey dot is a halving); models with shuffled weights should not "
        "have our map (near 0).",
    )


def draw_attention(found: Explanation) -> Drawing:
    """Attention weights by lag, a panel a layer, a line a head."""
    import matplotlib

    weight_NHG = found.attention.mean_NHG
    num_layers, num_heads, _ = weight_NHG.shape
    shown = _spread_layers(num_layers)
    lag = found.attention.lags * (found.tr_s or 1.0)
    seen = np.flatnonzero(found.attention.count_G > 0)
    colours = matplotlib.colormaps[HEAD_COLOURS](np.linspace(0.05, 0.9, num_heads))

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axis, layer in zip(axes, shown, strict=True):
            for head in range(num_heads):
                axis.plot(lag[seen], weight_NHG[layer, head, seen], color=colours[head], lw=1.6, label=str(head + 1))
            axis.set_title(f"layer {layer + 1} of {num_layers}")
            axis.set_xlabel("lag of the frame looked at (s)" if found.tr_s else "lag of the frame looked at (frames)")
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("mean attention weight")
        lines, names = axes[0].get_legend_handles_labels()
        figure.legend(lines, names, title="head", loc="outside right upper", ncols=1 + (num_heads - 1) // 8)

    return Drawing(
        title="Attention over time",
        uri=drawn(draw, 9.6, 2.9),
        alt="Mean attention weight by lag for each layer and head",
        caption="Mean weight that a frame gives to the frame so far away from it (negative is the past, 0 the frame "
        "itself). A peak away from 0 is a head that looks at a certain distance; a flat line is one that averages. "
        "Long lags exist for few frames of a window only, and where few frames are visible each gets more.",
    )


def unit(found: Explanation) -> str:
    """Unit of attributions, for an axis."""
    return " (logit)" if found.target.levels else f" (units of {found.target.column})"


def _slices(
    figure: Figure, found: Explanation, values_V: Floats, colours: str, limits: tuple[float, float], label: str
) -> list[Any]:
    """Rows of slices drawn by nilearn, a colour bar beside them; returns nilearn's displays."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from nilearn.plotting import plot_stat_map

    figure.set_layout_engine("none")
    image, background = found.image(values_V), found.image(found.background_V)
    opaque = 0.7 * max(abs(limit) for limit in limits)
    displays = []
    for row, (direction, count) in enumerate(ROWS):
        height = 1 / len(ROWS)
        displays.append(
            plot_stat_map(
                image,
                bg_img=background,
                display_mode=direction,
                cut_coords=_cuts(found, "xyz".index(direction), count),
                figure=figure,
                axes=(0.0, 1 - (row + 1) * height, 0.9, height),
                cmap=colours,
                vmin=limits[0],
                vmax=limits[1],
                symmetric_cbar=limits[0] < 0,
                colorbar=False,
                black_bg=False,
                draw_cross=False,
                threshold=None,
                transparency=found.image(np.clip(np.abs(values_V) / opaque, 0.0, 0.999)),
                transparency_range=[0.1, 1.0],  # nilearn refuses what rounds to above 1
                resampling_interpolation="nearest",
            )
        )
    bar = figure.add_axes((0.925, 0.15, 0.014, 0.7))
    figure.colorbar(ScalarMappable(Normalize(*limits), colours), cax=bar, label=label)
    return displays


def _cuts(found: Explanation, axis: int, count: int) -> list[float]:
    """Positions in mm that cut the mask evenly, its rim left out."""
    low, high = np.quantile(found.positions_mm[:, axis], [0.04, 0.96])
    return [float(cut) for cut in np.linspace(low, high, count)]


def _draw_completeness(axis: Axes, found: Explanation) -> None:
    change = np.array([each.change for each in found.subjects])
    attributed = np.array([each.attributed for each in found.subjects])
    ends = np.array([min(change.min(), attributed.min()), max(change.max(), attributed.max())])
    axis.plot(ends, ends, color="#9aa4ae", lw=1)
    right = np.array([each.correct is not False for each in found.subjects])
    for chosen, colour, name in ((right, OUR_COLOUR, "right"), (~right, CLASS_COLOURS[2], "wrong")):
        label = f"predicted {name}" if found.target.levels else None
        if chosen.any():
            axis.scatter(change[chosen], attributed[chosen], s=24, color=colour, alpha=0.75, lw=0, label=label)
    if found.target.levels:
        axis.legend(loc="upper left", handletextpad=0.2)
    axis.set_xlabel(f"change of the output{unit(found)}")
    axis.set_ylabel("sum of the map")
    axis.set_title("Completeness")


def _draw_likeness(axis: Axes, found: Explanation) -> None:
    rows: list[tuple[str, Floats]] = [("halves of the subjects", found.halves)]
    for level, name in (("readout", "readout shuffled"), ("everything", "all weights shuffled")):
        rows.append((name, np.array([each.group for each in found.randomised if each.level == level])))
    heights = np.arange(len(rows))[::-1]
    axis.axvline(0, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
    for (_, values), height in zip(rows, heights, strict=True):
        faint = 0.35 if len(values) > len(found.randomised) else 0.9
        axis.plot(values, np.full(len(values), height), "o", color=OTHER_COLOUR, alpha=faint, ms=5, mew=0)
        if len(values):
            axis.plot([values.mean()], [height], "|", color=OUR_COLOUR, ms=18, mew=2.5)
    axis.set_yticks(heights, [name for name, _ in rows])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlim(-1, 1)
    axis.set_xlabel("rank correlation of maps of the group (bar: mean)")
    axis.set_title("Alike, and unlike")


def _spread_layers(num_layers: int) -> list[int]:
    """At most four layers, first and last among them."""
    return sorted({round(k) for k in np.linspace(0, num_layers - 1, min(4, num_layers))})
