"""The closed-form probe against scikit-learn and against refitting without each subject."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from training.finetuning.probe import BUNDLES, PENALTIES, calibrate, fit_probe, fit_ridge
from training.networks.pooling import feature_groups

GROUPS = feature_groups("moments", 6, 8)
NUM_FEATURES = GROUPS[-1].stop


def data(num_subjects: int, num_features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_subjects, num_features)) + 5
    y = np.sign(x[:, :3].sum(1) - 15 + rng.standard_normal(num_subjects))
    return x, y[:, None]


@pytest.mark.parametrize(("num_subjects", "num_features"), [(20, 60), (60, 20)])
@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_ridge_equals_scikit_learn(num_subjects: int, num_features: int, penalty: float) -> None:
    x, y = data(num_subjects, num_features)
    weight, bias, loo = fit_ridge(x, y, penalty)
    oracle = Ridge(alpha=penalty).fit(x, y[:, 0])
    assert np.allclose(weight[:, 0], oracle.coef_)
    assert np.allclose(bias, oracle.intercept_)
    assert np.allclose(loo[:, 0], cross_val_predict(Ridge(alpha=penalty), x, y[:, 0], cv=LeaveOneOut()))
    classifier = RidgeClassifier(alpha=penalty).fit(x, y[:, 0])
    assert np.allclose(x @ weight[:, 0] + bias, classifier.decision_function(x))


def planted(
    names: tuple[str, ...], dimensions: int, num_subjects: int = 80, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Features in which only some groups, and there only the leading dimensions, know the label."""
    x = np.random.default_rng(seed).standard_normal((num_subjects, NUM_FEATURES))
    y = np.where(np.arange(num_subjects) % 2, 1.0, -1.0)
    for group in GROUPS:
        if group.name in names:
            columns = group.start + np.flatnonzero(np.asarray(group.order) < dimensions)
            x[:, columns] += 0.6 * y[:, None]
    return x, y[:, None]


@pytest.mark.parametrize(("name", "dimensions"), [("sym0", 6), ("anti1", 4), ("anti1", 6)])
def test_the_informative_features_are_found_and_generalise(name: str, dimensions: int) -> None:
    probe = fit_probe(*planted((name,), dimensions), GROUPS)
    first = next(iter(probe.shares)).split("@")[0]
    assert any(name in bundle for bundle in BUNDLES[first])
    x, y = planted((name,), dimensions, seed=2)
    assert np.mean(np.sign(x @ probe.weight.T + probe.bias) == y) > 0.9


def test_shares_are_those_of_the_weight() -> None:
    probe = fit_probe(*planted(("anti1",), 4), GROUPS)
    shares = list(probe.shares.values())
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    looked_at = {name for choice in probe.shares for bundle in BUNDLES[choice.split("@")[0]] for name in bundle}
    for group in GROUPS:
        assert probe.weight[:, group.start : group.stop].any() == (group.name in looked_at)


def alone(x: np.ndarray, y: np.ndarray, choice: str) -> np.ndarray:
    """Leave-one-out predictions of one choice, by refits of scikit-learn."""
    name, dimensions = choice.split("@")
    order = {group.name: group.start + np.flatnonzero(np.asarray(group.order) < int(dimensions)) for group in GROUPS}
    bundles = [x[:, np.concatenate([order[name] for name in bundle])] for bundle in BUNDLES[name]]
    scaled = np.concatenate([bundle / np.sqrt(bundle.var(axis=0).sum()) for bundle in bundles], axis=1)
    scores = [
        cross_val_predict(Ridge(alpha=penalty * len(bundles)), scaled, y[:, 0], cv=LeaveOneOut())
        for penalty in PENALTIES
    ]
    return min(scores, key=lambda score: float(np.mean((score - y[:, 0]) ** 2)))


def test_choices_are_stacked_as_scipy_would_stack_their_refits() -> None:
    x, y = planted(("sym0", "anti1"), 6, num_subjects=24)
    names = [f"{name}@{dimensions}" for name in BUNDLES for dimensions in (4, 6)]
    scores = np.stack([alone(x, y, name) for name in names], axis=1)
    stack, _ = nnls(scores - scores.mean(0), y[:, 0] - y.mean())
    expected = y.mean() + (scores - scores.mean(0)) @ stack
    probe = fit_probe(x, y, GROUPS)
    assert np.allclose(probe.loo_score[:, 0], expected, atol=1e-5)
    assert probe.loo_error == pytest.approx(np.mean((expected - y[:, 0]) ** 2), abs=1e-5)
    for name, share in zip(names, stack / stack.sum(), strict=True):
        assert probe.shares.get(name, 0.0) == pytest.approx(share, abs=1e-4)


def test_many_subjects_are_compared_on_some_and_fitted_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = planted(("sym0",), 6, num_subjects=90)
    whole = fit_probe(x, y, GROUPS)
    monkeypatch.setattr("training.finetuning.probe.MOST_SUBJECTS", 60)
    sampled = fit_probe(x, y, GROUPS)
    assert sampled.loo_score.shape == whole.loo_score.shape and not np.allclose(sampled.weight, whole.weight)
    assert np.mean(np.sign(sampled.loo_score) == y) > 0.9


def test_noise_is_not_predicted_out_of_sample() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, NUM_FEATURES)), np.sign(rng.standard_normal((60, 1)))
    assert fit_probe(x, y, GROUPS).loo_error > 0.8


def test_constant_features_are_harmless() -> None:
    probe = fit_probe(np.ones((10, NUM_FEATURES)), np.resize([1.0, -1.0], (10, 1)), GROUPS)
    assert np.isfinite(probe.weight).all() and np.isfinite(probe.loo_score).all()


def test_calibration_keeps_the_order_even_of_useless_scores() -> None:
    rng = np.random.default_rng(0)
    y = np.sign(rng.standard_normal((40, 1)))
    slope, _ = calibrate(-y + 0.1 * rng.standard_normal((40, 1)), y)
    assert slope[0] > 0


def test_calibrated_probabilities_match_frequencies() -> None:
    rng = np.random.default_rng(0)
    y = np.where(rng.random((4000, 1)) < 0.3, 1.0, -1.0)
    score = 0.2 * y + 0.3 * rng.standard_normal(y.shape)
    slope, offset = calibrate(score, y)
    probability = 1 / (1 + np.exp(-(score * slope + offset)))
    for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.8)):
        inside = (probability > low) & (probability < high)
        assert abs(probability[inside].mean() - (y[inside] > 0).mean()) < 0.05
