"""Rows, paired advantages and the words for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from eval.page.prose import in_sentence, number
from eval.scoring.assessment import assess, paired
from eval.subjects import Model, Predictions, Scored
from eval.targets import Target
from shards.errors import MismatchError, UsageError

NAN = float("nan")
AGE = Target(column="age", kind="regression", levels=(), mean=50.0, std=10.0)
SEX = Target(column="sex", kind="binary", levels=("F", "M"), mean=NAN, std=NAN)
DIAGNOSIS = Target(column="dx", kind="multiclass", levels=("a", "b", "c"), mean=NAN, std=NAN)
TRUTH = np.linspace(30, 70, 21)


OPTIONS: dict[str, Any] = {"families": None, "num_resamples": 300, "num_permutations": 100, "seed": 0}


def _entry(
    key: str, output: np.ndarray, truth: np.ndarray = TRUTH, held_out: Predictions | None = None, role: str = "baseline"
) -> Scored:
    return Scored(
        model=Model(key=key, label=key, role="ours" if key == "ours" else role, sees="", note=""),  # type: ignore[arg-type]
        predictions=_rows(output, truth),
        held_out=held_out,
    )


def _rows(output: np.ndarray, truth: np.ndarray, first: int = 0) -> Predictions:
    subjects = tuple(f"{first + k:03d}" for k in range(truth.size))
    return Predictions(model="", subset="test", subjects=subjects, y_true=truth, output=output.reshape(truth.size, -1))


def _noisy(seed: int, size: int = 30, effect: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    truth = (np.arange(size) % 2).astype(float)
    return truth, effect * truth + np.random.default_rng(seed).normal(size=size)


def test_advantage_is_positive_when_the_error_is_smaller_and_paired() -> None:
    wobble = np.random.default_rng(0).normal(size=21) * 8
    fc, ours = _entry("fc", TRUTH + wobble + np.sign(wobble)), _entry("ours", TRUTH + wobble)
    found = assess([fc, ours], AGE, **OPTIONS)
    advantage = found.row("fc").advantage
    assert advantage is not None and found.ours.advantage is None
    assert advantage.value == pytest.approx(1.0)
    assert advantage.low == pytest.approx(1.0) and advantage.high == pytest.approx(1.0), "the same resamples"
    own = found.ours.scores["mae"]
    assert own.high - own.low > 2, "each model alone is far less certain"


def test_any_two_rows_can_be_compared() -> None:
    truth, logit = _noisy(0)
    other = _noisy(1)[1]
    entries = [_entry("fc", other, truth), _entry("flat", 0 * truth, truth), _entry("ours", logit, truth)]
    found = assess(entries, SEX, **OPTIONS)
    difference = roc_auc_score(truth, other) - roc_auc_score(truth, logit)
    assert paired(found, "fc", "ours").value == pytest.approx(difference)
    assert paired(found, "ours", "fc") == found.row("fc").advantage
    forth, back = paired(found, "fc", "flat"), paired(found, "flat", "fc")
    assert [forth.low, forth.high] == pytest.approx([-back.high, -back.low], abs=1e-3)


def test_the_best_baseline_has_the_best_headline_and_is_a_baseline() -> None:
    truth, good = _noisy(2)
    entries = [
        _entry("flat", 0 * truth, truth),
        _entry("fc", good, truth),
        _entry("reprobed", 9 * truth, truth, role="control"),
        _entry("ours", -good, truth),
    ]
    found = assess(entries, SEX, **OPTIONS)
    assert found.best_baseline().model.key == "fc"
    assert [row.model.key for row in found.baselines] == ["flat", "fc"]
    assert [row.model.key for row in found.controls] == ["reprobed"]
    ages = assess([_entry("near", TRUTH + 1), _entry("far", TRUTH + 9), _entry("ours", TRUTH)], AGE, **OPTIONS)
    assert ages.best_baseline().model.key == "near", "a smaller error is better"
    with pytest.raises(ValueError, match="empty"):
        assess([_entry("ours", TRUTH)], AGE, **OPTIONS).best_baseline()


def test_p_is_adjusted_over_baselines_only() -> None:
    truth, logit = _noisy(3, effect=2.0)
    entries = [
        _entry("one", _noisy(4)[1], truth),
        _entry("two", _noisy(5)[1], truth),
        _entry("untrained", _noisy(6)[1], truth, role="control"),
        _entry("ours", logit, truth),
    ]
    found = assess(entries, SEX, **OPTIONS)
    raw = sorted(row.advantage_p for row in found.baselines)
    expected = [min(1.0, 2 * raw[0]), min(1.0, max(2 * raw[0], raw[1]))]
    assert sorted(row.adjusted_p for row in found.baselines) == pytest.approx(expected)
    control = found.row("untrained")
    assert np.isfinite(control.advantage_p) and np.isnan(control.adjusted_p)
    assert np.isnan(found.ours.advantage_p) and np.isnan(found.ours.adjusted_p)


def test_the_threshold_comes_from_held_out_subjects() -> None:
    truth, logit = _noisy(7)
    shifted = logit + 10.0
    held_truth, held_logit = _noisy(8, size=200)
    held_out = _rows(held_logit + 10.0, held_truth, first=500)
    with_cut = assess([_entry("ours", shifted, truth, held_out)], SEX, **OPTIONS).ours
    without = assess([_entry("ours", shifted, truth)], SEX, **OPTIONS).ours
    assert with_cut.threshold == pytest.approx(10.5, abs=0.5) and with_cut.num_held_out == 200
    expected = balanced_accuracy_score(truth, shifted > with_cut.threshold)
    assert with_cut.scores["balanced_accuracy"].value == pytest.approx(expected)
    assert without.threshold == 0.0 and without.scores["balanced_accuracy"].value == 0.5
    assert with_cut.scores["auroc"] == without.scores["auroc"]


def test_scored_subjects_may_not_choose_the_threshold() -> None:
    truth, logit = _noisy(0)
    with pytest.raises(ValueError, match="would choose its threshold"):
        assess([_entry("ours", logit, truth, _rows(logit, truth, first=29))], SEX, **OPTIONS)


def test_perfect_order_of_few_subjects_is_not_certainty() -> None:
    truth = (np.arange(20) % 2).astype(float)
    found = assess([_entry("flat", 0 * truth, truth), _entry("ours", truth, truth)], SEX, **OPTIONS)
    limit = binomtest(10, 10).proportion_ci(0.95, method="exact").low
    auroc, advantage = found.ours.scores["auroc"], found.row("flat").advantage
    assert [auroc.low, auroc.high] == pytest.approx([limit, 1.0])
    assert advantage is not None and advantage.low == pytest.approx(0.5 - (1 - limit))
    assert found.row("flat").scores["auroc"].low == 0.5, "a constant is 0.5 whoever is asked"


def test_four_subjects_settle_nothing() -> None:
    truth = np.array([0.0, 1.0, 0.0, 1.0])
    row = assess([_entry("flat", 0 * truth, truth), _entry("ours", truth, truth)], SEX, **OPTIONS).row("flat")
    assert row.advantage is not None and row.advantage.low < 0 < row.advantage.high
    assert row.advantage_p == pytest.approx(2 * 0.5**2)


@pytest.mark.parametrize("target", [SEX, DIAGNOSIS, AGE], ids=["binary", "multiclass", "regression"])
def test_one_subject_is_scored_where_one_allows_it(target: Target) -> None:
    width = len(target.levels) if target.kind == "multiclass" else 1
    found = assess([_entry("ours", np.ones((1, width)), np.ones(1))], target, **OPTIONS).ours
    key = "mae" if target is AGE else "accuracy"
    assert np.isfinite(found.scores[key].value)
    assert np.isnan(found.scores["spearman" if target is AGE else "auroc"].low)


@pytest.mark.parametrize("target", [SEX, DIAGNOSIS, AGE], ids=["binary", "multiclass", "regression"])
def test_the_order_of_models_changes_no_number(target: Target) -> None:
    rng = np.random.default_rng(0)
    width = len(target.levels) if target.kind == "multiclass" else 1
    truth = TRUTH if target is AGE else (np.arange(21) % len(target.levels)).astype(float)
    entries = [_entry(key, rng.normal(size=(21, width)), truth) for key in ("fc", "mean", "ours")]
    families = [f"f{k // 2}" for k in range(21)]
    first, second = (assess(models, target, **OPTIONS | {"families": families}) for models in (entries, entries[::-1]))
    for key in ("fc", "mean", "ours"):
        assert first.row(key).scores == second.row(key).scores
        assert first.row(key).advantage == second.row(key).advantage


def test_models_of_other_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="other subjects"):
        assess([_entry("fc", TRUTH[:20], TRUTH[:20]), _entry("ours", TRUTH)], AGE, **OPTIONS)


def test_r2_and_units_refer_to_what_training_stored() -> None:
    far = Target(column="age", kind="regression", levels=(), mean=0.0, std=2.0)
    constant = [_entry("ours", np.full(21, 50.0))]
    near, other = (assess(constant, target, **OPTIONS).ours.scores for target in (AGE, far))
    assert near["r2"].value == pytest.approx(0.0) and other["r2"].value > 0.9
    assert other["mse_z"].value == pytest.approx(25 * near["mse_z"].value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-0.5, "\N{MINUS SIGN}0.500"), (12.3456, "12.35"), (1234.5, "1234"), (NAN, "undefined")],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


def test_labels_in_a_sentence() -> None:
    assert [in_sentence(label) for label in ("AUROC", "Balanced accuracy", "MAE")] == [
        "AUROC",
        "balanced accuracy",
        "MAE",
    ]


def test_targets_are_read_and_refused_by_name() -> None:
    record = {"column": "sex", "kind": "binary", "levels": ["F", "M"], "mean": None, "std": None}
    target = Target.from_json(record)
    assert target.encode({"a": "M", "b": "F"}) == {"a": 1.0, "b": 0.0}
    with pytest.raises(UsageError, match=r"column 'sex': subject a has 'X', .* F, M"):
        target.encode({"a": "X"})
    with pytest.raises(UsageError, match="no target"):
        Target.from_json(None)
    with pytest.raises(MismatchError, match="survival"):
        Target.from_json({"column": "t", "kind": "survival"})
    for raw in ("old", "inf"):
        with pytest.raises(UsageError, match=f"{raw!r}, a finite number"):
            AGE.encode({"a": raw})
