"""A run as a picture: global signal, carpet of residuals, slices of mean and SD.

Legend: T frame, V voxel of the mask, S voxel shown, C column of the carpet, XYZ the grid.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.reader import ShardSet

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

Floats = NDArray[np.floating]

MOST_VOXELS = 600
"""Rows of the carpet."""
MOST_COLUMNS = 1500
CARPET_SD = 2.0
"""Residuals beyond this are black or white."""
_BLOCK_BYTES = 16_000_000
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
}


def draw_run(shard_set: ShardSet, run: int, kind: str) -> bytes:
    """Draw a run, read block by block.

    Parameters
    ----------
    shard_set, run
        The set and the run's number.
    kind
        `png`, `pdf` or `svg`.

    Returns
    -------
    bytes
        Of the picture's file.

    Raises
    ------
    ShardError
        The run's bytes are damaged or cannot be read.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entry = shard_set.runs[run]
    carpet_CS, global_T = _read(shard_set, run)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 7), layout="constrained")
        FigureCanvasAgg(figure)
        minutes = entry.num_frames * entry.tr_s / 60
        figure.suptitle(
            f"{entry.run_id}: {entry.num_frames} frames, {minutes:.1f} min", x=0.01, ha="left", weight="bold"
        )
        rows = figure.add_gridspec(2, 1, height_ratios=(5, 3))
        upper, lower = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
        _draw_time(upper, carpet_CS, global_T, entry.tr_s)
        _draw_images(lower, shard_set, run)
        room = io.BytesIO()
        figure.savefig(room, format=kind, dpi=120)
    return room.getvalue()


def carpet_voxels(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Voxels of a carpet, (S,): evenly spaced from the top of the brain down; all if there are few."""
    x, y, z = np.nonzero(mask)
    order = np.lexsort((x, y, -z))
    return order[np.unique(np.linspace(0, len(order) - 1, MOST_VOXELS).round().astype(np.intp))]


def _read(shard_set: ShardSet, run: int) -> tuple[Floats, Floats]:
    """The carpet, (column, voxel shown), and the mean residual of all varying voxels, (time,)."""
    shown_S = carpet_voxels(shard_set.mask)
    varying_V = shard_set.statistics(run).std > 0
    blocks = [
        (residual_TV[:, shown_S], residual_TV.sum(1) / max(1, int(varying_V.sum())))
        for residual_TV in _blocks(shard_set, run)
    ]
    carpet_TS = np.concatenate([block for block, _ in blocks])
    per_column = math.ceil(len(carpet_TS) / MOST_COLUMNS)
    starts = np.arange(0, len(carpet_TS), per_column)
    counts = np.diff([*starts, len(carpet_TS)])
    carpet_CS = np.add.reduceat(carpet_TS, starts, axis=0) / counts[:, None]
    return carpet_CS, np.concatenate([row for _, row in blocks])


def _blocks(shard_set: ShardSet, run: int) -> Iterator[NDArray[np.float32]]:
    num_frames = shard_set.runs[run].num_frames
    step = max(1, _BLOCK_BYTES // (4 * shard_set.num_voxels))
    for start in range(0, num_frames, step):
        yield shard_set.residual(run, start, min(step, num_frames - start))


def _draw_time(figure: SubFigure, carpet_CS: Floats, global_T: Floats, tr_s: float) -> None:
    above, carpet = figure.subplots(2, 1, sharex=True, height_ratios=(1, 4))
    end_s = len(global_T) * tr_s
    above.plot((np.arange(len(global_T)) + 0.5) * tr_s, global_T, color="#0f5ea8", linewidth=0.9)
    above.axhline(0, color="#9aa4ae", linewidth=0.6)
    above.set(title="global signal", ylabel="SD")
    above.spines[["top", "right"]].set_visible(False)
    image = carpet.imshow(
        carpet_CS.T, cmap="gray", vmin=-CARPET_SD, vmax=CARPET_SD, aspect="auto", extent=(0, end_s, 0, 1),
        interpolation="nearest",
    )  # fmt: skip
    carpet.set(title=f"residuals of {carpet_CS.shape[1]} voxels, top of the brain first", xlabel="s", yticks=[])
    carpet.set_xlim(0, end_s)
    figure.colorbar(image, ax=carpet, label="SD", pad=0.01, aspect=15)


def _draw_images(figure: SubFigure, shard_set: ShardSet, run: int) -> None:
    stats = shard_set.statistics(run)
    boxes = [_box(shard_set, across) for across in range(3)]
    widths = [box[0][0].stop - box[0][0].start for box in boxes]
    millimetres = [width * box[1][0] for width, box in zip(widths, boxes, strict=True)]
    places = figure.subplots(1, 6, width_ratios=2 * millimetres)
    for (title, values_V), row in zip(
        (("mean", stats.mean), ("temporal SD", stats.std)), (places[:3], places[3:]), strict=True
    ):
        low, high = (float(limit) for limit in np.percentile(values_V, (1, 99)))
        low = min(0.0, low)
        volume_XYZ = shard_set.unmask(values_V)
        for across, place in enumerate(row):
            box, edges = boxes[across]
            flat = np.take(volume_XYZ, _middle(shard_set.mask, across), axis=across)[box]
            place.imshow(flat.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=edges[1] / edges[0])
            place.set_axis_off()
            place.set_anchor("N")
        row[0].set_title(f"{title}, black {low:.4g}, white {high:.4g}")
        row[2].set_title("left is left", loc="right", color="#5a6570")


def _box(shard_set: ShardSet, across: int) -> tuple[tuple[slice, slice], tuple[float, float]]:
    """The mask's bounding box in a slice across an axis, and the edges of its voxels in mm."""
    found = np.nonzero(shard_set.mask)
    first, second = (axis for axis in range(3) if axis != across)
    sides = (slice(int(found[axis].min()), int(found[axis].max()) + 1) for axis in (first, second))
    edges = shard_set.grid.voxel_mm
    return (next(sides), next(sides)), (edges[first], edges[second])


def _middle(mask: NDArray[np.bool_], axis: int) -> int:
    return round(float(np.nonzero(mask)[axis].mean()))
