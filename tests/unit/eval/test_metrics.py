"""Metrics against scikit-learn and scipy, ties and degenerate subjects included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as oracle
from sklearn.linear_model import LinearRegression

from eval.scoring.metrics import METRICS, as_logits, probabilities, score, subject_score

SEEDS = range(20)


def _tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.round(rng.normal(size=shape), 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_binary_equals_scikit_learn_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.r_[0, 1, rng.integers(0, 2, 25)]
    logit = _tied(rng, (27, 1))
    found = score(truth, logit, "binary")
    positive = 1 / (1 + np.exp(-logit[:, 0]))
    decided = (positive > 0.5).astype(int)
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth, positive), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(truth, decided), abs=1e-12)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, decided), abs=1e-12)
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, decided, average="macro"), abs=1e-12)
    assert found["brier"] == pytest.approx(oracle.brier_score_loss(truth, positive), abs=1e-12)


@pytest.mark.parametrize("threshold", [-0.7, 0.4])
def test_a_threshold_moves_decisions_and_nothing_else(threshold: float) -> None:
    rng = np.random.default_rng(4)
    truth, logit = np.r_[0, 1, rng.integers(0, 2, 25)], _tied(rng, (27, 1))
    decided = (logit[:, 0] > threshold).astype(int)
    found, plain = score(truth, logit, "binary", threshold=threshold), score(truth, logit, "binary")
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(truth, decided), abs=1e-12)
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, decided, average="macro"), abs=1e-12)
    assert [found[key] == plain[key] for key in ("auroc", "brier", "ece", "accuracy")] == [True, True, True, False]


@pytest.mark.parametrize("seed", SEEDS)
def test_multiclass_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.r_[0, 1, 2, 3, rng.integers(0, 4, 30)]
    logits = _tied(rng, (34, 4))
    decided = logits.argmax(1)
    found = score(truth, logits, "multiclass")
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(truth, decided), abs=1e-12)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, decided), abs=1e-12)
    assert found["f1_macro"] == pytest.approx(oracle.f1_score(truth, decided, average="macro"), abs=1e-12)
    shares = special.softmax(logits, axis=1)
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth, shares, multi_class="ovr"), abs=1e-12)
    one_hot = np.eye(4)[truth]
    assert found["brier"] == pytest.approx(4 * oracle.mean_squared_error(one_hot, shares), abs=1e-12)


def test_a_level_that_nobody_has_is_left_out_of_the_averages() -> None:
    rng = np.random.default_rng(1)
    truth, logits = rng.permutation(np.repeat([0, 2], 10)), rng.normal(size=(20, 3))
    shares = special.softmax(logits, axis=1)
    by_level = [oracle.roc_auc_score(truth == level, shares[:, level]) for level in (0, 2)]
    assert score(truth, logits, "multiclass")["auroc"] == pytest.approx(np.mean(by_level), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_equals_scikit_learn_and_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, guess = _tied(rng, (20,)), _tied(rng, (20, 1))
    found = score(truth, guess, "regression")
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(truth, guess), abs=1e-12)
    assert found["rmse"] == pytest.approx(oracle.root_mean_squared_error(truth, guess), abs=1e-12)
    assert found["r2"] == pytest.approx(oracle.r2_score(truth, guess), abs=1e-12)
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, guess[:, 0])[0], abs=1e-12)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, guess[:, 0])[0], abs=1e-12)
    line = LinearRegression().fit(guess, truth)
    assert found["slope"] == pytest.approx(line.coef_[0], abs=1e-12)
    unit = score(truth, guess, "regression", train_std=2.5)["mse_z"]
    assert unit == pytest.approx(oracle.mean_squared_error(truth / 2.5, guess / 2.5), abs=1e-12)


def test_r2_refers_to_the_training_mean() -> None:
    truth = np.array([10.0, 12.0])
    assert score(truth, np.full((2, 1), 5.0), "regression", train_mean=5.0)["r2"] == pytest.approx(0.0)
    assert score(truth, np.full((2, 1), 11.0), "regression", train_mean=5.0)["r2"] > 0.9


def test_two_logits_of_a_binary_model_are_one() -> None:
    two = np.array([[0.2, 1.5], [2.0, -1.0]])
    assert as_logits(two, "binary").ravel() == pytest.approx([1.3, -3.0])
    assert probabilities(two, "binary") == pytest.approx(np.exp(two) / np.exp(two).sum(1, keepdims=True))


def test_one_class_is_undefined_not_a_crash() -> None:
    found = score([1, 1, 1], [[0.3], [0.1], [-2.0]], "binary")
    assert np.isnan(found["auroc"]) and np.isnan(found["balanced_accuracy"])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["brier"] > 0 and np.isfinite(found["ece"])
    constant = score([1.0, 2.0, 3.0], np.full((3, 1), 2.0), "regression")
    assert np.isnan(constant["pearson"]) and np.isnan(constant["slope"]) and constant["mae"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", METRICS)
def test_one_subject_gets_what_one_subject_allows(kind: str) -> None:
    found = score([1.0], np.ones((1, 3 if kind == "multiclass" else 1)), kind)  # type: ignore[arg-type]
    defined = {key for key, value in found.items() if np.isfinite(value)}
    assert defined == ({"mae", "rmse"} if kind == "regression" else {"accuracy", "brier", "ece"})


@pytest.mark.parametrize("kind", METRICS)
def test_nobody_to_score_is_undefined(kind: str) -> None:
    assert all(np.isnan(value) for value in score([], np.zeros((0, 1)), kind).values())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "truth", "good", "bad"),
    [
        ("binary", [0, 0, 1, 1], [[-1.0], [-2.0], [1.0], [2.0]], [[1.0], [2.0], [-1.0], [-2.0]]),
        ("binary", [1, 1], [[3.0], [3.0]], [[-3.0], [-3.0]]),
        ("multiclass", [0, 2], [[2.0, 0, 0], [0, 0, 2.0]], [[0, 2.0, 0], [0, 2.0, 0]]),
        ("regression", [1.0, 3.0], [[1.1], [2.9]], [[3.0], [1.0]]),
        ("regression", [2.0], [[2.1]], [[5.0]]),
    ],
)
def test_a_better_model_has_the_higher_finite_score(kind: str, truth: list, good: list, bad: list) -> None:
    better, worse = subject_score(truth, good, kind), subject_score(truth, bad, kind)  # type: ignore[arg-type]
    assert np.isfinite([better, worse]).all() and better > worse


def test_a_score_of_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one subject"):
        subject_score([], np.zeros((0, 1)), "binary")
