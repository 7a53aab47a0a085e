"""The target of phase 3: what kind of thing a column is, and each subject's number.

Everything that is learned from values (levels, mean, SD, class weights) comes from the training
subjects alone.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import UsageError

logger = logging.getLogger(__name__)

MAX_LEVELS = 20
MIN_PER_LEVEL = 2
MIN_VALUES_OF_A_MEASURE = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a column of participants.tsv means to a model.

    Attributes
    ----------
    column, kind
        Name; `binary`, `multiclass` or `regression`.
    levels
        Classes as written in the table, in the order of the model's outputs; the logit of a binary
        target is that of the second. Empty for regression.
    mean, std
        Of the training subjects (regression), else None.
    """

    column: str
    kind: str
    levels: tuple[str, ...]
    mean: float | None
    std: float | None

    @property
    def num_outputs(self) -> int:
        """K: 1 for binary and regression, else the number of levels."""
        return len(self.levels) if self.kind == "multiclass" else 1

    @property
    def mean_and_std(self) -> tuple[float, float]:
        """Of a regression's training subjects."""
        if self.mean is None or self.std is None:
            raise ValueError(f"{self.column} is {self.kind}, which has no mean")
        return self.mean, self.std

    def number(self, text: str) -> float | None:
        """A value as number (class index, or the measure); None for a level not seen in training."""
        if self.kind == "regression":
            return float(text)
        return float(self.levels.index(text)) if text in self.levels else None

    def to_json(self) -> dict[str, Any]:
        """Content of `target.json`."""
        return asdict(self) | {"levels": list(self.levels)}


def learn_target(column: str, values: Mapping[str, str], train: Sequence[str], kind: str = "auto") -> Target:
    """Decide what a column is from the training subjects' values.

    Parameters
    ----------
    column
        Name of the column.
    values
        Subject to text, missing ones left out.
    train
        Training subjects.
    kind
        `binary`, `multiclass`, `regression`, or `auto`: two distinct values are binary; numbers with
        more than 10 distinct values, or with fractions, are a measure; everything else is classes.

    Raises
    ------
    UsageError
        The values do not fit the kind, or a class is too small to learn.
    """
    texts = [values[subject] for subject in train if subject in values]
    if len(texts) < 2 * MIN_PER_LEVEL:
        raise UsageError(
            f"--target {column}: {len(texts)} of {len(train)} training subjects have a value, at least "
            f"{2 * MIN_PER_LEVEL} needed; complete participants.tsv or choose another column"
        )
    counts = Counter(texts)
    numbers = [_as_number(text) for text in texts]
    numeric = all(math.isfinite(number) for number in numbers)
    if kind == "auto":
        kind = _guess(counts, numbers if numeric else None)
        logger.info("target %s: %s, from %d distinct values of %d subjects", column, kind, len(counts), len(texts))
    if kind == "regression":
        return _measure(column, values, numbers)
    levels = sorted(counts, key=lambda text: (_as_number(text) if numeric else 0.0, text))
    if kind == "binary" and len(levels) != 2:
        raise UsageError(
            f"--target {column}: binary needs 2 values, the training subjects have {len(levels)} ({_some(levels)}); "
            "choose another column or --target_kind"
        )
    if not 2 <= len(levels) <= MAX_LEVELS:
        raise UsageError(
            f"--target {column}: {len(levels)} classes ({_some(levels)}), allowed 2 to {MAX_LEVELS}; choose another "
            "column, or --target_kind regression for a measure"
        )
    rare = [level for level in levels if counts[level] < MIN_PER_LEVEL]
    if rare:
        raise UsageError(
            f"--target {column}: {rare[0]!r} has {counts[rare[0]]} training subject, at least {MIN_PER_LEVEL} needed; "
            "merge or remove rare classes in participants.tsv"
        )
    return Target(column=column, kind=kind, levels=tuple(levels), mean=None, std=None)


def known_numbers(target: Target, values: Mapping[str, str], subjects: Sequence[str]) -> dict[str, float]:
    """Subject to number, for those that have one; a level that training never saw is left out with a warning."""
    found = {subject: target.number(values[subject]) for subject in subjects if subject in values}
    unseen = sorted({values[subject] for subject, number in found.items() if number is None})
    if unseen:
        logger.warning("target %s: no training subject has %s; left out", target.column, _some(unseen))
    return {subject: number for subject, number in found.items() if number is not None}


def level_weights(target: Target, numbers: Sequence[float]) -> NDArray[np.float64]:
    """Weight of each level, inverse to its frequency and 1 on average over the subjects given."""
    counts = np.bincount(np.asarray(numbers, int), minlength=len(target.levels))
    return len(numbers) / (len(target.levels) * np.maximum(counts, 1))


def _measure(column: str, values: Mapping[str, str], numbers: list[float]) -> Target:
    broken = next((text for text in values.values() if not math.isfinite(_as_number(text))), None)
    if broken is not None:
        raise UsageError(f"--target {column}: regression needs numbers, found {broken!r}; write n/a where missing")
    std = float(np.std(numbers))
    if std == 0:
        raise UsageError(f"--target {column}: all training subjects have {numbers[0]:g}; choose another column")
    return Target(column=column, kind="regression", levels=(), mean=float(np.mean(numbers)), std=std)


def _guess(counts: Counter[str], numbers: list[float] | None) -> str:
    if len(counts) <= 2:
        return "binary"
    if numbers is None:
        return "multiclass"
    fractional = any(number != round(number) for number in numbers)
    return "regression" if fractional or len(counts) > MIN_VALUES_OF_A_MEASURE else "multiclass"


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
