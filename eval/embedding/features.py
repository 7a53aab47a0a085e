"""What the head of a phase-3 model sees of every window: its pooled, standardised features.

Shapes: N window, F feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.reader import ShardSet

if TYPE_CHECKING:
    import torch

    from training.networks.model import BoldModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureBatch:
    """Some windows: number of their run, first frame, real frames `(N,)`, and features `(N, F)` float32."""

    run: Ints
    start: Ints
    num_frames: Ints
    features: npt.NDArray[np.float32]


def window_features(
    model: BoldModel, shard_set: ShardSet, runs: Sequence[int], window: int | str, batch_size: int, threads: int
) -> Iterator[FeatureBatch]:
    """Features of the windows that tile some runs, as the head gets them, batch by batch.

    Parameters
    ----------
    model : training.networks.model.BoldModel
        Of phase 3, in evaluation mode.
    shard_set : shards.reader.ShardSet
        On the mask that the model was trained on.
    runs : sequence of int
        Numbers of the runs.
    window : int or str
        Window length in frames (20) or seconds ('16s').
    batch_size, threads : int
        Windows at a time, threads that read.
    """
    import torch

    from training.networks.model import inputs_of
    from training.predict import tiling_loader

    device = model.output_scale.device
    with tiling_loader(model, shard_set, runs, window, batch_size, threads) as loader, torch.no_grad():
        for batch in loader:
            real = (batch.run >= 0).numpy()
            features_NF = _features(model, inputs_of(batch, device), batch.num_valid.to(device))
            yield FeatureBatch(
                run=batch.run.numpy()[real].copy(),
                start=batch.start.numpy()[real].copy(),
                num_frames=batch.num_valid.numpy()[real].copy(),
                features=features_NF[real],
            )


def _features(model: BoldModel, inputs: dict[str, Any], num_valid_B: torch.Tensor) -> npt.NDArray[np.float32]:
    """Pooled features `(B, F)` of a batch."""
    context_BLD, cls_BW = model.tokens(**inputs)
    found: npt.NDArray[np.float32] = model.pool(context_BLD, cls_BW, num_valid_B).float().cpu().numpy()
    return found


def run_means(batches: Iterator[FeatureBatch]) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Runs, ascending, and the mean of each one's features `(R, F)`, weighted by frames."""
    sums: dict[int, Floats] = {}
    frames: dict[int, int] = {}
    for batch in batches:
        for run, count, row in zip(batch.run.tolist(), batch.num_frames.tolist(), batch.features, strict=True):
            sums[run] = sums.get(run, 0.0) + count * row.astype(np.float64)
            frames[run] = frames.get(run, 0) + count
    runs = sorted(sums)
    return np.array(runs, dtype=np.int64), np.stack([sums[run] / frames[run] for run in runs]).astype(np.float32)
