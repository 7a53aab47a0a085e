"""The stage `embeddings`: vectors of every window and every subject of the split, files, and their provenance.

First the features of training subjects, to fit the dimensions on; then every window, kept in those dimensions alone.

Shapes: N window, R run, S subject, F feature, E dimension, K output.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.arrays import packed
from eval.context import Context
from eval.controls.refit import head_of
from eval.embedding.basis import Basis, fit_basis, fitted_subjects
from eval.embedding.embeddings import Embeddings
from eval.embedding.features import run_means, window_features
from eval.embedding.files import check_format, read_subjects, subjects_bytes, windows_bytes
from eval.embedding.projection import neighbour_map, projection_table, read_neighbours
from eval.embedding.rows import Arrays, embedded_runs, subject_means, subject_vectors, window_table
from eval.stages import Stage, parts_of
from shards.errors import UsageError
from shards.splits import PARTS

log = logging.getLogger(__name__)

LEAST_SUBJECTS = 3
PROJECTION = "projection.tsv"


def embed(context: Context, file_format: str) -> Embeddings:
    """Embed every window and every subject of the split, with or without a value of the target.

    Parameters
    ----------
    context : Context
        The model and its shard set.
    file_format : {'npz', 'parquet'}
        Of the files of windows and subjects.

    Returns
    -------
    Embeddings
        The same on every rank.

    Raises
    ------
    UsageError
        pyarrow is missing, or there are fewer than 3 training subjects to fit the dimensions on.
    """
    check_format(file_format)
    stage = context.stage("embeddings", file_format=file_format, seed=context.config.seed)
    record = context.ranks.first(stage.record)
    if record is None:
        record = _compute(context, stage, file_format)
    subjects, part, vectors = read_subjects(stage.folder, file_format)
    return Embeddings(
        subjects=subjects,
        part=part,
        vectors=vectors,
        projection=vectors[:, :2].astype(np.float64),
        neighbours=read_neighbours(stage.folder / PROJECTION),
        facts=record["facts"],
        folder=stage.folder,
    )


def _compute(context: Context, stage: Stage, file_format: str) -> dict[str, Any]:
    fitted = fitted_subjects(context.split.subjects("train"))
    if len(fitted) < LEAST_SUBJECTS:
        raise UsageError(
            f"{len(fitted)} training subjects, at least {LEAST_SUBJECTS} are needed to find the directions in which "
            "subjects differ; leave embeddings out with --skip embed, or train on more subjects"
        )
    basis = _basis(context, stage, fitted)
    everyone = tuple(sorted(who for part in PARTS for who in context.split.subjects(part)))
    runs = parts_of(context.runs(everyone), prefix="windows")
    log.info("embeddings: %d dimensions of %d runs", len(basis.components), sum(map(len, runs.values())))
    found = [arrays for _, arrays in stage.parts(list(runs), lambda name: embedded_runs(context, runs[name], basis))]
    facts = _facts(context, basis, fitted, found) | {"file_format": file_format}
    files: dict[str, bytes | str] = {}
    if context.ranks.is_first:
        files = _files(context, basis, found, everyone, facts)
    return stage.finish(files, facts)


def _basis(context: Context, stage: Stage, fitted: tuple[str, ...]) -> Basis:
    """Components of the fitted subjects; one rank makes them, and they are kept, so that all windows get the same."""
    config = context.config
    runs = parts_of(context.runs(fitted), prefix="fit")

    def features(name: str) -> Arrays:
        batches = window_features(
            context.model, context.shard_set, runs[name], context.window, config.batch_size, config.threads
        )
        number_R, mean_RF = run_means(batches)
        return {"run": number_R, "mean": mean_RF}

    means = [arrays for _, arrays in stage.parts(list(runs), features)]

    def components(name: str) -> Arrays:
        head = head_of(context.model.state_dict())
        return fit_basis(subject_means(context, means), head.weight, head.bias, config.seed).arrays()

    ((_, found),) = stage.parts(["basis"], components)
    return Basis.from_arrays(found)


def _facts(context: Context, basis: Basis, fitted: tuple[str, ...], parts: Sequence[Arrays]) -> dict[str, Any]:
    """How the vectors were made, and what they hold."""
    model = context.model
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("run", "total", "held")}
    part_of = context.split.part_of
    part_R = np.array([part_of[context.shard_set.runs[run].subject] for run in joined["run"].tolist()])
    chosen = {part: part_R == part for part in PARTS if (part_R == part).any()}
    variance = {part: float(joined["held"][rows].sum() / joined["total"][rows].sum()) for part, rows in chosen.items()}
    return {
        "weights": context.weights_hash,
        "layer": "pooled features before the head",
        "pooling": model.pool.pool,
        "num_features": int(model.pool.num_features),
        "normalisation": "each group of features centred and scaled on the training subjects, as the head gets it; "
        "then principal components of the training subjects' means, and what they miss of the head's directions",
        "num_dimensions": len(basis.components),
        "num_components": len(basis.share),
        "num_subjects_fitted": len(fitted),
        "share_of_leading_two": float(basis.share[:2].sum()),
        "variance_kept": {part: _number(share) for part, share in variance.items()},
        "num_windows": sum(len(part["start"]) for part in parts),
        "window": str(context.window),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _files(
    context: Context, basis: Basis, parts: Sequence[Arrays], everyone: tuple[str, ...], facts: Mapping[str, Any]
) -> dict[str, bytes | str]:
    file_format = str(facts["file_format"])
    table = window_table(context, parts)
    vectors = subject_vectors(table, everyone)
    part_of = context.split.part_of
    part = tuple(part_of[who] for who in everyone)
    map_S2 = neighbour_map(vectors, part, context.config.seed)
    return {
        f"windows.{file_format}": windows_bytes(table, file_format),
        f"subjects.{file_format}": subjects_bytes(everyone, part, vectors, file_format),
        "basis.npz": packed(basis.arrays()),
        PROJECTION: projection_table(context, everyone, part, vectors, map_S2),
        "embeddings.json": json.dumps(dict(facts), indent=1, allow_nan=False) + "\n",
    }
