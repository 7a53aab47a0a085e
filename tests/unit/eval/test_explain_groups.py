"""Maps of the group by hand, shuffles that keep their promise, halves that agree if there is something to agree on."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import linregress

from eval.arrays import to_nifti
from eval.explain.explanation import class_file
from eval.explain.groups import (
    against_shuffles,
    group_map,
    half_agreement,
    label_weights,
    margins,
    peaks,
    rank_correlation,
)
from eval.explain.smoothing import fwhm_mm, smoothed
from shards.format import Grid

GRID = Grid(
    shape=(7, 8, 6), affine=((-3.0, 0.0, 0.0, 9.0), (0.0, 3.0, 0.0, -14.0), (0.0, 0.0, 3.0, -10.0), (0, 0, 0, 1))
)


def test_two_classes_give_half_the_difference_of_their_means() -> None:
    maps = np.random.default_rng(0).standard_normal((5, 1, 4))
    y = np.array([1.0, 0, 0, 1, 0])
    expected = (maps[y == 1, 0].mean(0) - maps[y == 0, 0].mean(0)) / 2
    np.testing.assert_allclose(group_map(maps, label_weights(y, "binary", 1)), expected)


def test_several_classes_give_the_mean_margin_of_the_own_class() -> None:
    maps = np.random.default_rng(1).standard_normal((7, 3, 4))
    y = np.array([0.0, 0, 0, 1, 1, 2, 2])
    own = np.array([maps[s, int(k)] - np.delete(maps[s], int(k), axis=0).mean(0) for s, k in enumerate(y)])
    expected = np.mean([own[y == k].mean(0) for k in range(3)], axis=0)
    np.testing.assert_allclose(group_map(maps, label_weights(y, "multiclass", 3)), expected)


def test_what_all_subjects_share_cancels() -> None:
    shared = np.broadcast_to(np.random.default_rng(2).standard_normal((3, 4)), (7, 3, 4))
    y = np.array([0.0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(group_map(shared, label_weights(y, "multiclass", 3)), 0, atol=1e-12)


def test_a_measure_gives_the_slope_on_it() -> None:
    rng = np.random.default_rng(3)
    maps, y = rng.standard_normal((9, 1, 2)), rng.uniform(20, 80, 9)
    found = group_map(maps, label_weights(y, "regression", 1))
    np.testing.assert_allclose(found, [linregress(y, maps[:, 0, v]).slope for v in range(2)])


def test_margins_of_two_classes_are_the_logit_with_its_sign() -> None:
    np.testing.assert_array_equal(margins(np.array([0.0, 1]), "binary", 1), [[-1], [1]])


def test_maps_of_no_difference_pass_the_threshold_as_often_as_promised() -> None:
    rng = np.random.default_rng(4)
    y = np.repeat([0.0, 1.0], 6)
    passed = 0
    for seed in range(120):
        maps = rng.standard_normal((12, 1, 30)) * rng.uniform(0.1, 10, 30)
        found = against_shuffles(maps, y, "binary", seed=seed)
        passed += bool((np.abs(found.z_V) >= found.threshold).any())
        assert (np.abs(found.z_V) >= found.threshold).any() == (found.p_V.min() <= 0.05 + 1 / 2001)
    assert passed <= 13  # binomial(120, 0.05): 99 % quantile


def test_a_planted_difference_is_found_where_it_is_and_nowhere_else() -> None:
    rng = np.random.default_rng(5)
    y = np.repeat([0.0, 1.0], 8)
    maps = rng.standard_normal((16, 1, 50))
    maps[y == 1, 0, 7] += 5
    found = against_shuffles(maps, y, "binary", seed=0)
    assert np.flatnonzero(np.abs(found.z_V) >= found.threshold).tolist() == [7]
    assert found.z_V[7] > 0
    assert found.p_V[7] < 0.01


def test_voxels_that_never_vary_have_z_0() -> None:
    maps = np.ones((6, 1, 3))
    maps[:, 0, 1] = np.arange(6)
    found = against_shuffles(maps, np.array([0.0, 1] * 3), "binary", seed=0)
    assert found.z_V[0] == found.z_V[2] == 0


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_halves_agree_on_what_is_there_and_not_on_noise(kind: str) -> None:
    rng = np.random.default_rng(6)
    y = np.repeat([0.0, 1.0], 8) if kind == "binary" else rng.uniform(size=16)
    effect = rng.standard_normal(200)
    noise = rng.standard_normal((16, 1, 200))
    strong = half_agreement(noise + 8 * y[:, None, None] * effect, y, kind, seed=0)  # type: ignore[arg-type]
    nothing = half_agreement(noise, y, kind, seed=0)  # type: ignore[arg-type]
    assert strong.mean() > 0.8
    assert abs(nothing.mean()) < 0.2


def test_too_few_subjects_have_no_halves() -> None:
    assert half_agreement(np.ones((3, 1, 4)), np.array([0.0, 0, 1]), "binary", seed=0).size == 0


def test_a_constant_map_is_like_no_other() -> None:
    assert rank_correlation(np.zeros(5), np.arange(5.0)) == 0


def test_peaks_are_the_largest_and_keep_apart() -> None:
    where = np.stack([np.arange(6) * 10.0, np.zeros(6), np.zeros(6)], axis=1)
    assert peaks(np.array([1.0, -5, 4, 0, 2, 0]), where, count=3, apart_mm=15) == [1, 4]


def test_nibabel_reads_the_map_back_on_the_grid(mask: NDArray[np.bool_]) -> None:
    values = np.random.default_rng(7).standard_normal(int(mask.sum()))
    data = to_nifti(values, mask, GRID)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    dense = np.asarray(image.dataobj)
    np.testing.assert_array_equal(dense[mask], values.astype(np.float32))
    assert not dense[~mask].any()
    np.testing.assert_array_equal(image.affine, GRID.affine)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert nibabel.aff2axcodes(image.affine) == ("L", "A", "S")
    assert to_nifti(values, mask, GRID) == data


def test_levels_of_any_text_make_different_file_names() -> None:
    assert class_file("a/b", 0) != class_file("a b", 1)
    assert "/" not in class_file("../x", 0)


def test_smoothing_keeps_constants_and_spreads_a_point_evenly() -> None:
    whole = np.ones(GRID.shape, dtype=bool)
    np.testing.assert_allclose(smoothed(np.full((2, whole.size), 3.0), whole, GRID), 3.0)
    point = np.zeros(GRID.shape)
    point[3, 4, 3] = 1
    found = smoothed(point[whole], whole, GRID).reshape(GRID.shape)
    assert fwhm_mm(GRID) == 8
    half = np.exp(-np.log(2) * (2 * 3 / 8) ** 2)  # a neighbour at 3 mm of a Gaussian of 8 mm
    np.testing.assert_allclose(found[3, 5, 3] / found[3, 4, 3], half, rtol=0.05)
