"""How two measures of the same subjects go together, and what is left of it given others.

Shapes: N subject, F confound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats

LEAST_SUBJECTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Correlation:
    """A (partial) correlation with its 95 % interval (Fisher z) and two-sided p; `nan` where undefined."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Association:
    """How strongly two measures go together, and the p of no association.

    `value` is Spearman's rho for two numbers, and from 0 to 1 otherwise: the correlation ratio of ranks between
    categories (Kruskal-Wallis) for a category and a number, Cramér's V for two categories.
    """

    value: float
    p: float


UNDEFINED = Correlation(value=np.nan, low=np.nan, high=np.nan, p=np.nan)


def associate(a: npt.NDArray, b: npt.NDArray) -> Association:
    """Association of two measures, (N,) each: arrays of float are numbers, of str are categories.

    Subjects that miss either (`nan` or '') are left out; undefined (`nan`) where one does not vary.
    """
    from scipy.stats import spearmanr

    known = _known(a) & _known(b)
    a, b = a[known], b[known]
    if len(a) < LEAST_SUBJECTS or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return Association(value=np.nan, p=np.nan)
    a_is_number, b_is_number = a.dtype.kind == "f", b.dtype.kind == "f"
    if a_is_number and b_is_number:
        rho, p = spearmanr(a, b)
        return Association(value=float(rho), p=float(p))
    if not a_is_number and not b_is_number:
        return _cramer(a, b)
    return _kruskal(b, a) if a_is_number else _kruskal(a, b)


def partial_correlation(x: npt.ArrayLike, y: npt.ArrayLike, given: npt.ArrayLike, *, ranked: bool) -> Correlation:
    """Correlation of x and y with what the confounds explain linearly taken out of both.

    Parameters
    ----------
    x, y : array_like, shape (N,)
        Numbers.
    given : array_like, shape (N, F)
        Confounds; F = 0 gives the plain correlation. Collinear columns do no harm.
    ranked : bool
        Spearman: on ranks of everything; else Pearson.

    Returns
    -------
    Correlation
        The interval has N - 3 - g degrees of freedom, g the rank of the confounds (Fisher 1924); for ranks its variance
        is 1.06 times as large (Fieller et al. 1957). p is that of Student's t with N - 2 - g degrees of freedom.
    """
    from scipy.stats import rankdata

    measures = [np.asarray(values, dtype=np.float64) for values in (x, y, given)]
    if ranked:
        measures = [np.asarray(rankdata(values, axis=0), dtype=np.float64) for values in measures]
    design, num_given = _design(measures[2].reshape(len(measures[0]), -1))
    num_free = len(design) - num_given
    left_x, left_y = (_without(design, values) for values in measures[:2])
    if num_free < LEAST_SUBJECTS or not left_x.any() or not left_y.any():
        return UNDEFINED
    value = float(np.clip(left_x @ left_y / np.linalg.norm(left_x) / np.linalg.norm(left_y), -1.0, 1.0))
    return _tested(value, num_free, ranked)


def _design(given: Floats) -> tuple[Floats, int]:
    """The confounds, centred and of unit length, beside a constant; and their rank without it."""
    centred = given - given.mean(axis=0)
    size = np.linalg.norm(centred, axis=0)
    design = np.column_stack([np.ones(len(given)), centred[:, size > 0] / size[size > 0]])
    return design, int(np.linalg.matrix_rank(design)) - 1


def _tested(value: float, num_free: int, ranked: bool) -> Correlation:
    """Interval and p of a correlation of `num_free` = N - g effective subjects."""
    from scipy.stats import norm, t

    half = float(norm.ppf(0.975)) * math.sqrt((1.06 if ranked else 1.0) / (num_free - 3))
    z = math.atanh(value) if abs(value) < 1 else math.copysign(math.inf, value)
    size = abs(value) * math.sqrt((num_free - 2) / max(1 - value**2, 1e-300))
    p = 2 * float(t.sf(size, num_free - 2))
    return Correlation(value=value, low=math.tanh(z - half), high=math.tanh(z + half), p=p)


def _without(design: Floats, values: Floats) -> Floats:
    """Residual of a regression; exactly 0 where it is rounding."""
    residual = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    size, spread = float(np.linalg.norm(values)), float(np.linalg.norm(values - values.mean()))
    rounding = float(np.linalg.norm(residual)) <= max(1e-9 * spread, 1e-12 * size)
    return np.zeros_like(residual) if rounding else residual


def _kruskal(category: npt.NDArray, number: npt.NDArray) -> Association:
    from scipy.stats import kruskal

    found = kruskal(*(number[category == level] for level in np.unique(category)))
    return Association(value=float(np.sqrt(found.statistic / (len(number) - 1))), p=float(found.pvalue))


def _cramer(a: npt.NDArray, b: npt.NDArray) -> Association:
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association, crosstab

    table = crosstab(a, b).count
    return Association(value=float(association(table)), p=float(chi2_contingency(table, correction=False).pvalue))


def _known(values: npt.NDArray) -> npt.NDArray[np.bool_]:
    return np.isfinite(values) if values.dtype.kind == "f" else np.asarray(values != "")
