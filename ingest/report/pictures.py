"""Pictures of runs: the mean image in three slices, and the carpet of its residuals with the global signal.

Legend: T frame, V voxel of the mask, S voxel shown, R row of the carpet, C its column, XYZ the grid.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.reader import ShardSet

Floats = NDArray[np.floating]
Bytes = NDArray[np.uint8]

MOST_VOXELS = 240
MOST_COLUMNS = 600
MOST_MEANS = 24
CARPET_SD = 2.0
"""Residuals beyond this are black or white."""
_BLOCK_FRAMES = 64
_PANEL_PX = 200
_GAP_PX = 8
_GREYS = 16  # enough for noise, and half the bytes
_BLUE, _ORANGE = (86, 180, 233), (230, 159, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPicture:
    """What the page shows of one run; images are data URIs."""

    slices: str
    carpet: str
    trace: str
    """Points of an SVG polyline in a box of 1000 x 100; the middle is the mean."""
    trace_sd: float
    """Half the height of that box, in units of the voxels' SD."""
    num_voxels: int
    """In the carpet."""
    frames_per_column: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskPicture:
    """The set's mask over the average of some runs' mean images."""

    images: tuple[str, ...]
    """Axial slices from the bottom up."""
    num_runs: int
    num_silent: int
    """Voxels of the mask that are orange: see `draw_mask`."""


def draw_run(shard_set: ShardSet, run: int) -> RunPicture:
    """Read one run, block by block, and draw it.

    Raises
    ------
    ShardError
        Its bytes are damaged or gone.
    """
    mean_XYZ = shard_set.unmask(shard_set.statistics(run).mean)
    shown_S = carpet_voxels(shard_set.mask)
    residual_TS = _residuals(shard_set, run, shown_S)
    per_column = math.ceil(len(residual_TS) / MOST_COLUMNS)
    columns_CS = _binned(residual_TS, per_column)
    trace_C = columns_CS.mean(1)
    limit = max(0.25, float(np.abs(trace_C).max()))
    return RunPicture(
        slices=_png(_three_slices(mean_XYZ, shard_set.mask, shard_set.grid.voxel_mm)),
        carpet=_png(_grey(columns_CS.T, -CARPET_SD, CARPET_SD, _GREYS)),
        trace=_polyline(trace_C, limit),
        trace_sd=limit,
        num_voxels=len(shown_S),
        frames_per_column=per_column,
    )


def carpet_voxels(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Voxels of a carpet, (S,): evenly spaced from the top of the brain down; all if there are few."""
    x, y, z = np.nonzero(mask)
    order = np.lexsort((x, y, -z))
    return order[np.unique(np.linspace(0, len(order) - 1, MOST_VOXELS).round().astype(np.intp))]


def draw_mask(shard_set: ShardSet, runs: Sequence[int]) -> MaskPicture:
    """Axial slices of the average mean image of up to `MOST_MEANS` of the runs, the mask outlined.

    Orange are voxels of the mask that are constant in at least half of these runs, or whose average
    is below a tenth of its median (in units of each run's own median).
    """
    picked = sorted({runs[place] for place in np.linspace(0, len(runs) - 1, MOST_MEANS).round().astype(int)})
    total_V = np.zeros(shard_set.num_voxels)
    constant_V = np.zeros(shard_set.num_voxels)
    for run in picked:
        stats = shard_set.statistics(run)
        middle = float(np.median(stats.mean))
        total_V += stats.mean / (middle if middle > 0 else 1)
        constant_V += stats.std == 0
    average_V = total_V / len(picked)
    middle = float(np.median(average_V))
    silent_V = constant_V >= len(picked) / 2
    if middle > 0:
        silent_V |= average_V < middle / 10
    slices = _mask_slices(shard_set, average_V, silent_V)
    return MaskPicture(images=tuple(map(_png, slices)), num_runs=len(picked), num_silent=int(silent_V.sum()))


def _residuals(shard_set: ShardSet, run: int, shown_S: NDArray[np.intp]) -> Floats:
    gain_V, shift_V = shard_set.residual_affine(run)
    num_frames = shard_set.runs[run].num_frames
    residual_TS = np.empty((num_frames, len(shown_S)), np.float32)
    for start in range(0, num_frames, _BLOCK_FRAMES):
        stored_TV = shard_set.read_window(run, start, min(_BLOCK_FRAMES, num_frames - start))
        residual_TS[start : start + len(stored_TV)] = stored_TV[:, shown_S] * gain_V[shown_S]
    return residual_TS if shift_V is None else residual_TS + shift_V[shown_S]


def _binned(values_TS: Floats, per_column: int) -> Floats:
    """Means of `per_column` frames; the last column may have fewer."""
    starts = np.arange(0, len(values_TS), per_column)
    counts = np.diff([*starts, len(values_TS)])
    means: Floats = np.add.reduceat(values_TS, starts, axis=0) / counts[:, None]
    return means


def _polyline(trace_C: Floats, limit: float) -> str:
    x = (np.arange(len(trace_C)) + 0.5) * (1000 / len(trace_C))
    y = 50 - 46 * trace_C / limit
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _three_slices(volume_XYZ: Floats, mask: NDArray[np.bool_], voxel_mm: Sequence[float]) -> Bytes:
    """Sagittal, coronal and axial slice through the middle of the mask; a direction of few voxels is left out."""
    box = _box(mask)
    centre = [round(float(found.mean())) for found in np.nonzero(mask)]
    low, high = _window(volume_XYZ[mask])
    scale = _PANEL_PX / max((box[axis].stop - box[axis].start) * voxel_mm[axis] for axis in (1, 2))
    panels = []
    for across in range(3):
        rest = [axis for axis in range(3) if axis != across]
        if min(box[axis].stop - box[axis].start for axis in rest) < 4:
            continue
        flat = np.take(volume_XYZ, centre[across], axis=across)[box[rest[0]], box[rest[1]]]
        panels.append(_grey(_upright(flat, [voxel_mm[axis] * scale for axis in rest]), low, high))
    return _beside(panels or [_grey(volume_XYZ[..., centre[2]].T[::-1], low, high)])


def _mask_slices(shard_set: ShardSet, average_V: Floats, silent_V: NDArray[np.bool_]) -> list[Bytes]:
    mask, voxel_mm = shard_set.mask, shard_set.grid.voxel_mm
    box = _box(mask)
    volume_XYZ = shard_set.unmask(average_V.astype(np.float32))
    silent_XYZ = shard_set.unmask(silent_V.astype(np.float32))
    low, high = _window(average_V)
    scale = 190 / max((box[axis].stop - box[axis].start) * voxel_mm[axis] for axis in (0, 1))
    sizes = [voxel_mm[0] * scale, voxel_mm[1] * scale]
    depth = box[2].stop - box[2].start
    heights = np.unique(np.linspace(box[2].start + 0.08 * depth, box[2].stop - 1 - 0.05 * depth, 8).round().astype(int))
    panels = []
    for z in heights:
        grey = _grey(_upright(volume_XYZ[box[0], box[1], z], sizes), low, high)
        inside = _upright(mask[box[0], box[1], z].astype(np.float32), sizes) > 0.5
        silent = _upright(silent_XYZ[box[0], box[1], z], sizes) > 0.5
        panels.append(_coloured(np.pad(grey, 2), np.pad(inside, 2), np.pad(silent, 2)))
    return panels


def _coloured(grey: Bytes, inside: NDArray[np.bool_], silent: NDArray[np.bool_]) -> Bytes:
    from scipy.ndimage import binary_dilation

    image = np.repeat(grey[..., None], 3, axis=2)
    image[silent] = _ORANGE
    image[binary_dilation(inside) & ~inside] = _BLUE
    return image


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The mask's bounding box."""
    x, y, z = (slice(int(found.min()), int(found.max()) + 1) for found in np.nonzero(mask))
    return x, y, z


def _window(values: Floats) -> tuple[float, float]:
    """Black and white of an image: 0, or below it the lowest values, to the 99th percentile."""
    low, high = np.percentile(values, (1, 99))
    return min(0.0, float(low)), float(high)


def _upright(flat: Floats, sizes: Sequence[float]) -> Floats:
    """A slice (first axis to the right, second upwards) as an image of `sizes` pixels a voxel."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(flat.T[::-1], dtype=np.float32))
    width, height = (max(1, round(count * size)) for count, size in zip(flat.shape, sizes, strict=True))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _grey(values: Floats, low: float, high: float, levels: int = 256) -> Bytes:
    unit = np.clip((values - low) / max(high - low, 1e-30), 0, 1)
    grey: Bytes = (np.rint(unit * (levels - 1)) * (255 // (levels - 1))).astype(np.uint8)
    return grey


def _beside(panels: Sequence[Bytes]) -> Bytes:
    """Images side by side on black, centred in height."""
    height = max(len(panel) for panel in panels) + 2 * _GAP_PX
    padded = []
    for panel in panels:
        above = (height - len(panel)) // 2
        around = [(above, height - len(panel) - above), (_GAP_PX // 2, _GAP_PX // 2)]
        padded.append(np.pad(panel, around))
    return np.concatenate(padded, axis=1)


def _png(image: Bytes) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
