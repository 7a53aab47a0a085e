"""Intervals of few subjects cover what they should; metrics and resamples belong together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from eval.scoring.intervals import Draws, Resampled, difference, draw, intervals, resample
from eval.subjects import Predictions
from eval.targets import Target

NAN = float("nan")
SEX = Target(column="sex", kind="binary", levels=("F", "M"), mean=NAN, std=NAN)
AGE = Target(column="age", kind="regression", levels=(), mean=0.0, std=1.0)


def _resampled(truth: np.ndarray, output: np.ndarray, target: Target, draws: Draws) -> Resampled:
    subjects = tuple(str(k) for k in range(truth.size))
    rows = Predictions(model="", subset="test", subjects=subjects, y_true=truth, output=output[:, None])
    return resample(rows, target, 0.0, draws)


def _separation(auroc: float) -> float:
    """Distance between two normal classes that are told apart so well."""
    return float(np.sqrt(2) * norm.ppf(auroc))


def test_each_resample_is_scored_as_scikit_learn_would() -> None:
    rng = np.random.default_rng(0)
    truth, logit = (np.arange(20) % 2).astype(float), np.round(rng.normal(size=20), 1)
    draws = draw(truth, SEX, families=None, num_resamples=100, seed=0)
    found = _resampled(truth, logit, SEX, draws)
    expected = [roc_auc_score(truth, logit, sample_weight=row) for row in draws.counts]
    assert found.bootstrap["auroc"] == pytest.approx(expected, abs=1e-12)
    expected = [roc_auc_score(np.delete(truth, k), np.delete(logit, k)) for k in range(20)]
    assert sorted(found.jackknife["auroc"]) == pytest.approx(sorted(expected), abs=1e-12)


def test_many_resamples_are_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.normal(size=30), rng.normal(size=30)
    draws = draw(truth, AGE, families=None, num_resamples=101, seed=0)
    whole = _resampled(truth, guess, AGE, draws)
    monkeypatch.setattr("eval.scoring.intervals._CELLS_AT_ONCE", 7 * 30)
    pieces = _resampled(truth, guess, AGE, draws)
    assert all(pieces.bootstrap[key] == pytest.approx(whole.bootstrap[key], nan_ok=True) for key in whole.bootstrap)


def test_relatives_of_one_class_count_once_in_the_exact_limit() -> None:
    truth = np.repeat([0.0, 1.0], 6)
    families = [f"f{k // 2}" for k in range(12)]
    lows = []
    for names in (None, families):
        draws = draw(truth, SEX, families=names, num_resamples=100, seed=0)
        lows.append(intervals(_resampled(truth, truth - 0.5, SEX, draws), draws)["auroc"].low)
    assert lows == pytest.approx([0.025 ** (1 / 6), 0.025 ** (1 / 3)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [30, 60])
@pytest.mark.parametrize("auroc", [0.5, 0.8])
def test_coverage_of_auroc_in_small_test_sets(auroc: float, size: int) -> None:
    covered = []
    for trial in range(1000):
        truth = (np.arange(size) % 2).astype(float)
        logit = np.random.default_rng(trial).normal(size=size) + _separation(auroc) * truth
        draws = draw(truth, SEX, families=None, num_resamples=1000, seed=trial)
        found = intervals(_resampled(truth, logit, SEX, draws), draws)["auroc"]
        covered.append(found.low <= auroc <= found.high)
    assert 0.94 < np.mean(covered) < 0.985


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [30, 60])
def test_equal_models_rarely_differ_in_small_test_sets(size: int) -> None:
    excluded, called = [], []
    for trial in range(1000):
        rng = np.random.default_rng(trial)
        truth, shared = (np.arange(size) % 2).astype(float), rng.normal(size=size)
        draws = draw(truth, SEX, families=None, num_resamples=1000, seed=trial)
        one, other = (_resampled(truth, shared + rng.normal(size=size) + 2 * truth, SEX, draws) for _ in range(2))
        found, p = difference(one, other, "auroc", draws)
        excluded.append(not found.low <= 0 <= found.high)
        called.append(p <= 0.05)
    assert np.mean(excluded) < 0.07 and np.mean(called) < 0.07
