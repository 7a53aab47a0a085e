"""What is done to the signal of a run before it is stored: the cleaning flags of `ingest-fmri`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from shards.errors import UsageError

SCRUB_FD_MM = 0.5
SCRUB_DVARS = 1.5
SCRUB_SEGMENT_FRAMES = 5
"""Thresholds of the preset `scrubbing` (nilearn 0.13 and later); kept segments that are shorter go too."""
COSINE_PERIOD_S = 128.0
"""Longest period that fMRIPrep's cosine columns leave in."""


@dataclass(frozen=True, kw_only=True)
class CleaningConfig:
    """How runs are cleaned; by default not at all.

    Raises
    ------
    UsageError
        A value is outside what its flag allows, or two flags contradict each other.
    """

    clean: Literal["none", "simple", "scrubbing", "compcor", "ica_aroma"] = "none"
    """Regress confounds out by a preset of nilearn.interfaces.fmriprep (needs fMRIPrep's confounds tables)."""
    confounds: tuple[str, ...] = ()
    """Regress out these columns of the confounds table, names or glob patterns such as 'trans_*'; any layout."""
    detrend: bool = False
    """Remove the linear trend of each voxel."""
    high_pass_hz: float | None = None
    """Butterworth high-pass (order 5, forward and backward) at this frequency."""
    low_pass_hz: float | None = None
    """Butterworth low-pass (order 5, forward and backward) at this frequency."""
    drop_first: int = 0
    """Remove this many frames at the start of each run."""
    drop_non_steady: bool = False
    """Remove the frames at the start that the confounds table marks as non_steady_state_outlier."""
    censor_fd_mm: float | None = None
    """Censor frames whose framewise displacement is above this; with --clean scrubbing in place of its 0.5."""
    censor_dvars: float | None = None
    """Censor frames whose std_dvars is above this; with --clean scrubbing in place of its 1.5."""
    censored: Literal["interpolate", "drop"] = "interpolate"
    """Censored frames are interpolated from cleaned ones, so time goes on evenly; or dropped, so it does not."""
    resample_tr: float | None = None
    """Resample time to this repetition time in seconds, last of all, with an anti-alias filter."""

    def __post_init__(self) -> None:
        for name in ("high_pass_hz", "low_pass_hz", "censor_fd_mm", "censor_dvars", "resample_tr"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{flag(name)} {value:g}: allowed is a number above 0; leave the flag out for none")
        if self.resample_tr is not None and self.resample_tr > 100:
            raise UsageError(f"--resample-tr {self.resample_tr:g}: allowed are seconds up to 100")
        if self.drop_first < 0:
            raise UsageError(f"--drop-first {self.drop_first}: allowed is 0 or more frames")
        if not all(self.confounds):
            raise UsageError("--confounds has an empty name; give names or patterns of columns")
        self._chk_filters()
        if self.censored == "drop" and self.resample_tr is not None:
            raise UsageError(
                "--censored drop leaves gaps in time, which --resample-tr cannot resample; "
                "use --censored interpolate, or leave one of them out"
            )

    def _chk_filters(self) -> None:
        high, low = self.high_pass_hz, self.low_pass_hz
        if high is not None and low is not None and high >= low:
            raise UsageError(
                f"--high-pass-hz {high:g} is not below --low-pass-hz {low:g}: nothing would be left; "
                "give the lower frequency to --high-pass-hz"
            )
        if high is None:
            return
        if self.clean != "none":
            raise UsageError(
                f"--high-pass-hz {high:g} with --clean {self.clean}: the preset's cosine columns are a high-pass "
                f"already (at {COSINE_PERIOD_S:g} s), and two spoil each other; leave --high-pass-hz out, or take its "
                "columns without them by --confounds"
            )
        if any(fnmatchcase("cosine00", pattern) for pattern in self.confounds):
            raise UsageError(
                f"--high-pass-hz {high:g} with the cosine columns in --confounds: two high-pass filters spoil each "
                "other; leave one of them out"
            )

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self != CleaningConfig(censored=self.censored)

    @property
    def filters(self) -> bool:
        """Whether a Butterworth filter is on."""
        return self.high_pass_hz is not None or self.low_pass_hz is not None

    @property
    def can_censor(self) -> bool:
        """Whether frames may be censored: by a threshold, or by a preset (nilearn's always judge frames)."""
        return self.clean != "none" or self.censor_fd_mm is not None or self.censor_dvars is not None

    def recorded(self) -> dict[str, Any]:
        """Return the flags in use, JSON-able; empty when nothing is done."""
        used = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        used.pop("censored", None)
        if self.can_censor:
            used["censored"] = self.censored
        return {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}


def flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")
