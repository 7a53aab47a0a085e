"""What every baseline is given, and what it gives back: one protocol, from class frequencies to neural networks.

A baseline is fitted once, on subjects whose target it may see, and then predicts any subjects by their features
alone. What it reads lies in the shard set; region series come from one cache, shared by all that want them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from eval.cohort import Cohort
from eval.scoring.metrics import Floats
from eval.targets import Target

Series = npt.NDArray[np.float32]


class Regions(Protocol):
    """Region mean series of the runs of a shard set, whatever keeps them."""

    @property
    def num_parcels(self) -> int:
        """P."""
        ...

    @property
    def description(self) -> str:
        """Which parcels, for people."""
        ...

    def of_run(self, run: int) -> Series:
        """Mean residual of each parcel in each frame of a run (its number), shape (T, P), float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Who may be learnt from, and what is known of everybody.

    Attributes
    ----------
    cohort : Cohort
        Runs, families, confounds of all subjects.
    target : Target
        What is predicted.
    y_train : mapping of str to float
        The target of each training subject: level number, or value in original units.
    y_val : mapping of str to float
        That of each validation subject; empty where the validation subjects are those to score, and then a
        baseline that has to stop on somebody takes them from the training subjects.
    regions : Regions
        Region series.
    threads : int
        Readers at the same time.
    seed : int
        Of everything that is drawn.
    device : str
        Where networks are fitted, for `torch.device`.
    """

    cohort: Cohort
    target: Target
    y_train: Mapping[str, float]
    y_val: Mapping[str, float]
    regions: Regions
    threads: int
    seed: int
    device: str = "cpu"

    @cached_property
    def y_fit(self) -> Mapping[str, float]:
        """Targets of training and validation subjects together, in sorted order of labels."""
        both = {**self.y_train, **self.y_val}
        return {subject: both[subject] for subject in sorted(both)}

    @property
    def to_fit(self) -> tuple[str, ...]:
        """Subjects of `y_fit`, sorted."""
        return tuple(self.y_fit)

    def truth(self, subjects: Sequence[str]) -> Floats:
        """Targets of some of `to_fit`, shape (N,)."""
        return np.array([self.y_fit[subject] for subject in subjects], dtype=np.float64)

    def series(self, subject: str) -> list[tuple[float, Series]]:
        """Repetition time (s) and region series (T, P) of each run of a subject, in the order of runs."""
        runs = self.cohort.shard_set.runs
        return [(runs[run].tr_s, self.regions.of_run(run)) for run in self.cohort.runs[subject]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A baseline that has been fitted.

    Attributes
    ----------
    note : str
        What was fitted, chosen, left out; one line for the report.
    predict : callable
        Subjects to outputs, shape (N, K): logits (binary: one column), or values in original units. It sees of a
        subject what does not depend on the others that are asked for.
    held_out : mapping of str to numpy.ndarray, shape (K,)
        Outputs of subjects by models that were fitted without them: validation subjects, or each fitted subject
        from inner cross-validation. They fix thresholds; empty where there are none.
    """

    note: str
    predict: Callable[[tuple[str, ...]], Floats]
    held_out: Mapping[str, Floats] = field(default_factory=dict)


class Baseline(Protocol):
    """One rival of our model.

    Attributes
    ----------
    key : str
        Short name, for files and columns: letters, digits, `_`.
    label, sees : str
        Name for people, and what of a subject it is given.
    """

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def sees(self) -> str: ...

    def fit(self, problem: Problem) -> Fitted:
        """Fit it on the subjects of `problem`; the same problem gives the same model."""
        ...


class NotAvailable(Exception):
    """A baseline cannot be fitted here, for the reason given; the others can. The stage names it and goes on."""
