"""The voxels of a mask out of a frame, read in an order that suits the cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.machine_code import compiled


class Crop:
    """Takes the same voxels out of one frame after another.

    Parameters
    ----------
    voxels
        (voxel,) positions in a stored frame.
    shape
        (x, y, z) of a stored frame, x fastest.

    Notes
    -----
    Rows have z fastest, frames x: this is a transposition. Neighbours along the axis that is fastest in the rows are
    one piece, at a constant distance in the frame; pieces that lie side by side in the frame, in the same cache
    lines, are copied one after the other.
    """

    def __init__(self, voxels: NDArray[np.intp], shape: tuple[int, ...]) -> None:
        if len(voxels) and not 0 <= int(voxels.min()) <= int(voxels.max()) < math.prod(shape):
            raise IndexError(f"voxels {voxels.min()} to {voxels.max()} of a frame of {math.prod(shape)}")
        steps = np.diff(voxels, prepend=voxels[:1])
        axes = [(sign * math.prod(shape[:axis]), shape[axis]) for axis in range(3) for sign in (1, -1)]
        self._step, size = max(axes, key=lambda axis: np.count_nonzero(steps == axis[0]))
        starts = np.flatnonzero(steps != self._step)
        first, distance = voxels[starts], abs(self._step)
        order = np.argsort(first - first // distance % size * distance, kind="stable")
        pieces = np.stack([first, starts, np.diff(np.append(starts, len(voxels)))])
        self._pieces = np.ascontiguousarray(pieces[:, order].T, np.uint64)

    def take(self, frame: NDArray[Any], row: NDArray[Any]) -> None:
        """Copy the voxels of `frame`, flat, into `row`, (voxel,), of the same dtype."""
        bits = np.dtype(f"u{frame.itemsize}")
        _copy(frame.view(bits), self._pieces, np.uint64(self._step % 2**64), row.view(bits))


@compiled
def _copy(frame, pieces, step, row):  # type: ignore[no-untyped-def]
    for piece in range(len(pieces)):
        position, place = pieces[piece, 0], pieces[piece, 1]
        for _ in range(pieces[piece, 2]):
            row[place] = frame[position]
            position, place = position + step, place + np.uint64(1)
