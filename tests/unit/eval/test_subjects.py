"""Windows become subjects, each frame once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.subjects import Predictions, gather_subjects, predictions
from shards.errors import UsageError

RUNS = [
    SimpleNamespace(run_id="sub-a_run-1", subject="a", num_frames=10),
    SimpleNamespace(run_id="sub-a_run-2", subject="a", num_frames=30),
    SimpleNamespace(run_id="sub-b", subject="b", num_frames=5),
]


def _window(run: int, start: int, num_frames: int, *output: float) -> dict[str, Any]:
    return {"run": run, "start": start, "num_frames": num_frames, "output": np.array(output)}


def test_logits_are_averaged_over_frames_of_all_runs_in_any_order() -> None:
    windows = [
        _window(1, 0, 30, 0.0, 2.0),
        _window(2, 0, 5, 1.0, 0.0),
        _window(0, 8, 2, 0.0, 10.0),
        _window(0, 0, 8, 0.0, 1.0),
    ]
    found = gather_subjects(windows, RUNS, [0, 1, 2], "binary")
    assert list(found) == ["a", "b"]
    assert found["a"] == pytest.approx([(30 * 2 + 8 * 1 + 2 * 10) / 40])
    assert found["b"] == pytest.approx([-1.0])


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([_window(2, 0, 3, 1.0)], "cover 3 frames, the run has 5"),
        ([_window(2, 0, 5, 1.0), _window(2, 0, 5, 1.0)], "covered twice"),
        ([_window(2, 0, 3, 1.0), _window(2, 2, 3, 1.0)], "frame 2 is covered twice"),
        ([_window(2, 0, 2, 1.0), _window(2, 3, 2, 1.0)], "frame 2 is covered not at all"),
        ([_window(2, 0, 3, 1.0), _window(2, 3, 3, 1.0)], "cover 6 frames"),
        ([], "cover 0 frames"),
        ([_window(2, 0, 5, 1.0), _window(0, 0, 10, 1.0)], "not asked for"),
    ],
)
def test_frames_twice_or_never_are_refused(windows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_subjects(windows, RUNS, [2], "binary")


def test_a_diverged_model_is_named() -> None:
    with pytest.raises(UsageError, match="not finite for 1 of 1 subjects, first b"):
        gather_subjects([_window(2, 0, 5, float("nan"))], RUNS, [2], "regression")


def test_rows_are_sorted_and_unique() -> None:
    rows = predictions("ours", "test", {"b": [1.0], "a": [2.0]}, {"a": 0.0, "b": 1.0, "c": 0.0})
    assert rows.subjects == ("a", "b") and rows.y_true.tolist() == [0, 1] and rows.output.tolist() == [[2.0], [1.0]]
    with pytest.raises(ValueError, match="twice"):
        Predictions(model="m", subset="test", subjects=("a", "a"), y_true=np.zeros(2), output=np.zeros((2, 1)))
