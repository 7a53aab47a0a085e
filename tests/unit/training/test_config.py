"""The flags: what is refused, and that a refusal names the flag to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shards.errors import UsageError
from training.config import TrainConfig, architecture, resolve
from training.presets import PRESETS

BASE: dict[str, Any] = {"phase": 1, "shards": ("s",), "out": Path("o"), "preset": "tiny"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"phase": 3, "init": "p2"}, "--target"),
        ({"target": "age"}, "--target"),
        ({"phase": 2}, "--init"),
        ({"init": "p0"}, "--init"),
        ({"steps": 3, "epochs": 1.0}, "--steps"),
        ({"steps": 0}, "--steps"),
        ({"split": Path("x"), "split_seed": 1}, "--split_seed"),
        ({"batch_size": 0}, "--batch_size"),
        ({"lr": float("nan")}, "--lr"),
        ({"mask_fraction": 1.0}, "--mask_fraction"),
        ({"contrast_temperature": 0.0}, "--contrast_temperature"),
        ({"width": 30, "heads": 4}, "--width"),
        ({"channels": (12, 16)}, "--channels"),
        ({"channels": (16,)}, "--channels"),
    ],
)
def test_refusal_names_the_flag(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        TrainConfig(**(BASE | changes))


def test_single_flags_override_the_preset() -> None:
    config = resolve(TrainConfig(**(BASE | {"latent": 5, "lr": 0.5})))
    assert (config.latent, config.lr) == (5, 0.5)
    assert config.width == PRESETS["tiny"].size.width
    assert config.steps == PRESETS["tiny"].steps[0]


def test_a_zero_learning_rate_is_not_the_presets() -> None:
    assert resolve(TrainConfig(**(BASE | {"lr": 0.0}))).lr == 0.0


def test_epochs_leave_the_number_of_steps_open() -> None:
    assert resolve(TrainConfig(**(BASE | {"epochs": 2.0}))).steps is None


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_consistent(preset: str) -> None:
    assert architecture(TrainConfig(**(BASE | {"preset": preset}))).channels == PRESETS[preset].size.channels
