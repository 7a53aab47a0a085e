"""From maps of subjects to one map of the group, and what chance would make of it.

The map of the group adds up to what the outputs tell about the target, and what all subjects share cancels in it:

- classes: the mean over classes of the mean over subjects of what each voxel adds to the margin of the subject's own
  class (its logit minus the mean of the others; with two classes plus or minus the logit). The sum over voxels is the
  mean margin over classes.
- a measure: the slope of what each voxel contributes on the target. The sum over voxels is the slope of the output.

Either is a weighted sum of the maps of the subjects, the weights made from the labels alone. So labels can be shuffled
without touching a voxel again.

Shapes: S subject, K output, V voxel, C class, Q shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats, Kind

NUM_SHUFFLES = 2000
NUM_HALVINGS = 50
ALPHA = 0.05
CHUNK = 8192
"""Voxels at a time, which bounds the memory of the shuffles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Significance:
    """A map of the group against shuffled labels.

    Attributes
    ----------
    z_V : numpy.ndarray, shape (V,)
        Value minus its mean over the shuffles, divided by its SD over them; 0 where that is 0.
    p_V : numpy.ndarray, shape (V,)
        Two-sided, corrected for the number of voxels: share of shuffles whose largest |z| of all voxels reaches it.
    threshold : float
        |z| that is passed anywhere in the brain with probability `ALPHA` when labels mean nothing.
    """

    z_V: Floats
    p_V: Floats
    threshold: float


def label_weights(y_S: Floats, kind: Kind, num_outputs: int) -> Floats:
    """Weight of each subject's map of each output in the map of the group, `(S, K)`.

    Parameters
    ----------
    y_S : numpy.ndarray, shape (S,)
        Class numbers, at least two different ones, or values, not all equal.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    num_outputs : int
        K.
    """
    if kind == "regression":
        centred = y_S - y_S.mean()
        return np.asarray((centred / (centred @ centred))[:, None])
    levels, level_S, count_C = np.unique(y_S, return_inverse=True, return_counts=True)
    share_S = 1 / (len(levels) * count_C[level_S])
    return np.asarray(share_S[:, None] * margins(y_S, kind, num_outputs))


def margins(y_S: Floats, kind: Kind, num_outputs: int) -> Floats:
    """Weight of each output in the margin of the subject's own class, `(S, K)`; ones for a measure."""
    if kind == "regression":
        return np.ones((len(y_S), 1))
    if kind == "binary":
        return np.where(y_S > 0, 1.0, -1.0)[:, None]
    own_SK = y_S[:, None] == np.arange(num_outputs)
    return np.where(own_SK, 1.0, -1.0 / (num_outputs - 1))


def group_map(maps_SKV: Floats, weight_SK: Floats) -> Floats:
    """The map of the group, `(V,)`."""
    return np.asarray(np.einsum("sk,skv->v", weight_SK, maps_SKV))


def against_shuffles(maps_SKV: Floats, y_S: Floats, kind: Kind, *, seed: int) -> Significance:
    """Compare the map of the group with those of shuffled labels.

    Parameters
    ----------
    maps_SKV : numpy.ndarray, shape (S, K, V)
        Attributions of each subject.
    y_S : numpy.ndarray, shape (S,)
        Targets; under the null hypothesis they could be exchanged between subjects.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    seed : int
        Of the shuffles.
    """
    rng = np.random.default_rng(seed)
    num_subjects, num_outputs, num_voxels = maps_SKV.shape
    orders = [np.arange(num_subjects), *(rng.permutation(num_subjects) for _ in range(NUM_SHUFFLES))]
    weight_SK = label_weights(y_S, kind, num_outputs)
    weights = np.stack([weight_SK[order].ravel() for order in orders])  # a label's weights go where it goes
    flat = maps_SKV.reshape(num_subjects * num_outputs, num_voxels)
    z_V, largest_Q = np.zeros(num_voxels), np.zeros(NUM_SHUFFLES)
    for first in range(0, num_voxels, CHUNK):
        values_QV = weights @ flat[:, first : first + CHUNK]
        mean_V, sd_V = values_QV[1:].mean(0), values_QV[1:].std(0)
        scale_V = np.where(sd_V > 1e-9 * np.abs(flat).max(initial=0.0), sd_V, np.inf)
        standard_QV = (values_QV - mean_V) / scale_V
        z_V[first : first + CHUNK] = standard_QV[0]
        largest_Q = np.maximum(largest_Q, np.abs(standard_QV[1:]).max(1))
    ranked_Q = np.sort(largest_Q)
    reached_V = NUM_SHUFFLES - np.searchsorted(ranked_Q, np.abs(z_V), side="left")
    return Significance(
        z_V=z_V,
        p_V=(1 + reached_V) / (1 + NUM_SHUFFLES),
        threshold=float(np.quantile(ranked_Q, 1 - ALPHA, method="higher")),
    )


def half_agreement(maps_SKV: Floats, y_S: Floats, kind: Kind, *, seed: int) -> Floats:
    """Rank correlations over voxels of the maps of two halves of the subjects, one a halving (none if too few).

    Parameters
    ----------
    maps_SKV, y_S, kind
        As of `against_shuffles`. Every class is halved; a measure is halved in pairs of neighbouring values.
    seed : int
        Of the halvings.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(NUM_HALVINGS):
        side_S = _half(y_S, kind, rng)
        sides = (side_S, ~side_S)
        if any(np.unique(y_S[side]).size < 2 for side in sides):
            continue
        found.append(
            rank_correlation(
                *(group_map(maps_SKV[side], label_weights(y_S[side], kind, maps_SKV.shape[1])) for side in sides)
            )
        )
    return np.array(found)


def _half(y_S: Floats, kind: Kind, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """True for one of each pair: pairs of a class at random, or of neighbouring values of a measure."""
    order = np.argsort(y_S, kind="stable")
    blocks = [order] if kind == "regression" else [rng.permutation(order[y_S[order] == k]) for k in np.unique(y_S)]
    side_S = np.zeros(len(y_S), dtype=bool)
    for block in blocks:
        first = rng.integers(2, size=-(-len(block) // 2)).repeat(2)[: len(block)]
        side_S[block] = np.arange(len(block)) % 2 == first
    return side_S


def rank_correlation(first_V: Floats, second_V: Floats) -> float:
    """Spearman correlation over voxels; 0 where a map is constant."""
    from scipy.stats import spearmanr

    if np.ptp(first_V) == 0 or np.ptp(second_V) == 0:
        return 0.0
    return float(spearmanr(first_V, second_V).statistic)


def peaks(z_V: Floats, where_mm_V3: Floats, *, count: int, apart_mm: float) -> list[int]:
    """Voxels of the largest |z|, in falling order, no two closer than `apart_mm`."""
    left = np.abs(z_V).astype(np.float64)
    found: list[int] = []
    while len(found) < count and left.max(initial=0.0) > 0:
        voxel = int(left.argmax())
        found.append(voxel)
        left[np.linalg.norm(where_mm_V3 - where_mm_V3[voxel], axis=1) < apart_mm] = 0
    return found
