"""From runs to rows: what the network says of windows, reduced, and put together by window and by subject.

Shapes: N window, R run, S subject, F feature, E dimension, K output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.context import Context
from eval.embedding.basis import Basis
from eval.embedding.embeddings import WindowTable
from eval.embedding.features import FeatureBatch, run_means, window_features

Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]


def subject_means(context: Context, parts: Sequence[Arrays]) -> Floats:
    """Features of each subject `(S, F)`: the mean over its runs, weighted by frames."""
    sums: dict[str, Floats] = {}
    frames: dict[str, int] = {}
    for part in parts:
        for run, mean_F in zip(part["run"].tolist(), part["mean"], strict=True):
            entry = context.shard_set.runs[run]
            sums[entry.subject] = sums.get(entry.subject, 0.0) + entry.num_frames * mean_F.astype(np.float64)
            frames[entry.subject] = frames.get(entry.subject, 0) + entry.num_frames
    return np.stack([sums[who] / frames[who] for who in sorted(sums)])


def embedded_runs(context: Context, runs: Sequence[int], basis: Basis) -> Arrays:
    """Windows of some runs, and how far each run is from the training mean.

    Returns
    -------
    mapping
        `window_run`, `start`, `num_frames` `(N,)` and `vectors` `(N, E)`; and, a row a run, `run`, and the squared
        distance of its features from the training mean, `total` in all of them and `held` by the dimensions.
    """
    config = context.config
    batches = window_features(context.model, context.shard_set, runs, context.window, config.batch_size, config.threads)
    windows: list[FeatureBatch] = []
    vectors: list[npt.NDArray[np.float32]] = []

    def kept() -> Iterator[FeatureBatch]:
        for batch in batches:
            windows.append(replace(batch, features=batch.features[:, :0]))
            vectors.append(basis.project(batch.features).astype(np.float32))
            yield batch

    number_R, mean_RF = run_means(kept())
    return {
        "window_run": np.concatenate([batch.run for batch in windows]),
        "start": np.concatenate([batch.start for batch in windows]),
        "num_frames": np.concatenate([batch.num_frames for batch in windows]),
        "vectors": np.concatenate(vectors),
        "run": number_R,
        "total": np.square(mean_RF.astype(np.float64) - basis.mean).sum(axis=1),
        "held": np.square(basis.project(mean_RF)).sum(axis=1),
    }


def window_table(context: Context, parts: Sequence[Arrays]) -> WindowTable:
    """All windows by run and first frame."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("window_run", "start", "num_frames")}
    order = np.lexsort((joined["start"], joined["window_run"]))
    entries = [context.shard_set.runs[run] for run in joined["window_run"][order].tolist()]
    part_of = context.split.part_of
    return WindowTable(
        run_id=tuple(entry.run_id for entry in entries),
        subject=tuple(entry.subject for entry in entries),
        session=tuple(entry.session for entry in entries),
        run=tuple(entry.run for entry in entries),
        part=tuple(part_of[entry.subject] for entry in entries),
        clip_start=joined["start"][order],
        num_frames=joined["num_frames"][order],
        tr_s=np.array([entry.tr_s for entry in entries]),
        vectors=np.concatenate([part["vectors"] for part in parts])[order],
    )


def subject_vectors(table: WindowTable, subjects: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean of each subject's windows `(S, E)`, weighted by frames."""
    row = {subject: number for number, subject in enumerate(subjects)}
    where_N = np.array([row[subject] for subject in table.subject])
    sums_SE = np.zeros((len(subjects), table.vectors.shape[1]))
    np.add.at(sums_SE, where_N, table.num_frames[:, None] * table.vectors.astype(np.float64))
    frames_S = np.bincount(where_N, weights=table.num_frames, minlength=len(subjects))
    return (sums_SE / frames_S[:, None]).astype(np.float32)
