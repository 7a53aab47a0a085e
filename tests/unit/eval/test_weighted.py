"""Resampled metrics equal the plain ones on repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eval.scoring.metrics import METRICS, headline, score
from eval.scoring.weighted import headline_of_labels, weighted_scores


def _case(kind: str, seed: int, num: int = 17) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if kind == "regression":
        return np.round(rng.normal(size=num), 1), np.round(rng.normal(size=(num, 1)), 1)
    levels = 2 if kind == "binary" else 3
    return rng.integers(0, levels, num).astype(float), np.round(rng.normal(size=(num, levels - (levels == 2))), 1)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_counts_mean_repeated_subjects(kind: str, seed: int) -> None:
    truth, output = _case(kind, seed)
    counts = np.random.default_rng(seed + 100).integers(0, 3, (12, truth.size))
    options = {"train_mean": 0.25, "train_std": 1.5, "threshold": 0.3}
    found = weighted_scores(truth, output, kind, counts, **options)  # type: ignore[arg-type]
    for index, row in enumerate(counts):
        repeated = np.repeat(np.arange(truth.size), row)
        expected = score(truth[repeated], output[repeated], kind, **options)  # type: ignore[arg-type]
        for key, value in expected.items():
            assert found[key][index] == pytest.approx(value, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("seed", range(3))
def test_spread_of_the_resample_where_training_left_none(seed: int) -> None:
    truth, output = _case("regression", seed)
    counts = np.random.default_rng(seed).integers(0, 3, (12, truth.size))
    found = weighted_scores(truth, output, "regression", counts)
    for index, row in enumerate(counts):
        repeated = np.repeat(np.arange(truth.size), row)
        expected = score(truth[repeated], output[repeated], "regression")
        for key in ("r2", "mse_z"):
            assert found[key][index] == pytest.approx(expected[key], abs=1e-9)


def test_auroc_equals_scikit_learn_with_weights_and_ties() -> None:
    truth, output = _case("binary", 3, 40)
    counts = np.random.default_rng(0).integers(0, 4, (30, 40))
    found = weighted_scores(truth, output, "binary", counts)["auroc"]
    expected = [roc_auc_score(truth, output[:, 0], sample_weight=row) for row in counts]
    assert found == pytest.approx(expected, abs=1e-12)


def test_resamples_of_one_class_are_undefined() -> None:
    counts = np.array([[2, 0, 0], [0, 1, 1], [1, 1, 1]])
    found = weighted_scores([0, 1, 1], [[0.0], [1.0], [2.0]], "binary", counts)
    assert np.isnan(found["auroc"]).tolist() == [True, True, False]


@pytest.mark.parametrize("kind", METRICS)
def test_headline_under_other_labels(kind: str) -> None:
    truth, output = _case(kind, 1)
    statistic = headline_of_labels(output, kind)  # type: ignore[arg-type]
    for seed in range(5):
        labels = np.random.default_rng(seed).permutation(truth)
        expected = score(labels, output, kind)[headline(kind).key]  # type: ignore[arg-type]
        assert statistic(labels) == pytest.approx(expected, abs=1e-12)
