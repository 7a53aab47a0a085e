"""What the report says about controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from eval.controls.probes import CONTROLS
from eval.controls.section import controls_section
from eval.scoring.assessment import Assessment, assess
from eval.subjects import Model, Predictions, Scored
from eval.targets import Target

TARGET = Target(column="group", kind="binary", levels=("a", "b"), mean=math.nan, std=math.nan)
TRUTH = np.arange(60) % 2
NOISE = np.random.default_rng(3).standard_normal((len(CONTROLS) + 1, 60))


def assessed(**strength: float) -> Assessment:
    """Ours, and the controls, each with the signal given (2 by default) and its own noise."""
    keys = ("ours", *(control.key for control in CONTROLS))
    rows = []
    for key, noise in zip(keys, NOISE, strict=True):
        role: Any = "ours" if key == "ours" else "control"
        output = strength.get(key, 3.0) * TRUTH + noise
        found = Predictions(
            model=key,
            subset="test",
            subjects=tuple(f"{k:02d}" for k in range(60)),
            y_true=TRUTH.astype(float),
            output=output[:, None],
        )
        rows.append(Scored(model=Model(key=key, label=key, role=role, sees="", note=""), predictions=found))
    return assess(rows, TARGET, families=None, num_resamples=200, num_permutations=100, seed=0)


@pytest.mark.parametrize(
    ("strength", "words"),
    [
        ({}, "nothing here shows that our model needs the order of frames"),
        ({"shuffled": 0.0}, "Without it, chance is not excluded"),
        ({"shuffled": 1.0}, "What is left above chance is static"),
    ],
)
def test_what_shuffling_does_is_said(strength: dict[str, float], words: str) -> None:
    section = controls_section(assessed(**strength), TARGET)
    assert section is not None
    assert words in section.paragraphs[1]


@pytest.mark.parametrize(
    ("strength", "words"), [({"untrained": 0.0}, "is worth the difference"), ({}, "nothing here shows that training")]
)
def test_what_training_is_worth_is_said(strength: dict[str, float], words: str) -> None:
    section = controls_section(assessed(**strength), TARGET)
    assert section is not None
    assert words in section.paragraphs[2]


def test_each_control_has_a_line() -> None:
    section = controls_section(assessed(), TARGET)
    assert section is not None
    assert [line[0] for line in section.tables[0].rows] == [control.key for control in CONTROLS]


def test_no_controls_no_section() -> None:
    only = assessed().ours
    rows = [Scored(model=only.model, predictions=only.predictions)]
    assessment = assess(rows, TARGET, families=None, num_resamples=100, num_permutations=100, seed=0)
    assert controls_section(assessment, TARGET) is None
