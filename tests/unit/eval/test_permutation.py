"""Nulls that are null, p-values that are valid."""

from __future__ import annotations

import numpy as np
import pytest

from eval.scoring.permutation import p_value, permutation_null
from eval.scoring.weighted import headline_of_labels


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
