"""The expected calibration error against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from eval.scoring.calibration import calibration_errors, num_bins
from eval.scoring.metrics import confidence, score


@pytest.mark.parametrize(("num", "bins"), [(40, 4), (100, 10), (300, 10)])
def test_equals_the_curve_of_scikit_learn(num: int, bins: int) -> None:
    rng = np.random.default_rng(num)
    chance = rng.uniform(size=num)
    outcome = (rng.uniform(size=num) < chance**2).astype(float)
    share, mean = calibration_curve(outcome, chance, n_bins=bins, strategy="quantile")
    assert num_bins(num) == bins
    assert calibration_errors(chance, outcome, np.ones((1, num)))[0] == pytest.approx(np.abs(share - mean).mean())


def test_one_constant_is_one_bin() -> None:
    assert calibration_errors(np.full(50, 0.7), np.repeat([1.0, 0.0], 25), np.ones((1, 50))) == pytest.approx(0.2)


def test_several_classes_are_judged_by_the_most_probable_one() -> None:
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    sure, came_true = confidence([0, 2], logits, "multiclass")
    assert sure == pytest.approx([0.5, 0.8]) and came_true.tolist() == [1.0, 0.0]
    assert score([0, 2], logits, "multiclass")["ece"] == pytest.approx(abs((0.5 + 0.8) - 1) / 2), "one bin of two"
