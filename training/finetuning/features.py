"""Phase 3: what the frozen model says of each window and each subject, before any gradient step.

Shapes: N window of a chunk, L frame, D latent, W width, F feature, K output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shards.loader import WindowLoader
from shards.reader import ShardSet
from training.engine.collective import sum_over_ranks
from training.engine.environment import Place
from training.networks.model import BoldModel, inputs_of
from training.networks.pooling import Pool

Floats = NDArray[np.float64]
SubjectSums = tuple[dict[str, Floats], dict[str, int]]

CHUNK = 64
"""Windows whose features are computed at a time."""


@dataclass(kw_only=True)
class Windows:
    """Tokens of this rank's windows: run, contextual latents `(frames, D)` of real frames, CLS outputs `(W,)`."""

    run: list[int] = field(default_factory=list)
    context: list[Tensor] = field(default_factory=list)
    cls: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def collect(model: BoldModel, loader: WindowLoader, place: Place) -> Windows:
    """Tokens of every window of a tiling loader."""
    windows = Windows()
    for batch in loader:
        context_BLD, cls_BW = model.tokens(**inputs_of(batch, place.device))
        for k, run in enumerate(batch.run.tolist()):
            if run >= 0:
                windows.run.append(run)
                windows.context.append(context_BLD[k, : int(batch.num_valid[k])].float())
                windows.cls.append(cls_BW[k].float())
    return windows


def frame_sums(windows: Windows, latent: int) -> Floats:
    """Number of frames, sum and sum of outer products of their contextual latents, `(1 + D + D * D,)`."""
    sums = np.zeros(1 + latent + latent**2)
    for context in windows.context:
        x = context.double().cpu().numpy()
        sums += np.concatenate([[len(x)], x.sum(0), (x.T @ x).ravel()])
    return sums


def mean_and_covariance(sums: Floats, latent: int) -> tuple[Tensor, Tensor]:
    """Of all frames' contextual latents, from the total of their `frame_sums`: `(D,)` and `(D, D)`."""
    mean = sums[1 : 1 + latent] / sums[0]
    covariance = sums[1 + latent :].reshape(latent, latent) / sums[0] - np.outer(mean, mean)
    return torch.from_numpy(mean).float(), torch.from_numpy(covariance)


def feature_sums(pool: Pool, windows: Windows, shard_set: ShardSet) -> SubjectSums:
    """Sum over frames of the raw window features of each subject, `(F,)`, and its number of frames."""
    sums: dict[str, Floats] = {}
    frames: dict[str, int] = {}
    for subjects, valid_N, raw_NF in _raw_features(pool, windows, shard_set):
        for who, valid, feature_F in zip(subjects, valid_N.tolist(), raw_NF.double().cpu().numpy(), strict=True):
            sums[who] = sums.get(who, 0.0) + valid * feature_F
            frames[who] = frames.get(who, 0) + valid
    return sums, frames


def subject_features(parts: Iterable[SubjectSums]) -> dict[str, Floats]:
    """Frame-weighted mean of the raw window features of each subject, `(F,)`, from their sums."""
    total: dict[str, Floats] = {}
    count: dict[str, int] = {}
    for part_sums, part_frames in parts:
        for who, value in part_sums.items():
            total[who] = total.get(who, 0.0) + value
            count[who] = count.get(who, 0) + part_frames[who]
    return {who: total[who] / count[who] for who in total}


def window_noise(
    model: BoldModel, windows: Windows, features: Mapping[str, Floats], shard_set: ShardSet, place: Place
) -> float:
    """Mean squared distance of a window's outputs from its subject's, in squared units of the output.

    Parameters
    ----------
    features
        From `subject_features` of the same windows.
    """
    parts = (model.head.weight, model.pool.feature_scale, model.output_scale)
    weight, scale, spread = (part.detach().double().cpu().numpy() for part in parts)
    weight_KF = weight * scale * spread[:, None]
    sums = np.zeros(2)
    for subjects, valid_N, raw_NF in _raw_features(model.pool, windows, shard_set):
        apart_NF = raw_NF.double().cpu().numpy() - np.stack([features[who] for who in subjects])
        valid = valid_N.double().cpu().numpy()
        sums += valid.sum(), valid @ np.square(apart_NF @ weight_KF.T).sum(1)
    total_frames, total = sum_over_ranks(sums, place)
    return float(total / total_frames)


@torch.no_grad()
def _raw_features(pool: Pool, windows: Windows, shard_set: ShardSet) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Chunks of windows: subjects, numbers of frames `[N]`, raw features `[N, F]`."""
    for first in range(0, len(windows.run), CHUNK):
        context = windows.context[first : first + CHUNK]
        valid_N = torch.tensor([len(frames) for frames in context], device=context[0].device)
        cls_NW = torch.stack(windows.cls[first : first + CHUNK])
        raw_NF = pool.raw(pad_sequence(context, batch_first=True), cls_NW, valid_N)
        yield [shard_set.runs[run].subject for run in windows.run[first : first + CHUNK]], valid_N, raw_NF
