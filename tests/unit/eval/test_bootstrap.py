"""BCa intervals against scipy, blocks that widen, a jackknife that leaves out families."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.scoring import bootstrap
from eval.scoring.bootstrap import acceleration_of, estimate, family_blocks, jackknife_counts, resample_counts
from eval.scoring.weighted import weighted_scores


def test_same_seed_same_resamples() -> None:
    first, again, other = (resample_counts(50, 9, seed=seed) for seed in (4, 4, 5))
    assert (first == again).all() and (first != other).any()


def test_strata_keep_their_size() -> None:
    strata = np.r_[np.zeros(7, int), np.ones(3, int)]
    counts = resample_counts(200, 10, seed=0, strata=strata)
    assert (counts[:, :7].sum(1) == 7).all() and (counts[:, 7:].sum(1) == 3).all()


def test_families_are_drawn_whole() -> None:
    families = ["a", "a", "a", "b", "", "b", ""]
    counts = resample_counts(200, 7, seed=0, families=families)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, 4] != counts[:, 6]).any(), "subjects of no family are not a family"
    assert family_blocks(families, 7).tolist() == [0, 0, 0, 1, 2, 1, 3]


def test_coverage_of_the_mean_error_is_near_95_percent() -> None:
    rng = np.random.default_rng(7)
    covered = []
    for trial in range(150):
        truth = rng.normal(size=60)
        counts = resample_counts(400, 60, seed=trial)
        found = weighted_scores(truth, np.zeros((60, 1)), "regression", counts)["mae"]
        interval = estimate(float(np.abs(truth).mean()), found)
        covered.append(interval.low <= np.sqrt(2 / np.pi) <= interval.high)
    assert 0.90 < np.mean(covered) < 0.98


def test_copies_of_a_subject_do_not_narrow_the_interval_when_they_are_a_family() -> None:
    rng = np.random.default_rng(1)
    truth, logit = np.repeat(np.arange(40) % 2, 4), np.repeat(rng.normal(size=40), 4)[:, None]
    widths = []
    for families in (None, [f"f{k // 4}" for k in range(160)]):
        counts = resample_counts(1000, 160, seed=0, strata=truth, families=families)
        found = estimate(0.5, weighted_scores(truth, logit, "binary", counts)["auroc"])
        widths.append(found.high - found.low)
    assert widths[1] > 1.6 * widths[0], "4 copies count as one: twice the width is expected"


def test_undefined_resamples_are_counted_and_left_out() -> None:
    found = estimate(0.5, np.r_[np.full(30, np.nan), np.linspace(0, 1, 70)])
    assert found.num_undefined == 30 and found.low == pytest.approx(0.025, abs=1e-5)
    mostly = estimate(0.5, np.r_[np.full(80, np.nan), np.ones(20)])
    assert np.isnan(mostly.low) and mostly.num_undefined == 80


@pytest.mark.parametrize("seed", range(3))
def test_bca_equals_scipy_on_the_same_resamples(seed: int) -> None:
    values = np.random.default_rng(seed).exponential(size=40)
    oracle = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=999, rng=seed)
    left_out, stratum = jackknife_counts(40, seed=0)
    bent = acceleration_of(left_out @ values / left_out.sum(1), stratum)
    found = estimate(values.mean(), oracle.bootstrap_distribution, acceleration=bent)
    expected = [oracle.confidence_interval.low, oracle.confidence_interval.high]
    assert [found.low, found.high] == pytest.approx(expected, abs=0.003)
    plain = estimate(values.mean(), oracle.bootstrap_distribution)
    assert found.high > plain.high + 0.01, "a right tail moves the interval right"


def test_bca_of_two_classes_equals_scipy_for_two_samples() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.exponential(size=25), rng.normal(size=15)
    both, stratum = np.r_[first, second], np.r_[np.zeros(25, int), np.ones(15, int)]
    oracle = stats.bootstrap(
        (first, second), lambda x, y, axis: x.mean(axis) - y.mean(axis), method="BCa", n_resamples=999, rng=1
    )
    left_out, groups = jackknife_counts(40, seed=0, strata=stratum)
    sums = [(left_out[:, stratum == k] @ both[stratum == k]) / left_out[:, stratum == k].sum(1) for k in (0, 1)]
    bent = acceleration_of(sums[0] - sums[1], groups)
    found = estimate(first.mean() - second.mean(), oracle.bootstrap_distribution, acceleration=bent)
    expected = [oracle.confidence_interval.low, oracle.confidence_interval.high]
    assert [found.low, found.high] == pytest.approx(expected, abs=0.003)


def test_few_subjects_widen_the_interval_to_that_of_students_t() -> None:
    values = stats.norm.ppf((np.arange(12) + 0.5) / 12)
    spread = values.std() / np.sqrt(12)
    resampled = spread * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    found = estimate(0.0, resampled, degrees=11)
    assert found.high == pytest.approx(stats.sem(values) * stats.t.ppf(0.975, 11), rel=1e-3)


def test_the_jackknife_leaves_out_each_family_once() -> None:
    left_out, stratum = jackknife_counts(5, seed=0, strata=[0, 0, 1, 1, 0], families=["a", "a", "b", "b", ""])
    assert sorted(left_out.tolist()) == [[0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 0]]
    assert sorted(stratum.tolist()) == [0, 0, 1]


def test_the_jackknife_of_many_subjects_leaves_out_several_of_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MOST_GROUPS", 8)
    strata = np.r_[np.zeros(30, int), np.ones(10, int)]
    left_out, stratum = jackknife_counts(40, seed=0, strata=strata)
    assert len(left_out) == 8 and ((left_out == 0).sum(0) == 1).all()
    assert all((strata[row == 0] == level).all() for row, level in zip(left_out, stratum, strict=True))


def test_a_biased_statistic_keeps_its_value_in_its_interval() -> None:
    resampled = np.linspace(0.12, 0.3, 500)
    found = estimate(0.1, resampled)
    half = 1.96 * resampled.std()
    assert [found.low, found.high] == pytest.approx([0.1 - half, 0.1 + half])
