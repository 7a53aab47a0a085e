"""Cuts of the logit: the best on held-out subjects, and never on the scored ones."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from eval.scoring.metrics import score
from eval.scoring.thresholds import balanced_cut, threshold_of
from eval.subjects import Predictions


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_on_the_roc_curve_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.r_[0, 1, rng.integers(0, 2, 30)]
    logit = np.round(truth + rng.normal(size=32) + 5, 1)
    wrong, right, _ = roc_curve(truth, logit, drop_intermediate=False)
    cut = balanced_cut(truth, logit)
    assert score(truth, logit[:, None], "binary", threshold=cut)["balanced_accuracy"] == pytest.approx(
        np.max(1 + right - wrong) / 2, abs=1e-12
    )


def test_the_cut_lies_in_the_middle_between_the_classes() -> None:
    assert balanced_cut([0, 0, 1, 1], [1.0, 2.0, 5.0, 9.0]) == 3.5


def test_of_equally_good_cuts_the_middle_one_is_taken() -> None:
    # cuts at 1.5, 3.5 and 5.5 all have a balanced accuracy of 2/3
    assert balanced_cut([0, 1, 0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == 3.5


@pytest.mark.parametrize(
    ("truth", "logit"),
    [([1, 1, 1], [1.0, 2.0, 3.0]), ([0, 1], [4.0, 4.0]), ([1, 1, 0, 0], [1.0, 2.0, 3.0, 4.0])],
    ids=["one class", "one logit", "the wrong way round"],
)
def test_without_an_order_the_cut_is_0(truth: list[int], logit: list[float]) -> None:
    assert balanced_cut(truth, logit) == 0.0


def test_only_a_binary_model_with_held_out_subjects_has_a_cut() -> None:
    rows = Predictions(
        model="ours", subset="val", subjects=("a", "b"), y_true=np.array([0.0, 1.0]), output=np.array([[2.0], [4.0]])
    )
    assert threshold_of(rows, "binary") == 3.0
    assert threshold_of(None, "binary") == 0.0
    assert threshold_of(rows, "regression") == 0.0
