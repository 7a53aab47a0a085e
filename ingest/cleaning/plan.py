"""What is to be done to one run, and whether it has frames enough for that.

Axes: T frame, K kept frame, R regressor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ingest.cleaning.config import CleaningConfig
from ingest.cleaning.retiming import num_frames_after
from ingest.cleaning.selection import Selection
from ingest.failures import RunError

Array = NDArray[np.float64]

MIN_FREE_FRAMES = 10
"""Fewest frames, and fewest degrees of freedom, that cleaning may leave."""
MIN_FILTER_FRAMES = 34
"""What a band-pass of order 5 needs to be started at both ends."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to every block of voxels; frames are counted after those at the start are gone."""

    config: CleaningConfig
    tr_s: float
    num_first: int
    kept_T: NDArray[np.bool_]
    names: tuple[str, ...]
    regressors_TR: Array
    num_free: int

    @property
    def new_tr_s(self) -> float:
        return self.config.resample_tr or self.tr_s

    @property
    def num_even(self) -> int:
        """Frames before time is resampled."""
        return len(self.kept_T) if self.config.censored == "interpolate" else int(self.kept_T.sum())

    @property
    def num_frames(self) -> int:
        """Frames of the result."""
        return num_frames_after(self.num_even, self.tr_s, self.new_tr_s)


def make_plan(selection: Selection, config: CleaningConfig, tr_s: float) -> Plan:
    """Put together what is done to every block of voxels.

    Raises
    ------
    RunError
        Stage `clean`: too few frames or degrees of freedom are left, or a filter is beyond what the run resolves.
    """
    kept_T = selection.kept_T[selection.num_first :]
    regressors_TR = selection.regressors_TR[selection.num_first :]
    _chk_frames(kept_T, selection, config)
    _chk_filter(kept_T, config, tr_s)
    return Plan(
        config=config,
        tr_s=tr_s,
        num_first=selection.num_first,
        kept_T=kept_T,
        names=selection.names,
        regressors_TR=regressors_TR,
        num_free=_num_free(kept_T, regressors_TR, config, tr_s),
    )


def _chk_frames(kept_T: NDArray[np.bool_], selection: Selection, config: CleaningConfig) -> None:
    num_kept = int(kept_T.sum())
    if num_kept < MIN_FREE_FRAMES:
        raise RunError(
            "clean",
            f"{num_kept} of {len(selection.kept_T)} frames are left ({selection.num_first} dropped at the start, "
            f"{int((~kept_T).sum())} censored), wanted {MIN_FREE_FRAMES} or more",
            "leave the run out (--exclude), or censor and drop less",
            "too-few-frames",
        )


def _chk_filter(kept_T: NDArray[np.bool_], config: CleaningConfig, tr_s: float) -> None:
    nyquist_hz = 0.5 / tr_s
    for name, value in (("--high-pass-hz", config.high_pass_hz), ("--low-pass-hz", config.low_pass_hz)):
        if value is not None and value >= nyquist_hz:
            raise RunError(
                "clean",
                f"{name} {value:g} is not below {nyquist_hz:g} Hz, the highest frequency at a repetition time of "
                f"{tr_s:g} s",
                f"give a lower {name}, or leave it out",
                "beyond-nyquist",
            )
    kept = np.flatnonzero(kept_T)
    num_between = int(kept[-1] - kept[0]) + 1
    if config.filters and num_between < MIN_FILTER_FRAMES:
        raise RunError(
            "clean",
            f"{num_between} frames are too few for a filter of order 5, wanted {MIN_FILTER_FRAMES} or more",
            "leave the run out (--exclude), or --high-pass-hz and --low-pass-hz",
            "too-few-frames",
        )


def _num_free(kept_T: NDArray[np.bool_], regressors_TR: Array, config: CleaningConfig, tr_s: float) -> int:
    """Degrees of freedom that are left: kept frames in the band that passes, less trend, mean and regressors."""
    nyquist_hz = 0.5 / tr_s
    low_hz = config.high_pass_hz or 0.0
    high_hz = config.low_pass_hz or nyquist_hz
    num_passed = int(kept_T.sum() * (high_hz - low_hz) / nyquist_hz)
    kept_KR = regressors_TR[kept_T]
    spread_R = kept_KR.std(axis=0)
    standard_KR = (kept_KR - kept_KR.mean(axis=0)) / np.where(spread_R > 0, spread_R, 1)
    num_regressors = int(np.linalg.matrix_rank(standard_KR)) if standard_KR.size else 0
    num_free = num_passed - num_regressors - (config.high_pass_hz is None) - config.detrend
    if num_free < MIN_FREE_FRAMES:
        band = f" (of which the filter passes {num_passed})" if config.filters else ""
        raise RunError(
            "clean",
            f"{num_regressors} regressors leave {max(0, num_free)} degrees of freedom of {int(kept_T.sum())} kept "
            f"frames{band}, wanted {MIN_FREE_FRAMES} or more",
            "use fewer regressors, a wider band or milder censoring, or leave the run out (--exclude)",
            "too-many-regressors",
        )
    return num_free
