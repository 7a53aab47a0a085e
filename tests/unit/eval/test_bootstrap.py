"""Intervals that cover, blocks that widen, nulls that are null."""

from __future__ import annotations

import numpy as np
import pytest

from eval.scoring.bootstrap import estimate, family_blocks, p_value, permutation_null, resample_counts
from eval.scoring.weighted import headline_of_labels, weighted_scores


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
    for trial in range(300):
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
    assert found.num_undefined == 30 and found.low == pytest.approx(0.025)
    mostly = estimate(0.5, np.r_[np.full(80, np.nan), np.ones(20)])
    assert np.isnan(mostly.low) and mostly.num_undefined == 80


def test_permutation_null_is_centred_on_chance_and_p_finds_an_effect() -> None:
    rng = np.random.default_rng(0)
    truth = (np.arange(60) % 2).astype(float)
    logit = (truth + rng.normal(size=60))[:, None]
    null = permutation_null(truth, headline_of_labels(logit, "binary"), num_permutations=999, seed=0)
    assert null.mean() == pytest.approx(0.5, abs=0.01)
    assert p_value(headline_of_labels(logit, "binary")(truth), null, higher_is_better=True) < 0.01
    assert p_value(0.5, null, higher_is_better=True) > 0.3
    assert p_value(0.5, np.full(9, 0.5), higher_is_better=True) == 1.0


def test_labels_of_families_move_together() -> None:
    families = [f"f{k // 2}" for k in range(40)]
    truth = np.repeat(np.arange(20) % 2, 2).astype(float)

    def split_families(labels: np.ndarray) -> float:
        return float((labels[::2] != labels[1::2]).sum())

    free = permutation_null(truth, split_families, num_permutations=50, seed=0)
    blocks = permutation_null(truth, split_families, num_permutations=50, seed=0, families=families)
    assert free.min() > 0 and blocks.max() == 0


def test_pairs_that_differ_can_still_be_told_from_chance() -> None:
    families = [f"f{k // 2}" for k in range(20)]
    truth = (np.arange(20) % 2).astype(float)
    statistic = headline_of_labels(truth[:, None], "binary")
    null = permutation_null(truth, statistic, num_permutations=999, seed=0, families=families)
    assert null.mean() == pytest.approx(0.5, abs=0.03)
    assert p_value(statistic(truth), null, higher_is_better=True) < 0.01


def test_p_is_valid_under_the_null() -> None:
    rng = np.random.default_rng(3)
    truth = (np.arange(30) % 2).astype(float)
    found = []
    for seed in range(200):
        statistic = headline_of_labels(rng.normal(size=(30, 1)), "binary")
        null = permutation_null(truth, statistic, num_permutations=99, seed=seed)
        found.append(p_value(statistic(truth), null, higher_is_better=True))
    assert 0.01 < np.mean(np.array(found) <= 0.05) < 0.10
