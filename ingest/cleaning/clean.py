"""Cleaning of one run, block by block of voxels; nilearn does the work.

Order of operations:

1. frames at the start are dropped (--drop-first, --drop-non-steady), from the signal and from the confounds;
2. censored frames are replaced by a cubic spline through the others, for the filters' sake;
3. linear trends are removed (--detrend);
4. Butterworth filter (--high-pass-hz, --low-pass-hz);
5. censored frames are taken out;
6. confounds are regressed out: they went through 2 to 5 as the signal did, so that regression brings nothing back
   that the filter took out (Lindquist et al. 2018, doi:10.1101/407676);
7. the mean of each voxel over its kept frames is put back, since the stored mean image is to stay an image;
8. censored frames return, interpolated from their cleaned neighbours (--censored interpolate, the default), the ones
   at the ends equal to the nearest kept frame; or stay away (--censored drop);
9. time is resampled (--resample-tr).

`nilearn.signal.clean` does 3 and 4, and 6; without a filter 5 comes before 3, as there, so that trends are those of the
kept frames. It is not asked to do 2 and 5 as well: version 0.14.1 replaces a censored frame only if the frame as far
from the other end is kept, and takes the wrong frames when both ends are censored. Here every censored frame is
replaced by the same spline, or cut off at the ends, so that kept frames never depend on what censored frames held.

In 8, a shape-preserving cubic (PCHIP) bridges the gap: across 10 frames an ordinary spline swings to 8 SD in
unfiltered series, across 40 frames to 30 SD, and the stored range of int8 would have to follow.

Axes: T frame, K kept frame, V voxel, R regressor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ingest.cleaning.config import CleaningConfig
from ingest.cleaning.methods import methods_text
from ingest.cleaning.plan import Plan, make_plan
from ingest.cleaning.retiming import time_operator
from ingest.cleaning.selection import select
from ingest.record import RunRecord
from ingest.scratch import Scratch

__all__ = ["Cleaned", "CleaningConfig", "clean_run", "methods_text"]

Array = NDArray[np.float64]

_BLOCK_BYTES = 16 << 20
"""Of one block of voxels as float64; nilearn takes about eight times as much."""


@dataclass
class Cleaned:
    """A run after cleaning.

    Attributes
    ----------
    signal_TV
        (time, voxel) float32, in the source's units.
    tr_s
        Its repetition time in seconds.
    notes
        What was done, JSON-able.
    """

    signal_TV: NDArray[np.float32]
    tr_s: float
    notes: dict[str, Any]


def clean_run(
    signal_TV: NDArray[np.float32],
    tr_s: float,
    record: RunRecord,
    config: CleaningConfig,
    scratch: Scratch | None = None,
) -> Cleaned:
    """Clean one run in place.

    Parameters
    ----------
    signal_TV
        (time, voxel) float32, C order. It is overwritten: the result lies in it, unless --resample-tr makes more
        frames than it has.
    tr_s
        Repetition time in seconds.
    record
        Where the run's confounds are.
    config
        What to do.
    scratch
        Holds a result of more frames than `signal_TV`.

    Raises
    ------
    RunError
        Stage `confounds` or `clean`: the run's confounds, length or repetition time do not allow it.

    Notes
    -----
    Voxels that hold NaN or infinity come back as NaN. Beside the run itself it takes about 0.2 GB.
    """
    num_frames, num_voxels = signal_TV.shape
    plan = make_plan(select(record, config, num_frames, tr_s), config, tr_s)
    if plan.num_frames <= num_frames:
        result_TV = signal_TV[: plan.num_frames]
    else:
        shape = (plan.num_frames, num_voxels)
        result_TV = np.empty(shape, np.float32) if scratch is None else scratch.array("retimed", shape, np.float32)
    step = max(64, _BLOCK_BYTES // (8 * num_frames) // 64 * 64)
    with threadpool_limits(1):  # the same sums in the same order, whatever the machine is doing
        steps = _Steps(plan)
        for start in range(0, num_voxels, step):
            voxels = slice(start, start + step)
            result_TV[:, voxels] = steps.clean(signal_TV[plan.num_first :, voxels].astype(np.float64))
    return Cleaned(signal_TV=result_TV, tr_s=plan.new_tr_s, notes=_notes(plan, num_frames, tr_s))


class _Steps:
    """The steps for blocks of voxels; what the blocks share is computed once."""

    def __init__(self, plan: Plan) -> None:
        kept = np.flatnonzero(plan.kept_T)
        self._plan = plan
        self._between = slice(kept[0], kept[-1] + 1)  # beyond, there is nothing to interpolate from
        self._bridge = _bridge(plan.kept_T[self._between]) if plan.config.filters else None
        self._regressors_KR = self._filtered(plan.regressors_TR) if plan.names else None

    def clean(self, block_TV: Array) -> NDArray[np.float32]:
        """Do everything to some voxels; the block is overwritten."""
        plan = self._plan
        broken_V = ~np.isfinite(block_TV).all(axis=0)
        block_TV[:, broken_V] = 0.0
        mean_V = block_TV[plan.kept_T].mean(axis=0)
        block_TV -= mean_V
        cleaned = self._without_confounds(self._filtered(block_TV))
        if plan.config.censored == "interpolate" and not plan.kept_T.all():
            cleaned = _with_censored_frames(cleaned, plan.kept_T)
        if plan.new_tr_s != plan.tr_s:
            operator_NT = time_operator(plan.num_even, plan.tr_s, plan.new_tr_s)
            cleaned = (operator_NT @ cleaned.astype(np.float32)).astype(np.float64)
        result: NDArray[np.float32] = (cleaned + mean_V).astype(np.float32)
        result[:, broken_V] = np.nan
        return result

    def _filtered(self, values_TV: Array) -> Array:
        """The kept frames (K, V) after trend and filter: the same for signals and for confounds."""
        config, kept_T = self._plan.config, self._plan.kept_T
        if not config.filters:
            return _by_nilearn(values_TV[kept_T], detrend=True) if config.detrend else values_TV[kept_T]
        kept_T, values_TV = kept_T[self._between], values_TV[self._between].copy()
        if self._bridge is not None:
            values_TV[~kept_T] = self._bridge @ values_TV[kept_T]
        filtered = _by_nilearn(
            values_TV,
            detrend=config.detrend,
            low_pass=config.low_pass_hz,
            high_pass=config.high_pass_hz,
            t_r=self._plan.tr_s,
            butterworth__copy=True,  # all voxels in one call, three times faster
        )
        return filtered[kept_T]

    def _without_confounds(self, values_KV: Array) -> Array:
        if self._regressors_KR is None:
            return values_KV
        return _by_nilearn(values_KV, detrend=False, confounds=self._regressors_KR, standardize_confounds=True)


def _by_nilearn(values_TV: Array, **options: Any) -> Array:
    from nilearn.signal import clean

    cleaned: Array = clean(values_TV, standardize=None, **options)
    return cleaned


def _bridge(kept_T: NDArray[np.bool_]) -> Array | None:
    """The matrix (censored, kept) of the cubic spline through the kept frames; None if all are kept."""
    from scipy.interpolate import CubicSpline

    kept, censored = np.flatnonzero(kept_T), np.flatnonzero(~kept_T)
    if not len(censored):
        return None
    unit_KK = np.eye(len(kept))
    parts = [CubicSpline(kept, unit_KK[:, k : k + 256])(censored) for k in range(0, len(kept), 256)]
    return np.concatenate(parts, axis=1)


def _with_censored_frames(cleaned_KV: Array, kept_T: NDArray[np.bool_]) -> Array:
    """Put frames back where they were censored; the ones at the ends are the nearest kept frame."""
    from scipy.interpolate import PchipInterpolator

    kept, censored = np.flatnonzero(kept_T), np.flatnonzero(~kept_T)
    result_TV = np.empty((len(kept_T), cleaned_KV.shape[1]))
    result_TV[kept] = cleaned_KV
    result_TV[: kept[0]] = cleaned_KV[0]
    result_TV[kept[-1] + 1 :] = cleaned_KV[-1]
    inner = censored[(censored > kept[0]) & (censored < kept[-1])]
    if len(inner):
        # the curve over a gap is decided by two kept frames on either side
        knots = np.unique(np.clip(np.searchsorted(kept, inner)[:, None] + [-2, -1, 0, 1], 0, len(kept) - 1))
        result_TV[inner] = PchipInterpolator(kept[knots], cleaned_KV[knots])(inner)
    return result_TV


def _notes(plan: Plan, num_frames: int, tr_s: float) -> dict[str, Any]:
    return {
        "num_frames_source": num_frames,
        "tr_s_source": tr_s,
        "num_dropped": plan.num_first,
        "num_censored": int((~plan.kept_T).sum()),
        "num_regressors": len(plan.names),
        "regressors": list(plan.names),
        "num_free": plan.num_free,
        "num_frames": plan.num_frames,
    }
