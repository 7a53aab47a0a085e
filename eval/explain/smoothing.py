"""Smoothing of maps inside the mask, since neighbouring voxels of a map of attributions are mostly noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats
from shards.format import Grid

FWHM_MM = 8.0
FWHM_VOXELS = 2.0
FWHM_PER_SD = float(np.sqrt(8 * np.log(2)))


def fwhm_mm(grid: Grid) -> float:
    """Full width at half maximum: 8 mm, or two voxels where they are larger than 4 mm."""
    return max(FWHM_MM, FWHM_VOXELS * max(grid.voxel_mm))


def smoothed(maps_V: Floats, mask: npt.NDArray[np.bool_], grid: Grid) -> Floats:
    """Maps `(..., V)` after a Gaussian filter; voxels outside the mask have no weight, so that a constant stays one."""
    from scipy.ndimage import gaussian_filter

    sigma = [fwhm_mm(grid) / FWHM_PER_SD / size for size in grid.voxel_mm]
    weight_V = gaussian_filter(mask.astype(np.float64), sigma, mode="constant")[mask]
    result = np.empty_like(maps_V, dtype=np.float64)
    for place in np.ndindex(maps_V.shape[:-1]):
        dense = np.zeros(mask.shape)
        dense[mask] = maps_V[place]
        result[place] = gaussian_filter(dense, sigma, mode="constant")[mask] / weight_V
    return result
