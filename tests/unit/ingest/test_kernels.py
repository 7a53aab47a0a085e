"""The fused kernels against `shards.values`, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from ingest.kernels import encode_run
from ingest.scratch import Scratch
from shards import values

FIELDS = ("q", "mean", "std", "scale")


def run_of(kind: str, num_frames: int, num_voxels: int) -> np.ndarray:
    """A run with constant, spiky and one-step voxels among ordinary ones."""
    rng = np.random.default_rng(num_frames * 1000 + num_voxels)
    x = 1000 + 30 * rng.standard_normal((num_frames, num_voxels))
    x[:, 0] = 700
    if num_voxels > 3:
        x[-1, 1] += 5000
        x[:, 2] = 500
        x[0, 2] += 1
    return x.astype(kind)


def assert_same(raw: np.ndarray, dtype: str, **scaling: float) -> None:
    found, wanted = encode_run(raw, dtype, **scaling), values.encode(raw, dtype, **scaling)
    for name in FIELDS:
        one, two = getattr(found.encoded, name), getattr(wanted, name)
        assert one.dtype == two.dtype and one.tobytes() == two.tobytes(), name
    assert found.encoded.lossless == wanted.lossless
    for name in ("grid_slope", "grid_inter"):
        np.testing.assert_equal(getattr(found.encoded, name), getattr(wanted, name))
    exact = raw.astype(np.float64) * scaling.get("slope", 1.0) + scaling.get("inter", 0.0)
    stored = values.decode(
        wanted.q,
        wanted.mean,
        wanted.scale,
        lossless=wanted.lossless,
        grid_slope=wanted.grid_slope,
        grid_inter=wanted.grid_inter,
    )
    error = np.abs(stored - exact)
    assert found.error_max == error.max()
    assert found.error_rms == pytest.approx(np.sqrt((error**2).mean()), rel=1e-12)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["float32", "int16", "uint8", "uint16", "int32", "float64"])
def test_equal_to_the_oracle_for_every_source_dtype(kind, dtype):
    assert_same(np.clip(run_of(kind, 37, 500), 0, None), dtype)


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (120, 63), (120, 64), (120, 65), (31, 9000), (1200, 200)])
def test_equal_to_the_oracle_across_block_borders(shape):
    assert_same(run_of("float32", *shape), "int8")


@pytest.mark.parametrize("scaling", [{"slope": 0.37, "inter": -5.0}, {"slope": 30.0, "inter": 1.5}, {"slope": -2.0}])
@pytest.mark.parametrize("kind", ["float32", "int16"])
def test_equal_to_the_oracle_with_scaling(kind, scaling):
    assert_same(run_of(kind, 40, 300), "int8", **scaling)


def test_lossless_integers_have_no_error():
    rng = np.random.default_rng(0)
    raw = (1000 + rng.integers(-20, 20, (60, 200))).astype(np.int16)
    result = encode_run(raw, "int8")
    assert result.encoded.lossless and result.error_max == 0
    assert_same(raw, "int8")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_voxels_that_are_not_finite_show_in_the_mean_and_harm_no_other(dtype, bad):
    raw = run_of("float32", 30, 100)
    clean = encode_run(raw, dtype).encoded
    raw[3, 7] = bad
    with np.errstate(invalid="ignore"):
        found = encode_run(raw, dtype).encoded
    assert np.flatnonzero(~np.isfinite(found.mean)).tolist() == [7]
    np.testing.assert_array_equal(np.delete(found.q, 7, 1), np.delete(clean.q, 7, 1))


def test_scratch_is_used_again():
    scratch = Scratch()
    first = encode_run(run_of("float32", 30, 100), "int8", scratch=scratch).encoded.q
    second = encode_run(run_of("float32", 20, 50), "int8", scratch=scratch).encoded.q
    assert np.shares_memory(first, second)
