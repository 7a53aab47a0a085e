"""How the numbers of a target become a network's loss, and its outputs the numbers that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from eval.scoring.metrics import Floats, Kind

ABSENT = 30.0
"""A level that nobody was fitted on gets a logit so far below the lowest other one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The target as a network has it; everything in it comes from the subjects that are learnt from.

    Attributes
    ----------
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    num_levels : int
        K of the target.
    levels : tuple of int
        Levels that occur, ascending; a network has one output for each, one logit if the target is binary.
    weight : tuple of float
        Of each of `levels`: all classes count the same, however many subjects they have.
    mean, std : float
        Of a measure.
    """

    kind: Kind
    num_levels: int
    levels: tuple[int, ...]
    weight: tuple[float, ...]
    mean: float
    std: float

    @classmethod
    def of(cls, y: npt.ArrayLike, kind: Kind, num_levels: int) -> Outcome:
        """From the target of the subjects that are learnt from."""
        values = np.asarray(y, dtype=np.float64)
        if kind == "regression":
            spread = float(values.std()) or 1.0
            return cls(kind=kind, num_levels=1, levels=(), weight=(), mean=float(values.mean()), std=spread)
        levels, counts = np.unique(values.astype(np.int64), return_counts=True)
        weight = values.size / (levels.size * counts)
        return cls(
            kind=kind,
            num_levels=num_levels,
            levels=tuple(levels.tolist()),
            weight=tuple(weight.tolist()),
            mean=0.0,
            std=1.0,
        )

    @property
    def num_outputs(self) -> int:
        """Outputs of the network."""
        return len(self.levels) if self.kind == "multiclass" else 1

    def encode(self, y: Sequence[float]) -> Tensor:
        """Numbers for `loss`, shape (N,): z-scores, or places in `levels`; -1 for a level that does not occur."""
        if self.kind == "regression":
            return torch.tensor([(value - self.mean) / self.std for value in y], dtype=torch.float32)
        place = {level: index for index, level in enumerate(self.levels)}
        return torch.tensor([place.get(int(value), -1) for value in y])

    def loss(self, output_NK: Tensor, code_N: Tensor) -> Tensor:
        """Mean squared error of z-scores, or the class-balanced mean of the log loss."""
        if self.kind == "regression":
            return functional.mse_loss(output_NK[:, 0], code_N)
        weight = torch.tensor(self.weight, device=output_NK.device)
        if self.kind == "multiclass":
            return functional.cross_entropy(output_NK, code_N, weight, ignore_index=-1)
        each = functional.binary_cross_entropy_with_logits(output_NK[:, 0], code_N.float(), reduction="none")
        return (each * weight[code_N]).sum() / weight[code_N].sum()

    def decode(self, output_NK: Floats) -> Floats:
        """Values in the target's own unit, `(N, 1)`, one logit of the second level, or a logit a level, `(N, K)`."""
        if self.kind == "regression":
            return output_NK * self.std + self.mean
        if self.kind == "binary":
            return output_NK
        lowest = output_NK.min(axis=1, keepdims=True) - ABSENT
        decoded = np.repeat(lowest, self.num_levels, axis=1)
        decoded[:, list(self.levels)] = output_NK
        return decoded
