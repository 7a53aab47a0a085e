"""Resampling onto the set's grid against nilearn, and what happens at the edges."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nilearn.image import resample_img

from ingest.failures import RunError
from ingest.nifti import Header
from ingest.resample import Resampler
from shards.format import Grid

OBLIQUE = np.array([[-3.0, 0.1, 0, 30], [0, 3.1, 0.2, -30], [0, -0.1, 2.9, -20], [0, 0, 0, 1]])
SHAPE = (20, 24, 18)


def header_of(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE, dtype: str = "f4") -> Header:
    return Header(
        shape=(*shape, 1),
        dtype=np.dtype(dtype),
        affine=affine,
        slope=1.0,
        inter=0.0,
        tr_s=2.0,
        data_offset=352,
        compressed=False,
        num_file_bytes=1,
    )


def grid_of(voxel_mm: float, origin_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> Grid:
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = origin_mm
    return Grid(shape=shape, affine=tuple(tuple(map(float, row)) for row in affine))


def resampled(volume: np.ndarray, affine: np.ndarray, grid: Grid, method: str) -> tuple[np.ndarray, Resampler]:
    resampler = Resampler(header_of(affine, volume.shape, volume.dtype.str), grid, np.ones(grid.shape, bool), method)
    out = np.empty(int(np.prod(grid.shape)), np.float32)
    resampler.take(volume.ravel(order="F"), out)
    return out.reshape(grid.shape), resampler


@pytest.mark.parametrize("dtype", ["f4", "i2", ">f4", "u1"])
@pytest.mark.parametrize("method, theirs", [("linear", "linear"), ("cubic", "continuous")])
def test_values_are_those_of_nilearn(method, theirs, dtype):
    volume = (100 + 20 * np.random.default_rng(0).standard_normal(SHAPE)).astype(dtype)
    grid = grid_of(4.0, (-35, -35, -25), (18, 20, 15))
    ours, resampler = resampled(volume.astype(volume.dtype.newbyteorder("=")), OBLIQUE, grid, method)
    image = nibabel.Nifti1Image(volume.astype("f4"), OBLIQUE)
    wanted = resample_img(
        image, np.asarray(grid.affine), grid.shape, interpolation=theirs, force_resample=True, copy_header=True
    ).get_fdata()
    outside = ours == 0
    assert 0 < resampler.num_outside == outside.sum() < ours.size
    both = ~outside & (wanted != 0)  # nilearn drops voxels that lie a rounding error beyond the edge
    assert both.sum() >= 0.99 * (wanted != 0).sum()
    np.testing.assert_allclose(ours[both], wanted[both], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_the_same_grid_gives_the_same_values_up_to_the_edge(method):
    volume = np.random.default_rng(1).standard_normal(SHAPE).astype("f4")
    rounded = np.diag([3.0, 3.0, 3.0, 1.0])
    rounded[:3, 3] = 1e-5
    grid = grid_of(3.0, (0.0, 0.0, 0.0), SHAPE)
    ours, resampler = resampled(volume, rounded, grid, method)
    assert resampler.num_outside == 0
    np.testing.assert_allclose(ours, volume, atol=1e-4)


def test_left_and_right_stay_where_they_are():
    """A right-handed and a left-handed file of one head come out the same."""
    volume = np.random.default_rng(2).standard_normal(SHAPE).astype("f4")
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    flipped = affine.copy()
    flipped[0, 0], flipped[0, 3] = -3.0, 3.0 * (SHAPE[0] - 1)
    grid = grid_of(3.5, (2.0, 1.0, 0.5), (12, 12, 12))
    one, _ = resampled(volume, affine, grid, "linear")
    two, _ = resampled(volume[::-1], flipped, grid, "linear")
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_single_slice_can_be_resampled_within_its_plane():
    volume = np.random.default_rng(3).standard_normal((8, 9, 1)).astype("f4")
    grid = grid_of(1.0, (0.5, 0.5, 0.0), (7, 8, 1))
    ours, _ = resampled(volume, np.eye(4), grid, "linear")
    corners = volume[:-1, :-1] + volume[1:, :-1] + volume[:-1, 1:] + volume[1:, 1:]
    np.testing.assert_allclose(ours, corners / 4, atol=1e-6)


def test_a_run_elsewhere_is_refused():
    with pytest.raises(RunError, match="do not meet"):
        Resampler(header_of(OBLIQUE), grid_of(3.0, (500, 0, 0), (5, 5, 5)), np.ones((5, 5, 5), bool), "linear")
