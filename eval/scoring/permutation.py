"""What a statistic is worth when nothing is in the labels: permutations that keep relatives together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eval.scoring.bootstrap import Ints, family_blocks
from eval.scoring.metrics import Floats


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
