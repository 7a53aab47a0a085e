"""Predictions, one row per subject: the currency of this package.

A model sees windows; the unit of analysis is the subject. Each frame of each run counts exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats, Kind, as_logits
from shards.errors import UsageError


class RunLength(Protocol):
    """What `gather_subjects` needs to know of a run (`shards.format.RunEntry` has it)."""

    @property
    def run_id(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def num_frames(self) -> int: ...


T = TypeVar("T")
Role = Literal["baseline", "control", "ours"]
OURS = "ours"
"""Key of the model that is judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that makes predictions, in words.

    Attributes
    ----------
    key : str
        Short name, for files and columns: letters, digits, `_`.
    label : str
        Name for people.
    role : {'baseline', 'control', 'ours'}
        A baseline is a simpler rival; a control is our model with something taken away.
    sees : str
        What of a subject it is given.
    note : str
        What was fitted, chosen, left out.
    """

    key: str
    label: str
    role: Role
    sees: str
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What one model says of each subject; row n of every array is `subjects[n]`.

    Attributes
    ----------
    model : str
        Key of the model ('ours', 'fc', ...).
    subset : str
        'test' or 'val'.
    subjects : tuple of str
        Labels without 'sub-', sorted, each once.
    y_true : numpy.ndarray, shape (N,)
        Level numbers or values in original units.
    output : numpy.ndarray, shape (N, K)
        Logits (binary: one), or values in original units.
    """

    model: str
    subset: str
    subjects: tuple[str, ...]
    y_true: Floats
    output: Floats

    def __post_init__(self) -> None:
        rows = len(self.subjects)
        if len(set(self.subjects)) != rows:
            raise ValueError(f"{self.model}: a subject appears twice in the predictions")
        if self.y_true.shape != (rows,) or self.output.ndim != 2 or self.output.shape[0] != rows:
            raise ValueError(f"{self.model}: {rows} subjects, y_true {self.y_true.shape}, output {self.output.shape}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A model and what it says, of those it is judged by and of others that may fix its threshold.

    Attributes
    ----------
    model : Model
        Which one.
    predictions : Predictions
        Of the subjects that are scored.
    held_out : Predictions or None
        Of subjects that are not scored and that the outputs were not fitted on: the validation subjects, or fitted
        subjects each predicted by a model without them. None where there are none.
    """

    model: Model
    predictions: Predictions
    held_out: Predictions | None = None


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced, the first among them."""
    count = min(len(items), most)
    return [items[place * len(items) // count] for place in range(count)]


def gather_subjects(
    windows: Iterable[Mapping[str, Any]], runs: Sequence[RunLength], used: Iterable[int], kind: Kind
) -> dict[str, Floats]:
    """Average the outputs of windows into one row per subject, weighted by frames.

    Parameters
    ----------
    windows : iterable of mapping
        One per window: 'run' (index into `runs`), 'start', 'num_frames' (real frames), 'output' (K,).
    runs : sequence
        The shard set's runs.
    used : iterable of int
        The runs that had to be covered.
    kind : {'binary', 'multiclass', 'regression'}
        Logits are averaged for classes, values for regression.

    Returns
    -------
    dict of str to numpy.ndarray, shape (K,)
        By subject.

    Raises
    ------
    ValueError
        A frame of a run is covered twice or not at all, or a window belongs to none of the runs.
    UsageError
        The model's output is not finite.
    """
    by_run: dict[int, list[tuple[int, int, Floats]]] = {index: [] for index in used}
    for window in windows:
        index = int(window["run"])
        if index not in by_run:
            raise ValueError(f"a window of run number {index} was predicted, which was not asked for")
        output = as_logits(np.asarray(window["output"], dtype=np.float64)[None], kind)[0]
        by_run[index].append((int(window["start"]), int(window["num_frames"]), output))
    sums: dict[str, Floats] = {}
    frames: dict[str, int] = {}
    for index, rows in by_run.items():
        run = runs[index]
        rows.sort(key=lambda row: row[0])
        _check_coverage(run, [(start, length) for start, length, _ in rows])
        total = np.sum([length * output for _, length, output in rows], axis=0)
        sums[run.subject] = sums.get(run.subject, 0.0) + total
        frames[run.subject] = frames.get(run.subject, 0) + run.num_frames
    means = {subject: sums[subject] / frames[subject] for subject in sorted(sums)}
    broken = [subject for subject, value in means.items() if not np.isfinite(value).all()]
    if broken:
        raise UsageError(
            f"the model's output is not finite for {len(broken)} of {len(means)} subjects, first {broken[0]}: "
            "its training has diverged; look at log.jsonl of the run and train again with a lower --lr"
        )
    return means


def _check_coverage(run: RunLength, spans: list[tuple[int, int]]) -> None:
    reached = 0
    for start, length in spans:
        if start != reached or length < 1:
            fault = "twice" if start < reached else "not at all"
            raise ValueError(
                f"{run.run_id}: frame {min(start, reached)} is covered {fault} (window at {start} of {length})"
            )
        reached += length
    if reached != run.num_frames:
        raise ValueError(f"{run.run_id}: windows cover {reached} frames, the run has {run.num_frames}")


def predictions(
    model: str, subset: str, outputs: Mapping[str, npt.ArrayLike], y_true: Mapping[str, float]
) -> Predictions:
    """Rows for the subjects of `outputs`, sorted by label, from values by subject."""
    subjects = tuple(sorted(outputs))
    return Predictions(
        model=model,
        subset=subset,
        subjects=subjects,
        y_true=np.array([y_true[subject] for subject in subjects], dtype=np.float64),
        output=np.stack([np.atleast_1d(np.asarray(outputs[s], dtype=np.float64)) for s in subjects]),
    )
