"""Parcels, their series and connectivity, against plain numpy on the decoded runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from eval.parcels import parcels as under_test
from eval.parcels.parcels import (
    Parcels,
    atlas_parcels,
    connectivity,
    geometric_parcels,
    parcel_series,
)
from shards.errors import UsageError
from shards.reader import ShardSet


@pytest.fixture
def shard_set(make_shard_set: Callable[..., Any], tmp_path: Path) -> ShardSet:
    make_shard_set(tmp_path / "set")
    return ShardSet(tmp_path / "set")


def _atlas(path: Path, values: NDArray, affine: NDArray) -> Path:
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_geometric_parcels_are_compact_and_the_same_again(shard_set: ShardSet) -> None:
    first, again = geometric_parcels(shard_set), geometric_parcels(shard_set)
    assert (first.labels == again.labels).all()
    assert np.unique(first.labels).tolist() == list(range(first.num_parcels))
    assert first.num_parcels == shard_set.num_voxels // 10
    positions = np.argwhere(shard_set.mask)
    spread = np.mean([positions[first.labels == k].std(axis=0).mean() for k in range(first.num_parcels)])
    assert spread < 0.5 * positions.std(axis=0).mean()
    assert "geometric" in first.description


def test_atlas_of_the_same_grid_is_taken_as_it_is(shard_set: ShardSet, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 5, shard_set.mask.shape).astype(np.int16) * 7
    atlas = _atlas(tmp_path / "atlas.nii.gz", values, np.asarray(shard_set.manifest.grid.affine))
    found = atlas_parcels(shard_set, atlas)
    inside = values[shard_set.mask]
    assert found.num_parcels == 4
    assert (found.labels == np.where(inside == 0, -1, inside // 7 - 1)).all()


def test_atlas_of_a_finer_flipped_grid_is_resampled_by_position(shard_set: ShardSet, tmp_path: Path) -> None:
    affine = np.asarray(shard_set.manifest.grid.affine)
    fine = np.diag([-2.0, 2.0, 2.0, 1.0])
    fine[:3, 3] = [30.0, -30.0, -30.0]
    x_mm = (fine @ np.r_[np.mgrid[:40, :40, :40].reshape(3, -1), np.ones((1, 64_000))])[0].reshape(40, 40, 40)
    atlas = _atlas(tmp_path / "atlas.nii.gz", (1 + (x_mm > 1)).astype(np.uint8), fine)
    found = atlas_parcels(shard_set, atlas)
    voxel_x_mm = affine[0, 0] * np.argwhere(shard_set.mask)[:, 0] + affine[0, 3]
    assert (found.labels == (voxel_x_mm > 1)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((7, 8, 6, 2), np.int16), "3-D image of integer labels is needed, found shape"),
        (np.full((7, 8, 6), 0.4, np.float32), "integer labels"),
        (np.ones((7, 8, 6), np.int16), "1 of its labels lie in the mask"),
    ],
)
def test_unusable_atlases_are_named(shard_set: ShardSet, tmp_path: Path, values: NDArray, message: str) -> None:
    atlas = _atlas(tmp_path / "atlas.nii.gz", values, np.asarray(shard_set.manifest.grid.affine))
    with pytest.raises(UsageError, match=message):
        atlas_parcels(shard_set, atlas)


def test_an_atlas_that_is_no_nifti_is_named(shard_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        atlas_parcels(shard_set, tmp_path / "none.nii.gz")
    (tmp_path / "text.nii.gz").write_text("hello")
    with pytest.raises(UsageError, match="not a readable NIfTI"):
        atlas_parcels(shard_set, tmp_path / "text.nii.gz")


def test_series_are_parcel_means_whatever_the_window(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    parcels = geometric_parcels(shard_set)
    residual = shard_set.residual(1, 0, shard_set.runs[1].num_frames)
    expected = np.stack([residual[:, parcels.labels == k].mean(axis=1) for k in range(parcels.num_parcels)], axis=1)
    assert parcel_series(shard_set, 1, parcels) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(under_test, "WINDOW_BYTES", 4 * shard_set.num_voxels * 7)
    assert parcel_series(shard_set, 1, parcels) == pytest.approx(expected, abs=1e-5)


def test_voxels_outside_every_parcel_do_not_count(shard_set: ShardSet) -> None:
    labels = np.full(shard_set.num_voxels, -1)
    labels[3], labels[4:9] = 0, 1
    series = parcel_series(shard_set, 0, Parcels(labels=labels, num_parcels=2, description="two"))
    assert series[:, 0] == pytest.approx(shard_set.residual(0, 0, len(series))[:, 3], abs=1e-6)


def test_connectivity_is_fisher_z_of_pearson() -> None:
    series = np.random.default_rng(0).normal(size=(50, 6))
    rows, columns = np.triu_indices(6, k=1)
    assert connectivity(series) == pytest.approx(np.arctanh(np.corrcoef(series.T)[rows, columns]), abs=1e-10)


def test_constant_and_identical_parcels_stay_finite() -> None:
    series = np.random.default_rng(0).normal(size=(50, 4))
    series[:, 1] = 0.3
    series[:, 3] = series[:, 2]
    edges = connectivity(series)
    assert np.isfinite(edges).all()
    assert edges[[0, 3, 4]] == pytest.approx(0), "edges of the constant parcel"
    assert np.tanh(edges[5]) == pytest.approx(1 - 1e-6)
