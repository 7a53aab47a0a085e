"""What a column is, learned from training subjects alone."""

from __future__ import annotations

import numpy as np
import pytest

from shards.errors import UsageError
from training.finetuning.targets import Target, known_numbers, learn_target, level_weights


def column(*values: str) -> dict[str, str]:
    return {f"{k:02d}": value for k, value in enumerate(values)}


def learn(values: dict[str, str], kind: str = "auto") -> Target:
    return learn_target("x", values, sorted(values), kind)


@pytest.mark.parametrize(
    ("values", "kind", "levels"),
    [
        (column(*"MFMF"), "binary", ("F", "M")),
        (column(*"10" * 4), "binary", ("0", "1")),
        (column(*"2" * 3, *"10" * 3), "multiclass", ("0", "1", "2")),
        (column(*(str(v) for v in [10, 9, 10, 9, 2, 2])), "multiclass", ("2", "9", "10")),
        (column(*"ABCABC"), "multiclass", ("A", "B", "C")),
        (column("1.5", "2.5", "3", "4"), "regression", ()),
        (column(*(str(k) for k in range(20))), "regression", ()),
    ],
)
def test_kind_and_levels(values: dict[str, str], kind: str, levels: tuple[str, ...]) -> None:
    target = learn(values)
    assert (target.kind, target.levels) == (kind, levels)


def test_a_measure_is_standardised_by_training_subjects_only() -> None:
    values = column("1", "2", "3", "4.5", "1000")
    target = learn_target("x", values, ["00", "01", "02", "03"])
    assert target.mean == pytest.approx(np.mean([1, 2, 3, 4.5]))
    assert target.std == pytest.approx(np.std([1, 2, 3, 4.5]))


@pytest.mark.parametrize(
    ("values", "kind", "named"),
    [
        (column("a", "b"), "auto", "at least 4"),
        (column(*"AABBC"), "auto", "'C'"),
        (column(*"AAAA"), "auto", "binary needs 2"),
        (column(*"ABCABC"), "binary", "binary needs 2"),
        (column("1", "2", "x", "3"), "regression", "'x'"),
        (column("1", "2", "nan", "3"), "regression", "'nan'"),
        (column(*["7"] * 5), "regression", "all training subjects"),
        (column(*[f"id{k}" for k in range(30)]), "auto", "30 classes"),
    ],
)
def test_what_cannot_be_learned_is_refused(values: dict[str, str], kind: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        learn(values, kind)


def test_levels_that_training_never_saw_are_left_out() -> None:
    target = learn(column(*"MFMF"))
    assert known_numbers(target, {"90": "M", "91": "X", "92": "F"}, ["90", "91", "92", "93"]) == {"90": 1.0, "92": 0.0}


def test_level_weights_average_to_one_over_subjects() -> None:
    target = learn(column(*"MFMF"))
    numbers = [0.0] * 9 + [1.0] * 3
    weights = level_weights(target, numbers)
    assert weights[1] == pytest.approx(3 * weights[0])
    assert np.mean([weights[int(n)] for n in numbers]) == pytest.approx(1)
