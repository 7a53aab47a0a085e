"""Rows, paired advantages and the words for them."""

from __future__ import annotations

import numpy as np
import pytest

from eval.page.prose import in_sentence, number
from eval.scoring.assessment import Model, assess
from eval.subjects import Predictions
from eval.targets import Target
from shards.errors import MismatchError, UsageError

NAN = float("nan")
AGE = Target(column="age", kind="regression", levels=(), mean=50.0, std=10.0)
TRUTH = np.linspace(30, 70, 21)


def _entry(key: str, output: np.ndarray, subjects: int = 21) -> tuple[Model, Predictions]:
    rows = Predictions(
        model=key,
        subset="test",
        subjects=tuple(f"{k:02d}" for k in range(subjects)),
        y_true=TRUTH[:subjects],
        output=output[:subjects, None],
    )
    return Model(key=key, label=key, role="ours" if key == "ours" else "baseline", sees="", note=""), rows


def test_advantage_is_positive_when_the_error_is_smaller_and_paired() -> None:
    wobble = np.random.default_rng(0).normal(size=21) * 8
    fc, ours = _entry("fc", TRUTH + wobble + np.sign(wobble)), _entry("ours", TRUTH + wobble)
    found = assess([fc, ours], AGE, families=None, memberships={}, num_resamples=300, num_permutations=100, seed=0)
    advantage = found.row("fc").advantage
    assert advantage is not None and found.ours.advantage is None
    assert advantage.value == pytest.approx(1.0)
    assert advantage.low == pytest.approx(1.0) and advantage.high == pytest.approx(1.0), "the same resamples"
    own = found.ours.scores["mae"]
    assert own.high - own.low > 2, "each model alone is far less certain"


def test_models_of_other_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="other subjects"):
        assess(
            [_entry("fc", TRUTH, 20), _entry("ours", TRUTH)],
            AGE,
            families=None,
            memberships={},
            num_resamples=100,
            num_permutations=100,
            seed=0,
        )


def test_r2_refers_to_the_mean_that_training_stored() -> None:
    far = Target(column="age", kind="regression", levels=(), mean=0.0, std=1.0)
    constant = [_entry("fc", np.full(21, 50.0)), _entry("ours", np.full(21, 50.0))]
    options = {"families": None, "memberships": {}, "num_resamples": 100, "num_permutations": 100, "seed": 0}
    near = assess(constant, AGE, **options).ours.scores["r2"].value  # type: ignore[arg-type]
    assert near == pytest.approx(0.0)
    assert assess(constant, far, **options).ours.scores["r2"].value > 0.9  # type: ignore[arg-type]


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
