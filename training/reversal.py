"""The arrow of time: are windows told from their time reversal, and by what?

Every window is seen in both directions by the same model. The frame encoder gives the same latents in either; the
transformer and the moments see another order. A probe gets the difference of a window's features between the two
directions and scores the direction that the window has: reversing a window negates its score, so nothing but order
can count, and static features, which have no difference, score exactly 0.

It measures linear lag structure, and with it slice timing and the vascular delay of each region: a direction that
can be told is no evidence of irreversible neural dynamics.

Shapes: N window, L frame, V voxel, D latent, F feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from shards.errors import UsageError
from shards.reader import ShardSet
from training.networks.model import BoldModel
from training.networks.pooling import FeatureGroup, feature_groups, moments

Floats = NDArray[np.float64]

PENALTIES = tuple(np.logspace(-5, 3, 17).tolist())
MOST_DIMENSIONS, MOST_WINDOWS = 64, 3000
"""Leading whitened dimensions that moments are made of, and windows that a probe is fitted on, at most."""
SAME = 1e-5
"""Features whose difference is smaller than this share of their size are the same in both directions: rounding."""
ANTISYMMETRIC = ("anti1", "anti2", "anti3")
STATIC = {"static": ("mean", "sym0")}
ORDER = {"order1": ("anti1",), "order": ANTISYMMETRIC, "all": ("mean", "sym0", "sym1", "sym2", *ANTISYMMETRIC)}
"""Groups of `training.networks.pooling.moments` that a probe may choose from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Windows as sequences of vectors, in both directions.

    Attributes
    ----------
    unit
        `(N,)`, whose window it is: what is left out, resampled and counted together.
    tr_s
        `(N,)`, repetition time of its run in seconds.
    forward, backward
        `(N, L, D)` float32.
    """

    unit: NDArray[np.str_]
    tr_s: NDArray[np.float32]
    forward: NDArray[np.float32]
    backward: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Pairs:
        """Some of them, in this order."""
        return Pairs(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """A fitted probe of direction.

    Attributes
    ----------
    features, dimensions, penalty
        What leaving out one unit at a time chose: a key of the choices, the number of leading dimensions, and the
        ridge penalty relative to a mean squared norm of 1.
    error
        Mean squared error of the units left out, against 1 for a probe that knows nothing.
    center, whiten, weight
        `(D,)`, `(D, K)` and `(F,)`: what `score` applies.
    """

    features: str
    dimensions: int
    penalty: float
    error: float
    center: NDArray[np.float32]
    whiten: NDArray[np.float32]
    weight: Floats

    def score(self, pairs: Pairs) -> Floats:
        """Score of each window shown forward, `(N,)`; shown backward it is the negative. Above 0: told as forward."""
        return _differences(pairs, self.center, self.whiten)[0] @ self.weight


def window_starts(num_frames: int, window: int, skip_frames: int, rng: np.random.Generator) -> range:
    """First frames of whole windows, side by side from a random frame on.

    Runs of one task share its timing: windows at the same place of every run could be told by what the task does
    there. The first and last `skip_frames` frames of the run are not touched.
    """
    last = num_frames - skip_frames - window
    if last < skip_frames:
        return range(0)
    first = skip_frames + int(rng.integers(min(window, last - skip_frames + 1)))
    return range(first, last + 1, window)


def cut(
    series: Mapping[int, NDArray[np.float32]], shard_set: ShardSet, places: Sequence[tuple[int, int]], window: int
) -> Pairs:
    """Windows of the series `(T, D)` of runs at `(run, start)`, and the same reversed; units are subjects."""
    forward_NLD = np.stack([series[run][start : start + window] for run, start in places]).astype(np.float32)
    return Pairs(
        unit=np.array([shard_set.runs[run].subject for run, _ in places]),
        tr_s=np.array([shard_set.runs[run].tr_s for run, _ in places], np.float32),
        forward=forward_NLD,
        backward=forward_NLD[:, ::-1],
    )


@torch.no_grad()
def latents_of(model: BoldModel, shard_set: ShardSet, run: int, *, frames_at_once: int = 64) -> NDArray[np.float32]:
    """Frame latents of a run, `(T, D)`."""
    level_1V = spread_1V = None
    if model.size.intensity:
        intensity = shard_set.intensity(run)
        level_1V, spread_1V = torch.from_numpy(intensity.level_V)[None], torch.from_numpy(intensity.spread_V)[None]
    num_frames = shard_set.runs[run].num_frames
    parts = []
    for start in range(0, num_frames, frames_at_once):
        residual_LV = shard_set.residual(run, start, min(frames_at_once, num_frames - start))
        parts.append(model.encode(torch.from_numpy(residual_LV)[None], level_1V, spread_1V)[0])
    return torch.cat(parts).float().numpy()


def shuffled(pairs: Pairs, seed: int, copies: int) -> Pairs:
    """The control that knows no order: each window's frames in several random orders, each in both directions."""
    rng = np.random.default_rng(seed)
    repeated = pairs.take(np.repeat(np.arange(len(pairs.unit)), copies))
    order_NL = np.argsort(rng.random(repeated.forward.shape[:2]), axis=1)
    forward_NLD = np.take_along_axis(repeated.forward, order_NL[..., None], axis=1)
    return replace(repeated, forward=forward_NLD, backward=forward_NLD[:, ::-1])


@torch.no_grad()
def in_context(model: BoldModel, latents: Pairs, *, windows_at_once: int = 64) -> Pairs:
    """The tokens that phase 3 reads, of latents in either direction; phase 1 has no transformer and leaves them."""
    if model.phase == 1:
        return latents

    def through(latent_NLD: NDArray[np.float32]) -> NDArray[np.float32]:
        batches = torch.from_numpy(np.ascontiguousarray(latent_NLD)).split(windows_at_once)
        parts = []
        for latent_BLD, tr_s_B in zip(batches, torch.from_numpy(latents.tr_s).split(windows_at_once), strict=True):
            valid_BL = torch.ones(latent_BLD.shape[:2], dtype=torch.bool)
            parts.append(model.read_tokens(latent_BLD, valid_BL, tr_s_B)[0])
        return torch.cat(parts).float().numpy()

    return replace(latents, forward=through(latents.forward), backward=through(latents.backward))


def fit_direction(pairs: Pairs, choices: Mapping[str, Sequence[str]]) -> Direction:
    """Ridge regression of 1 on the differences forward minus backward, without intercept.

    Equal to telling both directions apart with targets +1 and -1. Features, leading dimensions and penalty are those
    of least error on units left out, which ridge gives without refitting.

    Parameters
    ----------
    pairs
        Windows of the training units.
    choices
        Name to groups of `training.networks.pooling.moments`: `STATIC` or `ORDER`.

    Raises
    ------
    UsageError
        Fewer than two units.
    """
    if len(np.unique(pairs.unit)) < 2:
        raise UsageError("one training subject: the probe leaves out one at a time and needs at least 2")
    pairs = _thinned(pairs)
    center_D, whiten_DK = _whitening(pairs)
    difference_NF, size_F = _differences(pairs, center_D, whiten_DK)
    groups = feature_groups("moments", whiten_DK.shape[1], 0)
    best: Direction | None = None
    for name, members in choices.items():
        for dimensions in _leading(whiten_DK.shape[1]):
            columns = _columns(groups, members, dimensions)
            penalty, error, weight = _fit(difference_NF[:, columns], size_F[columns], pairs.unit)
            if best is None or error < best.error:
                full_F = np.zeros(difference_NF.shape[1])
                full_F[columns] = weight
                best = Direction(
                    features=name,
                    dimensions=dimensions,
                    penalty=penalty,
                    error=error,
                    center=center_D,
                    whiten=whiten_DK,
                    weight=full_F,
                )
    assert best is not None
    return best


def _thinned(pairs: Pairs) -> Pairs:
    """At most `MOST_WINDOWS`, evenly spread over the runs."""
    if len(pairs.unit) <= MOST_WINDOWS:
        return pairs
    return pairs.take(np.linspace(0, len(pairs.unit) - 1, MOST_WINDOWS).astype(np.int64))


def _fit(x_NF: Floats, size_F: Floats, unit_N: NDArray[np.str_]) -> tuple[float, float, Floats]:
    """Penalty of least left-out error, that error, and the weights; weights 0 where the directions do not differ."""
    norm = float((x_NF**2).sum(1).mean())
    if norm <= SAME**2 * float((size_F**2).sum()):
        return PENALTIES[-1], 1.0, np.zeros(x_NF.shape[1])
    scale = norm**-0.5
    values, vectors_NN = np.linalg.eigh((x_NF @ x_NF.T) * scale**2)
    values = np.maximum(values, 0.0)
    members = [np.flatnonzero(unit_N == unit) for unit in np.unique(unit_N)]
    errors = [_left_out_error(values, vectors_NN, members, penalty) for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(errors))]
    dual_N = vectors_NN @ (vectors_NN.sum(0) / (values + penalty))
    return penalty, min(errors), (x_NF.T @ dual_N) * scale**2


def _left_out_error(values: Floats, vectors_NN: Floats, members: Sequence[NDArray[np.int64]], penalty: float) -> float:
    """Mean squared error of 1 predicted for each unit by the fit without it (Sherman-Morrison-Woodbury)."""
    shrink = values / (values + penalty)
    residual_N = 1 - vectors_NN @ (shrink * vectors_NN.sum(0))
    total = 0.0
    for rows in members:
        hat = (vectors_NN[rows] * shrink) @ vectors_NN[rows].T
        left_out = np.linalg.solve(np.eye(len(rows)) - hat, residual_N[rows])
        total += float((left_out**2).sum())
    return total / len(residual_N)


def _differences(pairs: Pairs, center_D: NDArray[np.float32], whiten_DK: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Moments forward minus backward, `(N, F)`, and their root mean square in the forward direction, `(F,)`."""
    forward, backward = (_moments(x_NLD, center_D, whiten_DK) for x_NLD in (pairs.forward, pairs.backward))
    return forward - backward, np.sqrt((forward**2).mean(0))


def _moments(x_NLD: NDArray[np.float32], center_D: NDArray[np.float32], whiten_DK: NDArray[np.float32]) -> Floats:
    white_NLK = torch.from_numpy(np.ascontiguousarray((x_NLD - center_D) @ whiten_DK))
    num_valid_N = torch.full((len(white_NLK),), white_NLK.shape[1])
    return moments(white_NLK, num_valid_N).double().numpy()


def _whitening(pairs: Pairs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and whitening of all frames, leading dimensions first; those of (numerically) no variance are left out."""
    frames = np.concatenate([pairs.forward, pairs.backward]).reshape(-1, pairs.forward.shape[-1]).astype(np.float64)
    values, vectors_DD = np.linalg.eigh(np.atleast_2d(np.cov(frames.T)))
    kept = np.flatnonzero(values > 1e-6 * values[-1])[::-1][:MOST_DIMENSIONS]
    return frames.mean(0).astype(np.float32), (vectors_DD[:, kept] * values[kept] ** -0.5).astype(np.float32)


def _leading(num_dimensions: int) -> Iterator[int]:
    """Powers of two from 4, and all."""
    size = 4
    while size < num_dimensions:
        yield size
        size *= 2
    yield num_dimensions


def _columns(groups: Sequence[FeatureGroup], members: Sequence[str], dimensions: int) -> NDArray[np.int64]:
    chosen = [g.start + np.flatnonzero(np.asarray(g.order) < dimensions) for g in groups if g.name in members]
    return np.concatenate(chosen)
