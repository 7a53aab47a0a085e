"""Embeddings of windows and of subjects: the result that figures, fingerprints and files share.

Shapes: N window, S subject, E dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTable:
    """One row per window; the windows of a run tile it, so every frame is in exactly one.

    Attributes
    ----------
    run_id, subject, session, run, part : tuple of str
        Of each window: BIDS labels ('' where a run has none), and the part of the split ('train', 'val', 'test').
    clip_start, num_frames : numpy.ndarray, shape (N,)
        First frame, counted from 0, and frames that are real (the last window of a run may be shorter).
    tr_s : numpy.ndarray, shape (N,)
        Repetition time in seconds.
    vectors : numpy.ndarray, shape (N, E), float32
        Embedding of each window.
    """

    run_id: tuple[str, ...]
    subject: tuple[str, ...]
    session: tuple[str, ...]
    run: tuple[str, ...]
    part: tuple[str, ...]
    clip_start: Ints
    num_frames: Ints
    tr_s: npt.NDArray[np.float64]
    vectors: Vectors

    def __post_init__(self) -> None:
        rows = len(self.run_id)
        others = (self.subject, self.session, self.run, self.part, self.clip_start, self.num_frames, self.tr_s)
        if any(len(column) != rows for column in (*others, self.vectors)):
            raise ValueError(f"columns of different lengths: {[len(column) for column in (*others, self.vectors)]}")


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What the model makes of every window and every subject of the split.

    Attributes
    ----------
    subjects : tuple of str
        Labels without 'sub-', sorted; row n of the arrays is `subjects[n]`.
    part : tuple of str
        Part of the split of each subject.
    vectors : numpy.ndarray, shape (S, E), float32
        Mean of the windows' embeddings, weighted by frames.
    projection : numpy.ndarray, shape (S, 2)
        The two leading dimensions, which lie in the directions in which training subjects differ most.
    neighbours : numpy.ndarray, shape (S, 2), or None
        t-SNE of validation and test subjects, `nan` for the others; None where there are too few or too many.
    facts : mapping
        How they were made: hash of the weights, layer, pooling, normalisation, shares of variance.
    folder : Path
        Where the files are.
    """

    subjects: tuple[str, ...]
    part: tuple[str, ...]
    vectors: Vectors
    projection: npt.NDArray[np.float64]
    neighbours: npt.NDArray[np.float64] | None
    facts: Mapping[str, Any]
    folder: Path

    @cached_property
    def windows(self) -> WindowTable:
        """The windows, sorted by run and first frame; read when first asked for, since they can be many."""
        from eval.embedding.files import read_windows

        return read_windows(self.folder, str(self.facts["file_format"]))

    def of_part(self, part: str) -> tuple[tuple[str, ...], Vectors]:
        """Subjects of a part of the split, and their vectors (S, E)."""
        rows = [row for row, name in enumerate(self.part) if name == part]
        return tuple(self.subjects[row] for row in rows), self.vectors[rows]
