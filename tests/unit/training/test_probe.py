"""The closed-form probe against scikit-learn and against refitting without each subject."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from training.pooling import feature_groups
from training.probe import BUNDLES, calibrate, fit_probe, fit_ridge

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


def chosen_columns(features: str, dimensions: int) -> list[np.ndarray]:
    """Columns of each bundle of a choice."""
    order = {group.name: group.start + np.flatnonzero(np.asarray(group.order) < dimensions) for group in GROUPS}
    return [np.concatenate([order[name] for name in bundle]) for bundle in BUNDLES[features]]


@pytest.mark.parametrize(("name", "dimensions"), [("sym0", 6), ("anti1", 4), ("anti1", 6)])
def test_the_informative_features_are_found_and_generalise(name: str, dimensions: int) -> None:
    probe = fit_probe(*planted((name,), dimensions), GROUPS)
    assert any(name in bundle for bundle in BUNDLES[probe.features])
    x, y = planted((name,), dimensions, seed=2)
    assert np.mean(np.sign(x @ probe.weight.T + probe.bias) == y) > 0.9


def test_features_that_were_not_chosen_have_no_weight() -> None:
    probe = fit_probe(*planted(("anti1",), 4), GROUPS)
    assert probe.features != "all"
    unused = np.setdiff1d(np.arange(NUM_FEATURES), np.concatenate(chosen_columns(probe.features, probe.dimensions)))
    assert len(unused) and not probe.weight[:, unused].any()


def test_leave_one_out_scores_are_those_of_refits() -> None:
    x, y = planted(("sym0",), 6, num_subjects=30)
    probe = fit_probe(x, y, GROUPS)
    bundles = [x[:, columns] for columns in chosen_columns(probe.features, probe.dimensions)]
    scaled = np.concatenate([bundle / np.sqrt(bundle.var(axis=0).sum()) for bundle in bundles], axis=1)
    oracle = cross_val_predict(Ridge(alpha=probe.penalty), scaled, y[:, 0], cv=LeaveOneOut())
    assert np.allclose(probe.loo_score[:, 0], oracle)
    assert probe.loo_error == pytest.approx(np.mean((oracle - y[:, 0]) ** 2))


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
