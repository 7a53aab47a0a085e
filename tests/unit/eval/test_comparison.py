"""Tests of differences: p that agrees with its interval, Holm, Nadeau and Bengio."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.scoring.bootstrap import resample_counts
from eval.scoring.comparison import corrected_resampled_t, holm, paired_difference

NORMAL = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)


def test_a_paired_difference_of_means_is_tested_as_by_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.4, 1, size=(2, 25)) * [[1.0], [0.8]]
    counts = resample_counts(20_000, 25, seed=0)
    found, p = paired_difference(float(np.mean(one - other)), counts @ (one - other) / 25, 24)
    oracle = stats.ttest_rel(one, other)
    interval = oracle.confidence_interval(0.95)
    assert p == pytest.approx(oracle.pvalue, abs=0.01)
    assert [found.low, found.high] == pytest.approx([interval.low, interval.high], abs=0.01)


@pytest.mark.parametrize(("shift", "low", "high"), [(1.001, 0.04, 0.05), (0.999, 0.05, 0.06)])
def test_p_crosses_5_percent_where_the_interval_reaches_0(shift: float, low: float, high: float) -> None:
    resampled = 0.1 * NORMAL
    edge = paired_difference(0.0, resampled, 20)[0].high * shift
    found, p = paired_difference(edge, resampled + edge, 20)
    assert low <= p <= high and (found.low > 0) == (p < 0.05)


def test_p_has_a_floor_and_undefined_stays_undefined() -> None:
    assert paired_difference(5.0, 5.0 + 0.1 * NORMAL, 20)[1] == pytest.approx(2 / 2001)
    assert paired_difference(1.0, np.ones(99), 20)[1] == pytest.approx(2 / 100)
    assert paired_difference(0.0, np.zeros(100), 20)[1] == 1.0
    found, p = paired_difference(0.1, np.r_[np.full(60, np.nan), np.full(40, 0.1)], 20)
    assert np.isnan([found.low, found.high, p]).all() and found.num_undefined == 60


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04, 0.2 times 4, 3, 2, 1, never falling
    assert holm([0.04, 0.01, np.nan, 0.2, 0.03]) == pytest.approx([0.09, 0.04, np.nan, 0.2, 0.09], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_shared_training_subjects_it_is_the_t_test() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, size=12)
    found, oracle = corrected_resampled_t(values.tolist(), 0.0), stats.ttest_1samp(values, 0.0)
    interval = oracle.confidence_interval(0.95)
    assert found.p_value == pytest.approx(oracle.pvalue)
    assert [found.mean, found.low, found.high] == pytest.approx([values.mean(), interval.low, interval.high])


def test_shared_training_subjects_widen_the_interval_as_the_paper_says() -> None:
    values = [0.02, 0.05, 0.01, 0.04, 0.03]
    found, share = corrected_resampled_t(values, 0.25), stats.sem(values) ** 2
    error = np.sqrt(share * (1 / 5 + 0.25) / (1 / 5))
    assert found.high - found.mean == pytest.approx(error * stats.t.ppf(0.975, 4))
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.03 / error, 4))


@pytest.mark.parametrize("values", [[0.1], [], [0.1, np.nan]], ids=["one", "none", "undefined"])
def test_too_few_differences_have_no_test(values: list[float]) -> None:
    found = corrected_resampled_t(values, 0.25)
    assert np.isnan([found.low, found.high, found.p_value]).all()


def test_equal_differences_are_no_evidence_of_certainty() -> None:
    assert np.isnan(corrected_resampled_t([0.1, 0.1, 0.1], 0.25).p_value)
