"""Two models against each other, on the same subjects or over several trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.scoring.bootstrap import Estimate
from eval.scoring.metrics import Floats


def paired_difference(value: float, resampled: Floats, degrees: int) -> tuple[Estimate, float]:
    """The 95 % interval of a paired difference, and the two-sided p of none.

    Student's t with the bootstrap's standard error: a difference of two scores lies about evenly around its value,
    and BCa intervals of it are too narrow where both scores are high (see `eval.scoring.bootstrap` for the coverage).

    Parameters
    ----------
    value : float
        From all subjects.
    resampled : numpy.ndarray, shape (B,)
        From each resample, `nan` where undefined.
    degrees : int
        Independent subjects or families less one.

    Returns
    -------
    interval : Estimate
        `nan` where fewer than half of the resamples are defined.
    p_value : float
        At most 0.05 where the interval excludes 0; `nan` where it is undefined, and not below 2 / (B + 1).
    """
    from scipy.stats import t

    nan = float("nan")
    defined = resampled[np.isfinite(resampled)]
    lost = int(resampled.size - defined.size)
    if not np.isfinite(value) or defined.size * 2 < resampled.size or defined.size == 0:
        return Estimate(value=value, low=nan, high=nan, num_undefined=lost), nan
    degrees = max(degrees, 1)
    error = float(np.std(defined)) * float(np.sqrt((degrees + 1) / degrees))
    width = error * float(t.ppf(0.975, degrees))
    interval = Estimate(value=value, low=value - width, high=value + width, num_undefined=lost)
    if abs(value) <= 1e-12:
        return interval, 1.0
    p = 2.0 * float(t.sf(abs(value) / error, degrees)) if error > 1e-12 else 0.0
    return interval, max(p, 2.0 / (defined.size + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979) for as many tests as have one; `nan` stays `nan`.

    The chance of calling any difference real that is none stays below the level, whatever the tests share.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(raw.size, np.nan)
    tested = np.flatnonzero(np.isfinite(raw))
    order = tested[np.argsort(raw[tested], kind="stable")]
    steps = raw[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResampledTest:
    """A corrected resampled t-test.

    Attributes
    ----------
    mean, low, high : float
        Mean difference and its 95 % interval; `nan` with fewer than two differences.
    p_value : float
        Two-sided; `nan` with fewer than two differences.
    """

    mean: float
    low: float
    high: float
    p_value: float


def corrected_resampled_t(differences: Sequence[float], test_share: float) -> ResampledTest:
    """Is the mean of paired differences over random splits 0 (Nadeau & Bengio 2003)?

    Splits share training subjects, so their differences are not independent: the variance of the mean is taken as
    (1 / J + n_test / n_train) times that of the J differences, instead of 1 / J.

    Parameters
    ----------
    differences : sequence of float, shape (J,)
        One a split.
    test_share : float
        Test subjects divided by training subjects, of one split.
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    nan = float("nan")
    mean = float(values.mean()) if values.size else nan
    if values.size < 2 or not np.isfinite(values).all():
        return ResampledTest(mean=mean, low=nan, high=nan, p_value=nan)
    error = float(np.sqrt((1.0 / values.size + test_share) * values.var(ddof=1)))
    if error <= 1e-12 * max(1.0, abs(mean)):
        return ResampledTest(mean=mean, low=mean, high=mean, p_value=nan)
    width = error * float(t.ppf(0.975, values.size - 1))
    p = 2.0 * float(t.sf(abs(mean) / error, values.size - 1))
    return ResampledTest(mean=mean, low=mean - width, high=mean + width, p_value=p)
