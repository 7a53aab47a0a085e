"""Who each restart of a network learns from, and who says when it has learnt enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.baselines.linear import inner_folds
from eval.scoring.metrics import Floats

if TYPE_CHECKING:
    from eval.baselines.protocol import Problem

RESTARTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Restart:
    """One fit: the subjects that it learns from, and those on which it stops (none: it ends at a fixed length)."""

    learns: tuple[str, ...]
    stops: tuple[str, ...]


def plan_restarts(problem: Problem) -> tuple[Restart, ...]:
    """The restarts of a baseline; subjects are sorted.

    All learn from the training subjects and stop on the validation subjects. Where there are none to stop on (they
    are the ones to score), or they lack a class, family-grouped folds take their place: each restart stops on a fold
    of all fitted subjects and learns from the others. Too few subjects for folds: nobody is held out.
    """
    learns, stops = tuple(sorted(problem.y_train)), tuple(sorted(problem.y_val))
    if stops and _can_judge(problem):
        return (Restart(learns=learns, stops=stops),) * RESTARTS
    everyone = problem.to_fit
    folds = inner_folds(
        problem.truth(everyone),
        problem.target.kind,
        problem.cohort.family_names(everyone),
        problem.seed,
    )
    if not folds:
        return (Restart(learns=everyone, stops=()),) * RESTARTS
    names = np.array(everyone)
    return tuple(
        Restart(learns=tuple(names[learning].tolist()), stops=tuple(names[stopping].tolist()))
        for learning, stopping in folds
    )


def held_out_means(restarts: Sequence[Restart], outputs: Sequence[Floats | None]) -> dict[str, Floats]:
    """Of each subject that some fits stopped on, the mean output of those fits.

    Parameters
    ----------
    restarts : sequence of Restart
        The fits.
    outputs : sequence of numpy.ndarray or None
        Of each fit, the outputs of the subjects that it stopped on, shape (N, K); None where nobody was held out.
    """
    found: dict[str, list[Floats]] = {}
    for restart, output in zip(restarts, outputs, strict=True):
        for subject, row in zip(restart.stops, () if output is None else output, strict=True):
            found.setdefault(subject, []).append(row)
    return {subject: np.mean(rows, axis=0) for subject, rows in sorted(found.items())}


def on_whom(restarts: Sequence[Restart]) -> str:
    """Where the fits end, for people."""
    if not restarts[0].stops:
        return "a fixed length: too few subjects to stop on"
    if restarts[0].stops == restarts[-1].stops:
        return f"each stopped at the least loss of {len(restarts[0].stops)} validation subjects"
    return "each stopped at the least loss of another fold of the fitted subjects"


def _can_judge(problem: Problem) -> bool:
    if problem.target.kind == "regression":
        return True
    return set(problem.y_val.values()) >= set(problem.y_train.values())
