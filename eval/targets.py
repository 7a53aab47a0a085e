"""The target of a phase-3 model: how a column of participants.tsv becomes numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from eval.scoring.metrics import Kind
from shards.errors import MismatchError, UsageError

KINDS = ("binary", "multiclass", "regression")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A column, its kind, and what the training subjects fixed about it.

    `levels` are the raw strings of the classes in the order of their numbers (empty for regression); `mean`
    and `std` are those of the training subjects, in original units (`nan` for classes).
    """

    column: str
    kind: Kind
    levels: tuple[str, ...]
    mean: float
    std: float

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | None) -> Target:
        """The target as the run folder's `target.json` has it.

        Raises
        ------
        MismatchError
            No target (a phase 1 or 2 checkpoint), or one that this version does not know.
        """
        if record is None:
            raise UsageError("the checkpoint has no target: only a phase-3 run can be scored, train one first")
        if record.get("kind") not in KINDS:
            raise MismatchError(
                f"target.json says kind {record.get('kind')!r}, allowed are {', '.join(KINDS)}: "
                "the checkpoint was written by another version"
            )
        numbers = {name: float("nan") if record.get(name) is None else float(record[name]) for name in ("mean", "std")}
        return cls(
            column=str(record["column"]),
            kind=cast(Kind, record["kind"]),
            levels=tuple(str(level) for level in record.get("levels") or ()),
            mean=numbers["mean"],
            std=numbers["std"],
        )

    def encode(self, phenotype: Mapping[str, str]) -> dict[str, float]:
        """Numbers of the subjects that have a value.

        Parameters
        ----------
        phenotype : mapping of str to str
            Raw values by subject, those without a value left out.

        Returns
        -------
        dict of str to float
            Level numbers, or values in original units.

        Raises
        ------
        UsageError
            A value is not a number (regression) or none of the levels that the model was trained on.
        """
        if self.kind == "regression":
            return {subject: self._number(subject, raw) for subject, raw in phenotype.items()}
        number = {level: float(index) for index, level in enumerate(self.levels)}
        for subject, raw in phenotype.items():
            if raw not in number:
                raise UsageError(
                    f"participants.tsv, column {self.column!r}: subject {subject} has {raw!r}, but the model "
                    f"was trained on the levels {', '.join(self.levels)}; correct it or write n/a"
                )
        return {subject: number[raw] for subject, raw in phenotype.items()}

    def text(self, value: float) -> str:
        """A true value as participants.tsv has it: the level, or the number."""
        return self.levels[int(value)] if self.levels else f"{value:.9g}"

    def _number(self, subject: str, raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(
                f"participants.tsv, column {self.column!r}: subject {subject} has {raw!r}, a finite number is "
                "needed for regression; correct it or write n/a"
            )
        return value

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of a prediction's columns: one logit, one logit a level, or the value."""
        if self.kind == "multiclass":
            return tuple(f"logit_{level}" for level in self.levels)
        return (f"logit_{self.levels[1]}",) if self.kind == "binary" else ("value",)
