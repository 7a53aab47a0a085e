"""Masked voxels to dense volumes and back, against numpy indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.networks.volume import MAX_PATCHES, Volume, crop_of, patch_stride

GRIDS = [(6, 10, 10), (40, 20, 1), (1, 1, 5), (13, 9, 17), (1, 1, 1), (100, 60, 8)]


def some_mask(shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.random.default_rng(5).random(shape) > 0.5
    mask[tuple(n // 2 for n in shape)] = True
    return mask


@pytest.mark.parametrize("shape", GRIDS)
def test_dense_equals_numpy_indexing(shape: tuple[int, int, int]) -> None:
    mask = some_mask(shape)
    values = np.random.default_rng(0).standard_normal((3, mask.sum())).astype("f4")
    volume = Volume(mask)
    dense = volume.dense(torch.from_numpy(values)).numpy()

    oracle = np.zeros((3, *shape), "f4")
    oracle[:, mask] = values
    where = np.argwhere(mask)
    (x0, y0, z0), (x1, y1, z1) = where.min(0), where.max(0) + 1
    box = oracle[:, x0:x1, y0:y1, z0:z1]
    nx, ny, nz = box.shape[1:]
    assert np.array_equal(dense[:, 0, :nx, :ny, :nz], box)
    assert np.count_nonzero(dense) == np.count_nonzero(box)


@pytest.mark.parametrize("shape", GRIDS)
def test_masked_undoes_dense_cut_into_patches(shape: tuple[int, int, int]) -> None:
    volume = Volume(some_mask(shape))
    values = torch.randn(2, volume.num_voxels)
    dense = volume.dense(values)
    (a, b, c), (p, q, r) = volume.crop.stride, volume.crop.patches
    patches = dense.view(2, p, a, q, b, r, c).permute(0, 2, 4, 6, 1, 3, 5).reshape(2, a * b * c, p, q, r)
    assert torch.equal(volume.masked(patches), values)


@pytest.mark.parametrize("num_voxels", range(1, 300))
def test_patches_fit_any_axis(num_voxels: int) -> None:
    stride = patch_stride(num_voxels)
    patches = -(-num_voxels // stride)
    assert patches <= MAX_PATCHES
    assert patches >= min(2, num_voxels)


def test_the_crop_is_the_masks_bounding_box() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[3:12, 5, 7:9] = True
    crop = crop_of(mask)
    assert (crop.origin, crop.box) == ((3, 5, 7), (9, 1, 2))
    assert all(n >= b for n, b in zip(crop.shape, crop.box, strict=True))


def test_residual_is_gain_times_stored_plus_shift() -> None:
    volume = Volume(np.ones((2, 2, 2), bool))
    q = torch.randint(-128, 128, (2, 3, 8), dtype=torch.int8)
    gain, shift = torch.rand(2, 8), torch.rand(2, 8)
    expected = q.numpy() * gain.numpy()[:, None] + shift.numpy()[:, None]
    assert np.allclose(volume.residual(q, gain, shift), expected)
