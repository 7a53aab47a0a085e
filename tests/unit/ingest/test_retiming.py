"""Resampling in time: sines keep amplitude and phase, constants stay, tones beyond the new Nyquist frequency go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.cleaning.retiming import HALF_WIDTH, PASSBAND, num_frames_after, resample_time, time_operator

PHASES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
RATIOS = [(0.72, 2.0), (0.8, 0.72), (2.0, 0.8), (0.735, 2.2), (2.0, 1.127), (3.0, 2.0), (1.0, 2.0)]


def sines(hz: float, num_frames: int, tr_s: float) -> np.ndarray:
    return np.sin(2 * np.pi * hz * tr_s * np.arange(num_frames)[:, None] + PHASES)


def errors(tr_s: float, new_tr_s: float, hz: float, num_frames: int) -> np.ndarray:
    """Largest error over phases, for each new frame."""
    found = resample_time(sines(hz, num_frames, tr_s).astype(np.float32), tr_s, new_tr_s)
    return np.abs(found - sines(hz, len(found), new_tr_s)).max(axis=1)


@pytest.mark.parametrize(("tr_s", "new_tr_s"), RATIOS)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, PASSBAND])
def test_a_sine_in_the_passband_is_kept_within_one_percent(tr_s, new_tr_s, part):
    coarser_s = max(tr_s, new_tr_s)
    num_frames = int(4 * HALF_WIDTH * coarser_s / tr_s)
    edge = int(HALF_WIDTH * coarser_s / new_tr_s) + 1
    assert errors(tr_s, new_tr_s, part * 0.5 / coarser_s, num_frames)[edge:-edge].max() < 0.01


@pytest.mark.parametrize(("tr_s", "new_tr_s"), RATIOS)
@pytest.mark.parametrize("part", [0.1, 0.25, 0.5])
def test_edges_are_as_near_as_the_docstring_says(tr_s, new_tr_s, part):
    coarser_s = max(tr_s, new_tr_s)
    num_frames = int(6 * HALF_WIDTH * coarser_s / tr_s)
    error = errors(tr_s, new_tr_s, part * 0.5 / coarser_s, num_frames)
    new_s = np.arange(len(error)) * new_tr_s
    from_edge = np.minimum(new_s, (num_frames - 1) * tr_s - new_s) / coarser_s  # in frames of the coarser rate
    assert error.max() < 0.18
    assert error[from_edge >= 4].max() < 0.05
    assert error[from_edge >= 13].max() < 0.01


@pytest.mark.parametrize(("tr_s", "new_tr_s"), [(0.72, 2.0), (0.8, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize(("part", "left"), [(1.0, 0.01), (1.02, 0.001), (1.2, 0.001)])
def test_a_tone_above_the_new_nyquist_frequency_is_gone(tr_s, new_tr_s, part, left):
    num_frames = int(4 * HALF_WIDTH * new_tr_s / tr_s)
    found = resample_time(sines(part * 0.5 / new_tr_s, num_frames, tr_s).astype(np.float32), tr_s, new_tr_s)
    assert np.abs(found[HALF_WIDTH + 1 : -HALF_WIDTH - 1]).max() < left


@settings(max_examples=40, deadline=None)
@given(
    num_frames=st.integers(2, 300),
    tr_s=st.floats(0.3, 4).map(lambda s: round(s, 3)),
    new_tr_s=st.floats(0.3, 4).map(lambda s: round(s, 3)),
    level=st.floats(-1e5, 1e5, width=32),
)
def test_a_constant_stays_itself_and_frames_stay_within_the_run(num_frames, tr_s, new_tr_s, level):
    found = resample_time(np.full((num_frames, 3), level, np.float32), tr_s, new_tr_s)
    assert (found == np.float32(level)).all()
    last_s, end_s = (len(found) - 1) * new_tr_s, (num_frames - 1) * tr_s
    assert len(found) == num_frames_after(num_frames, tr_s, new_tr_s)
    assert last_s <= end_s * (1 + 1e-6) and last_s + new_tr_s > end_s * (1 - 1e-6)


def test_the_same_repetition_time_changes_nothing():
    signal = np.random.default_rng(0).normal(1000, 20, (50, 7)).astype(np.float32)
    np.testing.assert_allclose(resample_time(signal, 0.72, 0.72), signal, rtol=1e-7)


def test_voxels_are_independent_of_their_block():
    signal = np.random.default_rng(0).normal(1000, 20, (60, 5000)).astype(np.float32)
    whole = resample_time(signal, 0.8, 2.0)
    np.testing.assert_allclose(whole[:, 4990:], resample_time(signal[:, 4990:], 0.8, 2.0), rtol=1e-6)


def test_a_ratio_of_two_headers_is_the_ratio_that_was_meant():
    as_stored = float(np.float32(0.72))
    assert num_frames_after(1200, as_stored, 2.0) == 432
    np.testing.assert_array_equal(time_operator(100, as_stored, 2.0), time_operator(100, 0.72, 2.0))


def test_impossible_repetition_times_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        num_frames_after(10, 2.0, 0.0)
