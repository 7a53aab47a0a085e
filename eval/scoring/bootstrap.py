"""Uncertainty of subject-level metrics: stratified bootstrap, paired differences, permutation null.

Families, where known, are drawn as blocks: relatives are not independent, and an interval that treats them
so is too narrow. All models are scored on the same resamples, so their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value with its 95 % percentile interval.

    `num_undefined` of the resamples gave no value (one class only, for instance) and are left out of the
    interval; the interval is `nan` when fewer than half of them gave one.
    """

    value: float
    low: float
    high: float
    num_undefined: int


def estimate(value: float, resampled: Floats, level: float = 0.95) -> Estimate:
    """The interval of `value` from its resampled values, shape (B,)."""
    defined = resampled[np.isfinite(resampled)]
    num_undefined = int(resampled.size - defined.size)
    if not np.isfinite(value) or defined.size * 2 < resampled.size or defined.size == 0:
        return Estimate(value=value, low=float("nan"), high=float("nan"), num_undefined=num_undefined)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return Estimate(value=value, low=float(low), high=float(high), num_undefined=num_undefined)


def resample_counts(
    num_resamples: int,
    num_subjects: int,
    *,
    seed: int,
    strata: Sequence[int] | npt.ArrayLike | None = None,
    families: Sequence[str] | None = None,
) -> Ints:
    """Draw bootstrap resamples as counts.

    Parameters
    ----------
    num_resamples, num_subjects : int
        B and N.
    seed : int
        The same seed gives the same resamples.
    strata : sequence of int, shape (N,), optional
        Class of each subject: each class is resampled on its own, so each keeps its size. With families, a
        family belongs to the class of most of its members.
    families : sequence of str, shape (N,), optional
        Members of one family are drawn together. '' is a family of one.

    Returns
    -------
    numpy.ndarray, shape (B, N), int64
        How often each subject is in each resample.
    """
    block = family_blocks(families, num_subjects)
    stratum = np.zeros(num_subjects, dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    num_blocks = int(block.max(initial=-1)) + 1
    stratum_of_block = np.array([np.bincount(stratum[block == b]).argmax() for b in range(num_blocks)])
    rng = np.random.default_rng(seed)
    drawn = np.zeros((num_resamples, num_blocks), dtype=np.int64)
    for level in np.unique(stratum_of_block):
        members = np.flatnonzero(stratum_of_block == level)
        drawn[:, members] = rng.multinomial(members.size, np.full(members.size, 1.0 / members.size), size=num_resamples)
    return drawn[:, block]


def family_blocks(families: Sequence[str] | None, num_subjects: int) -> Ints:
    """Block number of each subject, 0, 1, ... in order of first appearance; shape (N,)."""
    if families is None:
        return np.arange(num_subjects, dtype=np.int64)
    known: dict[str, int] = {}
    names = (name or f"\0alone {index}" for index, name in enumerate(families))
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)


def permutation_null(
    y_true: Floats,
    statistic: Callable[[Floats], float],
    *,
    num_permutations: int,
    seed: int,
    families: Sequence[str] | None = None,
) -> Floats:
    """The statistic under shuffled labels.

    With families, the labels of whole families change places between families of equal size, and within each
    family (whole-block and within-block exchangeability, Winkler et al. 2015): relatives keep labels as alike as
    they are.

    Parameters
    ----------
    y_true : numpy.ndarray, shape (N,)
        Level numbers or values.
    statistic : callable
        Takes shuffled labels, shape (N,), gives a number.
    num_permutations, seed : int
        How many, and from which seed.
    families : sequence of str, shape (N,), optional
        As in `resample_counts`.

    Returns
    -------
    numpy.ndarray, shape (num_permutations,)
    """
    block = family_blocks(families, y_true.size)
    members = [np.flatnonzero(block == b) for b in range(int(block.max(initial=-1)) + 1)]
    by_size: dict[int, list[Ints]] = {}
    for indices in members:
        by_size.setdefault(indices.size, []).append(indices)
    stacks = [np.stack(blocks) for _, blocks in sorted(by_size.items())]
    rng = np.random.default_rng(seed)
    null = np.empty(num_permutations)
    shuffled = y_true.copy()
    for index in range(num_permutations):
        for stack in stacks:
            shuffled[stack] = y_true[rng.permuted(rng.permutation(stack), axis=1)]
        null[index] = statistic(shuffled)
    return null


def p_value(observed: float, null: Floats, *, higher_is_better: bool) -> float:
    """One-sided permutation p, (1 + as good or better) / (1 + permutations); `nan` when undefined."""
    if not np.isfinite(observed) or null.size == 0 or not np.isfinite(null).all():
        return float("nan")
    slack = 1e-12 * max(1.0, abs(observed))
    as_good = null >= observed - slack if higher_is_better else null <= observed + slack
    return float((1 + int(as_good.sum())) / (1 + null.size))
