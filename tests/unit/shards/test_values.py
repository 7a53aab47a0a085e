"""Quantisation: error bounds, exactness, and what happens to odd voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shards.values import Encoded, decode, encode, residual_affine


def restored(encoded: Encoded) -> NDArray[np.float32]:
    return decode(
        encoded.q,
        encoded.mean,
        encoded.scale,
        lossless=encoded.lossless,
        grid_slope=encoded.grid_slope,
        grid_inter=encoded.grid_inter,
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(2, 60),
    spread=st.floats(1e-3, 1e4),
    level=st.floats(-1e4, 1e4),
    spike=st.sampled_from([0, 20, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_int8_error_is_at_most_half_a_step_and_nothing_is_clipped(
    seed: int, frames: int, spread: float, level: float, spike: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (level + spread * rng.standard_normal((frames, 17))).astype("f4")
    x[frames // 2, :5] += np.float32(spike * spread)
    encoded = encode(x, "int8")
    error = np.abs(restored(encoded).astype("f8") - x)
    rounding = 4 * np.spacing(np.abs(x).max())
    assert (error <= encoded.scale * (0.5 + 1e-5) + rounding).all()
    assert np.abs(encoded.q.astype(int)).max() <= 127


def test_mean_and_sd_are_those_of_numpy_in_double_precision() -> None:
    x = (1e4 + np.random.default_rng(0).standard_normal((200, 31))).astype("f4")
    encoded = encode(x, "int8")
    np.testing.assert_allclose(encoded.mean, x.mean(0, dtype="f8"), rtol=1e-7)
    np.testing.assert_allclose(encoded.std, x.std(0, dtype="f8"), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
def test_a_constant_voxel_decodes_to_its_value_and_has_no_residual(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((20, 4)).astype("f4")
    x[:, 2] = 812.5
    encoded = encode(x, dtype)
    assert (restored(encoded)[:, 2] == 812.5).all()
    gain, shift = residual_affine(encoded.mean, encoded.std, encoded.scale, dtype)
    residual = encoded.q * gain + (0 if shift is None else shift)
    assert (residual[:, 2] == 0).all()
    expected = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    assert np.abs(residual - expected).max() < {"int8": 0.04, "int16": 6e-4, "float16": 2e-3, "float32": 1e-5}[dtype]


@pytest.mark.parametrize("source", ["i1", "u1", "<i2", ">i2", "u2", "i4"])
@pytest.mark.parametrize("slope, inter", [(1.0, 0.0), (0.25, -3.0)])
def test_small_integers_are_kept_exactly(source: str, slope: float, inter: float) -> None:
    x = np.random.default_rng(1).integers(40, 70, (50, 40)).astype(source)
    encoded = encode(x, "int8", slope=slope, inter=inter)
    assert encoded.lossless
    np.testing.assert_array_equal(restored(encoded), (x.astype("f8") * slope + inter).astype("f4"))
    plain = encoded.mean + encoded.scale * encoded.q
    assert (np.abs(plain - restored(encoded)) <= slope / 2 * 1.0001).all()


def test_a_mean_half_way_between_integers_stays_exact() -> None:
    x = np.array([[1, 8], [2, 9]] * 4, "i2")
    encoded = encode(x, "int8")
    assert encoded.lossless
    np.testing.assert_array_equal(restored(encoded), x)


def test_wide_integers_are_quantised_like_floats() -> None:
    x = np.random.default_rng(1).normal(3000, 200, (50, 40)).astype("i2")
    encoded = encode(x, "int8")
    assert not encoded.lossless
    np.testing.assert_array_equal(encoded.q, encode(x.astype("f4"), "int8").q)


def test_wide_voxels_are_those_with_outliers() -> None:
    x = np.random.default_rng(2).standard_normal((300, 10)).astype("f4")
    x[7, :3] += 60
    assert encode(x, "int8").num_wide_voxels == 3
