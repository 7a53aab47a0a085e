"""Resampling of a run onto the set's grid, frame by frame and only where the mask is.

Values between voxel centres are interpolated linearly, or by cubic B-splines, in the run's own voxel
space, as `nilearn.image.resample_img` does ("linear" and "continuous"). Where the mask reaches beyond the
run's field of view the value is 0. There is no smoothing: going from small voxels to large ones keeps
the noise of the small ones.

Legend: V voxel of the mask.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ingest.failures import RunError
from ingest.grid import describe
from ingest.nifti import Header
from shards.format import Grid

Method = Literal["linear", "cubic"]

_SPLINE_ORDER = 3
_EDGE_VOXELS = 1e-3
"""Points this far outside the outermost voxel centres count as on them: affines are rounded."""


class Resampler:
    """Takes the mask's voxels from the frames of a run that lies on another grid.

    Parameters
    ----------
    header
        The run's.
    grid, mask
        The set's grid and its mask, (x, y, z).
    method
        `linear` or `cubic`.

    Raises
    ------
    RunError
        Stage `grid`: the run's field of view and the mask have no voxel in common.
    """

    def __init__(self, header: Header, grid: Grid, mask: NDArray[np.bool_], method: Method) -> None:
        points_3V, self._inside_V = _stored_points(header, grid, mask)
        if not self._inside_V.any():
            raise RunError(
                "grid",
                f"its field of view and the set's mask do not meet (the set's grid is {describe(grid)})",
                "check the run's orientation and space, or leave it out",
                "no-overlap",
            )
        self._shape = header.shape[:3]
        self._points_3V = points_3V
        self._matrix = _linear_weights(points_3V, self._inside_V, self._shape) if method == "linear" else None

    @property
    def num_outside(self) -> int:
        """Voxels of the mask outside the run's field of view."""
        return int((~self._inside_V).sum())

    def take(self, frame: NDArray[Any], out_V: NDArray[np.float32]) -> None:
        """Fill `out_V` (float32, in the file's units) from one stored frame (flat, Fortran order)."""
        if self._matrix is not None:
            out_V[:] = self._matrix @ frame.astype(np.float32, copy=False)
            return
        from scipy.ndimage import map_coordinates

        volume = frame.astype(np.float32).reshape(self._shape, order="F")
        map_coordinates(volume, self._points_3V, output=out_V, order=_SPLINE_ORDER, mode="constant")
        out_V[~self._inside_V] = 0


def _stored_points(
    header: Header, grid: Grid, mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The mask's voxels in the run's stored voxel coordinates, (3, V), and which lie in its field of view."""
    to_stored = np.linalg.inv(header.affine) @ np.asarray(grid.affine)
    indices_3V = np.stack(np.nonzero(mask)).astype(np.float64)
    points_3V = to_stored[:3, :3] @ indices_3V + to_stored[:3, 3:]
    last_31 = np.asarray(header.shape[:3], np.float64)[:, None] - 1
    inside_V = ((points_3V >= -_EDGE_VOXELS) & (points_3V <= last_31 + _EDGE_VOXELS)).all(axis=0)
    return np.clip(points_3V, 0, last_31), inside_V


def _linear_weights(points_3V: NDArray[np.float64], inside_V: NDArray[np.bool_], shape: tuple[int, ...]) -> Any:
    """The (V, stored voxels) matrix of trilinear interpolation, in compressed rows."""
    from scipy.sparse import csr_array

    last_31 = np.maximum(np.asarray(shape)[:, None] - 2, 0)
    low_3V = np.minimum(np.floor(points_3V).astype(np.int64), last_31)
    part_3V = points_3V - low_3V
    strides = np.array([1, shape[0], shape[0] * shape[1]])
    columns, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        step_31 = np.minimum(np.asarray(corner)[:, None], np.asarray(shape)[:, None] - 1)  # axes of one voxel
        columns.append(strides @ (low_3V + step_31))
        factors_3V = np.where(np.asarray(corner)[:, None] == 1, part_3V, 1 - part_3V)
        weights.append(factors_3V.prod(axis=0) * inside_V)
    num_voxels = points_3V.shape[1]
    data = np.stack(weights, axis=1).astype(np.float32).ravel()
    starts = np.arange(num_voxels + 1, dtype=np.int64) * 8
    size = (num_voxels, int(np.prod(shape)))
    return csr_array((data, np.stack(columns, axis=1).ravel(), starts), shape=size)
