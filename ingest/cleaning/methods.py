"""The sentences on cleaning for a paper's methods section."""

from __future__ import annotations

from ingest.cleaning.config import COSINE_PERIOD_S, SCRUB_DVARS, SCRUB_FD_MM, SCRUB_SEGMENT_FRAMES, CleaningConfig

_POWER_2012 = "Power et al., 2012, doi:10.1016/j.neuroimage.2011.10.018"
_POWER_2014 = "Power et al., 2014, doi:10.1016/j.neuroimage.2013.08.048"
_LINDQUIST_2018 = "Lindquist et al., 2018, doi:10.1101/407676"
_BEHZADI_2007 = "Behzadi et al., 2007, doi:10.1016/j.neuroimage.2007.04.042"
_PRUIM_2015 = "Pruim et al., 2015, doi:10.1016/j.neuroimage.2015.02.064"
_FRITSCH_1984 = "Fritsch and Butland, 1984, doi:10.1137/0905021"

_MOTION = "24 motion terms (six realignment parameters, their derivatives, and the squares of both)"
_TISSUE = "the mean signals of white matter and CSF"
_COSINES = f"discrete cosines (a high-pass at {COSINE_PERIOD_S:g} s)"
_PRESETS = {
    "simple": f"{_MOTION}, {_TISSUE}, and {_COSINES}",
    "scrubbing": f"{_MOTION}, {_TISSUE} with their derivatives and the squares of both, and {_COSINES}",
    "compcor": f"{_MOTION}, the aCompCor components of white matter and CSF ({_BEHZADI_2007}), and {_COSINES}",
    "ica_aroma": f"{_TISSUE}, and {_COSINES}, from series that ICA-AROMA ({_PRUIM_2015}) had denoised",
}
_MEAN = "the mean of each voxel was put back"


def methods_text(config: CleaningConfig) -> str:
    """Return what was done to the signals, in the order in which it was done; empty when nothing was."""
    if not config.active:
        return ""
    steps = [*_dropped(config), *_censored(config), *_filtered(config), *_regressed(config), *_timed(config)]
    text = "Voxel time series were cleaned run by run, in this order: " + "; ".join(steps) + "."
    by_nilearn = [name for name, used in (("detrending", config.detrend), ("filtering", config.filters)) if used]
    if config.clean != "none" or config.confounds:
        by_nilearn.append("regression")
    if by_nilearn:
        text += f" For {', '.join(by_nilearn)}, nilearn's signal.clean was used."
    return text


def _dropped(config: CleaningConfig) -> list[str]:
    first = "the first frame" if config.drop_first == 1 else f"the first {config.drop_first} frames"
    if config.drop_non_steady:
        least = f", {first} in any case," if config.drop_first else ""
        return [f"frames at the start that were marked as non-steady{least} were removed"]
    return [f"{first} {'was' if config.drop_first == 1 else 'were'} removed"] if config.drop_first else []


def _censored(config: CleaningConfig) -> list[str]:
    """What was censored, and how filters bridge it."""
    fd_mm, dvars = config.censor_fd_mm, config.censor_dvars
    if config.clean == "scrubbing":
        fd_mm, dvars = fd_mm or SCRUB_FD_MM, dvars or SCRUB_DVARS
    reasons = []
    if fd_mm is not None:
        reasons.append(f"with a framewise displacement above {fd_mm:g} mm ({_POWER_2012})")
    if dvars is not None:
        reasons.append(f"with standardised DVARS above {dvars:g}")
    if config.clean == "scrubbing":
        reasons.append(f"in segments of fewer than {SCRUB_SEGMENT_FRAMES} frames between these ({_POWER_2014})")
    if config.clean != "none" and not config.drop_non_steady:
        reasons.append("marked as non-steady")
    if not reasons:
        return []
    bridge = ", and replaced by a cubic spline through the others while filters were applied" if config.filters else ""
    return [f"frames {' or '.join(reasons)} were censored{bridge}"]


def _filtered(config: CleaningConfig) -> list[str]:
    steps = ["the linear trend was removed"] if config.detrend else []
    high, low = config.high_pass_hz, config.low_pass_hz
    if not config.filters:
        return steps
    if high is not None and low is not None:
        band = f"band-pass ({high:g} to {low:g} Hz)"
    else:
        band = f"high-pass ({high:g} Hz)" if low is None else f"low-pass ({low:g} Hz)"
    return [*steps, f"a {band} Butterworth filter of order 5 was applied forward and backward"]


def _regressed(config: CleaningConfig) -> list[str]:
    what = [f"{_PRESETS[config.clean]} (nilearn's preset {config.clean})"] if config.clean != "none" else []
    if config.confounds:
        what.append(f"the confounds columns {', '.join(config.confounds)}")
    if not what:
        return [_MEAN] if config.filters or config.detrend else []
    alike = f" after the same treatment as the signals ({_LINDQUIST_2018})" if config.filters or config.detrend else ""
    frames = ", from the frames that were not censored" if config.can_censor else ""
    return [f"{' and '.join(what)} were regressed out{alike}{frames}", _MEAN]


def _timed(config: CleaningConfig) -> list[str]:
    steps = []
    if config.can_censor and config.censored == "interpolate":
        steps.append(f"censored frames were filled by shape-preserving cubic interpolation ({_FRITSCH_1984})")
    elif config.can_censor:
        steps.append("censored frames were left out")
    if config.resample_tr is not None:
        steps.append(f"time was resampled to a repetition time of {config.resample_tr:g} s with an anti-alias filter")
    return steps
