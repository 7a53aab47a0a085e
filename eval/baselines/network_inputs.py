"""What the networks are given of a subject: windows of region series, or its connectivity matrix.

Training subjects are held in memory up to a budget; others are read a few at a time. Shapes: B window, T frame,
P region, N subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from eval.baselines.connectivity import subject_edges
from eval.subjects import evenly_spaced

if TYPE_CHECKING:
    from eval.baselines.protocol import Problem

Singles = npt.NDArray[np.float32]

WINDOW = 64
"""Most frames that a network sees at once."""
SERIES_BYTES = 2 << 30
"""Most memory for the series of the fitted subjects (half precision); of more, each subject keeps a share."""
SUBJECTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Windows, and how many frames of each are real (the rest are zeros at the end).

    Attributes
    ----------
    values : numpy.ndarray, shape (B, T, P) or (B, P, P), float32
        Standardised region series, or Fisher z of correlations with a zero diagonal.
    num_frames : numpy.ndarray, shape (B,), int64
        Real frames; all 1 for matrices.
    subject : numpy.ndarray, shape (B,), int64
        Whose: row in the sequence of subjects that was asked for.
    """

    values: Singles
    num_frames: npt.NDArray[np.int64]
    subject: npt.NDArray[np.int64]


class Inputs(Protocol):
    """How subjects become batches."""

    num_regions: int

    def draw(self, subjects: Sequence[str], rng: np.random.Generator) -> Batch:
        """One training example of each of some fitted subjects."""
        ...

    def whole(self, subjects: Sequence[str]) -> Iterator[Batch]:
        """Everything of any subjects, some subjects at a time, in order."""
        ...


class SeriesInputs:
    """Windows of region series, each region scaled to mean 0 and SD 1 over its run.

    Parameters
    ----------
    problem : Problem
        Where series come from.
    fitted : sequence of str
        Subjects to draw from.
    budget : int
        Bytes for their series; where they need more, each keeps windows spread evenly over its runs.
    """

    def __init__(self, problem: Problem, fitted: Sequence[str], budget: int = SERIES_BYTES) -> None:
        self._problem = problem
        self.num_regions = problem.regions.num_parcels
        frames = max(1, budget // (2 * self.num_regions * len(fitted)))
        self._kept = {subject: _thinned(_standardised(problem, subject), frames) for subject in fitted}

    def draw(self, subjects: Sequence[str], rng: np.random.Generator) -> Batch:
        """A window at a random place of each subject; its runs are as likely as they are long."""
        windows = []
        for subject in subjects:
            pieces = self._kept[subject]
            lengths = np.array([len(piece) for piece in pieces])
            piece = pieces[int(rng.choice(len(pieces), p=lengths / lengths.sum()))]
            start = int(rng.integers(max(1, len(piece) - WINDOW + 1)))
            windows.append(piece[start : start + WINDOW])
        return _padded(windows, np.arange(len(windows)))

    def whole(self, subjects: Sequence[str]) -> Iterator[Batch]:
        """Windows that tile the runs, the last one of a run shorter."""
        for first in range(0, len(subjects), SUBJECTS_AT_ONCE):
            windows: list[Singles] = []
            rows: list[int] = []
            for row, subject in enumerate(subjects[first : first + SUBJECTS_AT_ONCE], start=first):
                for series in _standardised(self._problem, subject):
                    windows += [series[start : start + WINDOW] for start in range(0, len(series), WINDOW)]
                rows += [row] * (len(windows) - len(rows))
            yield _padded(windows, np.array(rows))


class ConnectivityInputs:
    """The connectivity matrix of each subject: the mean over its runs, weighted by frames.

    Parameters
    ----------
    problem : Problem
        Where series come from.
    fitted : sequence of str
        Subjects to draw from; their edges are held in memory, others are read when asked for.
    """

    def __init__(self, problem: Problem, fitted: Sequence[str]) -> None:
        self._problem = problem
        self.num_regions = problem.regions.num_parcels
        self._upper = np.triu_indices(self.num_regions, k=1)
        self._kept = dict(zip(fitted, single_edges(problem, fitted), strict=True))

    def draw(self, subjects: Sequence[str], rng: np.random.Generator) -> Batch:
        """The matrix of each subject; nothing is drawn."""
        return self._batch(np.stack([self._kept[subject] for subject in subjects]), 0)

    def whole(self, subjects: Sequence[str]) -> Iterator[Batch]:
        """The matrices."""
        for first in range(0, len(subjects), SUBJECTS_AT_ONCE):
            some = subjects[first : first + SUBJECTS_AT_ONCE]
            yield self._batch(single_edges(self._problem, some), first)

    def spread(self, subjects: Sequence[str]) -> tuple[Singles, Singles]:
        """Mean and SD of every edge over some fitted subjects, (P, P) each; SD 1 where an edge does not vary."""
        edges = np.stack([self._kept[subject] for subject in subjects])
        mean_PP, spread_PP = self._matrices(np.stack([edges.mean(axis=0), edges.std(axis=0)]))
        return mean_PP, np.where(spread_PP > 1e-6, spread_PP, np.float32(1.0))

    def _batch(self, edges: Singles, first: int) -> Batch:
        ones = np.ones(len(edges), dtype=np.int64)
        return Batch(values=self._matrices(edges), num_frames=ones, subject=first + np.arange(len(edges)))

    def _matrices(self, edges: Singles) -> Singles:
        """Symmetric matrices with a zero diagonal, shape (N, P, P)."""
        matrices = np.zeros((len(edges), self.num_regions, self.num_regions), dtype=np.float32)
        matrices[:, *self._upper] = edges
        return matrices + matrices.transpose(0, 2, 1)


def single_edges(problem: Problem, subjects: Sequence[str]) -> Singles:
    """`subject_edges` in single precision, never more than a few subjects in double."""
    some = [tuple(subjects[first : first + SUBJECTS_AT_ONCE]) for first in range(0, len(subjects), SUBJECTS_AT_ONCE)]
    return np.concatenate([subject_edges(problem, names).astype(np.float32) for names in some])


def _standardised(problem: Problem, subject: str) -> list[Singles]:
    """Series of each run, every region with mean 0 and SD 1; 0 where a region is constant."""
    scaled = []
    for _, series in problem.series(subject):
        centred = np.asarray(series, dtype=np.float64)
        centred = centred - centred.mean(axis=0)
        spread = centred.std(axis=0)
        usable = spread > 1e-6 * max(1e-30, float(np.abs(centred).max(initial=0.0)))
        scaled.append(np.divide(centred, spread, out=np.zeros_like(centred), where=usable).astype(np.float32))
    return scaled


def _thinned(runs: list[Singles], frames: int) -> list[npt.NDArray[np.float16]]:
    """The runs in half precision, or where they are longer than `frames` windows spread evenly over them."""
    pieces = runs
    if sum(map(len, runs)) > frames:
        windows = [series[start : start + WINDOW] for series in runs for start in range(0, len(series), WINDOW)]
        pieces = evenly_spaced(windows, max(1, frames // WINDOW))
    return [piece.astype(np.float16) for piece in pieces]


def _padded(windows: Sequence[npt.NDArray[np.floating]], subject: npt.NDArray[np.int64]) -> Batch:
    lengths = np.array([len(window) for window in windows])
    values = np.zeros((len(windows), int(lengths.max()), windows[0].shape[1]), dtype=np.float32)
    for row, window in zip(values, windows, strict=True):
        row[: len(window)] = window
    return Batch(values=values, num_frames=lengths, subject=subject)
