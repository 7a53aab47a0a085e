"""The stage `reconstruction`: frames of the scored subjects through the decoder of the pre-trained run.

Shapes: S subject, R run, V voxel, D component, M method, F frequency bin.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.arrays import packed, to_nifti, unpacked
from eval.context import Context, subjects_to_score
from eval.parcels.parcels import geometric_parcels
from eval.reconstruction.frames import components_of, sample_frames
from eval.reconstruction.methods import Method, methods_of
from eval.reconstruction.runs import MEASURES, OURS, Arrays, Bench, by_subject, example_run, measure_run
from eval.reconstruction.source import Source, open_source
from eval.stages import Stage, parts_of

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

FOLDER = "reconstruction"
RUNS_PER_PART = 16
RESULT, TABLE, MAP = "reconstruction.npz", "subjects.tsv", "temporal_correlation.nii.gz"
EXAMPLE = "example_"
"""How the names of the example's arrays begin in `RESULT`."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well frames of the scored subjects are predicted, by the model and by rules that know little.

    Attributes
    ----------
    methods : tuple of Method
        The compared methods.
    subjects : tuple of str
        Sorted.
    measures : numpy.ndarray, shape (S, M, 4)
        Mean squared error in units of the voxels' variance; correlation over time (median over voxels); correlation
        over voxels (mean over frames); correlation of the connectivity. `nan` where undefined.
    power : numpy.ndarray, shape (S, 3, F)
        Spectral density of parcel series, SD^2 / Hz: true, PCA, model.
    map : numpy.ndarray, shape (V,)
        The model's correlation over time in each voxel, mean over subjects.
    example : mapping
        Of one run, as `eval.reconstruction.runs.example_run` gives it.
    example_id : str
        Its `run_id`: the run whose error is the median of all.
    facts : mapping
        The run with the decoder, its phase, weights and window, and what PCA was fitted on.
    folder : Path
        Where the files are.
    """

    methods: tuple[Method, ...]
    subjects: tuple[str, ...]
    measures: Floats
    power: Floats
    map: npt.NDArray[np.float32]
    example: Mapping[str, npt.NDArray[Any]]
    example_id: str
    facts: Mapping[str, Any]
    folder: Path


def reconstruct(context: Context, pretrained: Path | None) -> Reconstruction | None:
    """Reconstruct the frames of the scored subjects, each once.

    Parameters
    ----------
    context : Context
        Whose scored subjects.
    pretrained : Path or None
        Phase-1 or phase-2 run whose decoder is used; by default the one that the checkpoint started from.

    Returns
    -------
    Reconstruction or None
        The same on every rank; None where there is no such run.

    Raises
    ------
    UsageError, MismatchError
        The named run cannot be used, or nobody can be scored.
    """
    source = open_source(context, pretrained)
    if source is None:
        return None
    subset = context.config.subset
    subjects = subjects_to_score(context, subset)
    options = {"pretrained": source.weights_hash, "subset": subset, "subjects": subjects, "seed": context.config.seed}
    stage = context.stage(FOLDER, **options)
    record = context.ranks.first(stage.record)
    if record is None:
        record = _compute(context, stage, source, subjects)
    return _read(context, stage, source, record)


def _compute(context: Context, stage: Stage, source: Source, subjects: tuple[str, ...]) -> dict[str, Any]:
    import torch

    config, shard_set, model = context.config, context.shard_set, source.model
    training = context.runs(context.split.subjects("train"))

    def pca(name: str) -> Arrays:
        frames_NV = sample_frames(shard_set, training)
        return {"components": components_of(frames_NV, model.size.latent), "num_frames": np.array(len(frames_NV))}

    ((_, linear),) = stage.parts(["pca"], pca)
    bench = Bench(
        model=model,
        window=source.window,
        methods=methods_of(model.phase, model.size.causal, model.size.latent),
        pca=torch.from_numpy(linear["components"]).to(context.ranks.device),
        labels=geometric_parcels(shard_set).labels,
        seed=config.seed,
        batch_size=config.batch_size,
        threads=config.threads,
    )
    found = _measured(context, stage, bench, context.runs(subjects))
    typical = _typical(bench, found)
    ((_, example),) = stage.parts([f"example-{typical}"], lambda name: example_run(bench, shard_set, typical))
    facts = {
        "run": source.folder.name,
        "phase": int(model.phase),
        "weights": source.weights_hash,
        "window": str(source.window),
        "latents": int(model.size.latent),
        "pca_frames": int(linear["num_frames"]),
        "example": shard_set.runs[typical].run_id,
    }
    return stage.finish(_files(context, bench, found, example) if context.ranks.is_first else {}, facts)


def _measured(context: Context, stage: Stage, bench: Bench, runs: Sequence[int]) -> dict[int, Arrays]:
    """What `measure_run` says of each run."""
    parts = parts_of(runs, most=RUNS_PER_PART)
    log.info("reconstruction: %d runs in %d parts", len(runs), len(parts))

    def compute(name: str) -> Arrays:
        rows = [measure_run(bench, context.shard_set, run) for run in parts[name]]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    found: dict[int, Arrays] = {}
    for name, arrays in stage.parts(list(parts), compute):
        for row, run in enumerate(parts[name]):
            found[run] = {key: values[row] for key, values in arrays.items()}
    return found


def _typical(bench: Bench, found: Mapping[int, Arrays]) -> int:
    """The run whose error is the median of the model's; the lower one of two."""
    row = [method.key for method in bench.methods].index(OURS)
    ordered = sorted(found, key=lambda run: (float(found[run]["measures"][row, 0]), run))
    return ordered[(len(ordered) - 1) // 2]


def _files(
    context: Context, bench: Bench, found: Mapping[int, Arrays], example: Mapping[str, Any]
) -> dict[str, bytes | str]:
    means = {
        name: by_subject({run: arrays[name].astype(np.float64) for run, arrays in found.items()}, context.shard_set)
        for name in ("measures", "power", "map")
    }
    subjects = sorted(means["measures"])
    together = {name: np.stack([values[who] for who in subjects]) for name, values in means.items()}
    count_V = np.isfinite(together["map"]).sum(axis=0)
    map_V = np.where(count_V > 0, np.nansum(together["map"], axis=0) / np.maximum(count_V, 1), np.nan)
    arrays = {
        "subjects": np.array(subjects, dtype=np.str_),
        "measures": together["measures"],
        "power": together["power"],
        "map": map_V.astype(np.float32),
    }
    arrays |= {f"{EXAMPLE}{name}": values for name, values in example.items()}
    shard_set = context.shard_set
    return {
        RESULT: packed(arrays),
        TABLE: _table(bench.methods, subjects, together["measures"]),
        MAP: to_nifti(np.nan_to_num(map_V), shard_set.mask, shard_set.grid),  # 0 also where undefined
    }


def _table(methods: tuple[Method, ...], subjects: Sequence[str], measures_SM4: Floats) -> str:
    """A line a subject and method."""
    lines = ["\t".join(("subject", "task", "method", *MEASURES))]
    for who, measures_M4 in zip(subjects, measures_SM4, strict=True):
        for method, row in zip(methods, measures_M4, strict=True):
            told = ("n/a" if np.isnan(value) else f"{value:.6g}" for value in row)
            lines.append("\t".join((who, method.task, method.key.split("_", 1)[1], *told)))
    return "\n".join(lines) + "\n"


def _read(context: Context, stage: Stage, source: Source, record: Mapping[str, Any]) -> Reconstruction:
    arrays = unpacked(stage.folder / RESULT)
    size = source.model.size
    return Reconstruction(
        methods=methods_of(source.model.phase, size.causal, size.latent),
        subjects=tuple(arrays["subjects"].tolist()),
        measures=arrays["measures"],
        power=arrays["power"],
        map=arrays["map"],
        example={name.removeprefix(EXAMPLE): values for name, values in arrays.items() if name.startswith(EXAMPLE)},
        example_id=str(record["facts"]["example"]),
        facts=record["facts"],
        folder=stage.folder,
    )
