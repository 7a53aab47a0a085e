"""Frames of training subjects and their principal components: the linear model that a latent space must beat.

Shapes: N frame, D component, V voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shards.reader import ShardSet

MOST_FRAMES = 2048
MOST_VALUES = 2**27
"""Frames times voxels that are held at once (512 MiB)."""
FRAMES_OF_A_RUN = 32


def sample_frames(shard_set: ShardSet, runs: Sequence[int]) -> npt.NDArray[np.float32]:
    """Residuals `(N, V)` of up to 2048 frames, spread evenly over runs and time; fewer where the mask is large."""
    most = max(1, min(MOST_FRAMES, MOST_VALUES // shard_set.num_voxels))
    num_runs = min(len(runs), max(1, most // FRAMES_OF_A_RUN))
    chosen = [runs[k] for k in np.linspace(0, len(runs) - 1, num_runs).astype(int)]
    found = []
    for run in chosen:
        num_frames = shard_set.runs[run].num_frames
        wanted = min(num_frames, -(-most // num_runs))
        starts = np.unique(np.linspace(0, num_frames - 1, wanted).astype(int))
        found += [shard_set.residual(run, int(start), 1) for start in starts]
    return np.concatenate(found[:most])


def components_of(frames_NV: npt.NDArray[np.float32], num_components: int) -> npt.NDArray[np.float32]:
    """Orthonormal leading components `(D, V)` about zero, which is the mean of residuals."""
    import torch

    from training.networks.principal import principal_components

    found: npt.NDArray[np.float32] = principal_components(torch.from_numpy(frames_NV), num_components)[0].numpy()
    return found
