"""A phase-3 model's outputs for every window of some runs: each frame exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import MismatchError
from shards.loader import WindowLoader
from shards.reader import ShardSet
from training.networks.model import BoldModel, inputs_of


def predict_windows(
    model: BoldModel, shard_set: ShardSet, runs: Sequence[int], window: int | str, batch_size: int, threads: int
) -> list[dict[str, Any]]:
    """Apply a phase-3 model to windows that tile runs.

    Parameters
    ----------
    model
        From `training.checkpoints.export.load_model`.
    shard_set
        On the mask that the model was trained on.
    runs
        Numbers of the runs.
    window
        Window length in frames (20) or seconds ("16s").
    batch_size
        Windows at a time.
    threads
        Threads that read and decode.

    Returns
    -------
    list of dict
        A row per window, by run and start: `run`, `subject`, `start`, `num_frames`, and `output`, `(K,)`
        float64: 1 logit (of the second level) for a binary target, a logit per class, or 1 value in the target's
        own units.

    Raises
    ------
    MismatchError
        The shard set has another mask.
    """
    model.eval()
    with tiling_loader(model, shard_set, runs, window, batch_size, threads) as loader:
        return window_outputs(lambda inputs: model(**inputs)["output"], shard_set, loader, model.output_scale.device)


def tiling_loader(
    model: BoldModel, shard_set: ShardSet, runs: Sequence[int], window: int | str, batch_size: int, threads: int
) -> WindowLoader:
    """Windows that tile runs, as a model takes them; arguments and errors as of `predict_windows`."""
    if not has_mask_of(model, shard_set):
        raise MismatchError(
            f"{shard_set.location}: its mask ({shard_set.num_voxels} voxels) is not the model's "
            f"({model.volume.num_voxels} voxels); give the shard set of the training, or one on the same mask"
        )
    return WindowLoader(
        shard_set,
        runs=runs,
        window=window,
        batch_size=batch_size,
        mode="tile",
        threads=threads,
        intensity=model.size.intensity,
    )


def has_mask_of(model: BoldModel, shard_set: ShardSet) -> bool:
    """Whether a model was made for the mask of a shard set."""
    return np.array_equal(model.volume.mask.cpu().numpy().astype(bool), shard_set.mask)


@torch.no_grad()
def window_outputs(
    forward: Callable[[dict[str, Any]], torch.Tensor], shard_set: ShardSet, loader: WindowLoader, device: torch.device
) -> list[dict[str, Any]]:
    """Rows as of `predict_windows` for this rank's windows of a tiling loader."""
    rows = []
    for batch in loader:
        output_BK = forward(inputs_of(batch, device)).double().cpu().numpy()
        for k, run in enumerate(batch.run.tolist()):
            if run >= 0:
                rows.append(
                    {
                        "run": run,
                        "subject": shard_set.runs[run].subject,
                        "start": int(batch.start[k]),
                        "num_frames": int(batch.num_valid[k]),
                        "output": output_BK[k],
                    }
                )
    return rows


def subject_means(rows: Sequence[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Frame-weighted mean output `(K,)` of each subject, whatever the order of the rows."""
    ordered = sorted(rows, key=lambda row: (row["run"], row["start"]))
    total: dict[str, NDArray[np.float64]] = {}
    frames: dict[str, int] = {}
    for row in ordered:
        who = row["subject"]
        total[who] = total.get(who, 0.0) + row["num_frames"] * row["output"]
        frames[who] = frames.get(who, 0) + row["num_frames"]
    return {who: total[who] / frames[who] for who in sorted(total)}
