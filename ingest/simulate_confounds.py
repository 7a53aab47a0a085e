"""Head motion of simulated runs, and their confounds table with fMRIPrep's column names.

Axes: T frame; the six rigid-body parameters are three translations in mm and three rotations in rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.simulate_cohort import Stream, Subject, random_stream
from ingest.simulate_config import SimulateConfig

Array = npt.NDArray[np.float64]

MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
HEAD_RADIUS_MM = 50.0
"""Arm that turns rotations into mm, as in Power et al. 2012 (doi:10.1016/j.neuroimage.2011.10.018)."""
HIGH_PASS_S = 128.0
DRIFT_STEP_MM = 0.01
JERK_MM = 0.6
"""Mean size of a jerk along each axis."""
JERK_SPREAD = 0.5
"""SD over subjects of the logarithm of the rate of jerks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMotion:
    """Rigid-body parameters (T, 6), and the part of the translation (T, 3), in mm, that is due to jerks."""

    parameters_T6: Array
    jerk_mm_T3: Array


def draw_motion(config: SimulateConfig, subject: Subject) -> HeadMotion:
    """Draw a slow random walk and, in about `config.motion` of the frames, a jerk that is over in one frame."""
    rng = random_stream(config, Stream.MOTION, subject.index)
    walk = np.cumsum(rng.standard_normal((config.frames, 6)), axis=0) * DRIFT_STEP_MM
    rate = config.motion * np.exp(JERK_SPREAD * rng.standard_normal() - JERK_SPREAD**2 / 2)
    is_jerk = rng.random(config.frames) < rate
    size = rng.exponential(JERK_MM, (config.frames, 6)) * rng.choice((-1.0, 1.0), (config.frames, 6))
    jerk = np.where(is_jerk[:, None], size, 0.0)
    parameters = walk + jerk
    parameters[:, 3:] /= HEAD_RADIUS_MM
    return HeadMotion(parameters_T6=parameters, jerk_mm_T3=jerk[:, :3])


def framewise_displacement(parameters_T6: Array) -> Array:
    """Return FD in mm (T,), the first frame nan: sum of absolute differences, rotations on a 50 mm sphere."""
    steps = np.abs(np.diff(parameters_T6, axis=0))
    fd_mm = steps[:, :3].sum(axis=1) + HEAD_RADIUS_MM * steps[:, 3:].sum(axis=1)
    return np.concatenate([[np.nan], fd_mm])


def cosine_drifts(num_frames: int, tr_s: float) -> dict[str, Array]:
    """Return the discrete cosine columns that high-pass at 128 s; none for short runs."""
    order = int(2 * num_frames * tr_s / HIGH_PASS_S)
    phase = (np.arange(num_frames) + 0.5) * np.pi / num_frames
    return {f"cosine{k - 1:02d}": np.sqrt(2 / num_frames) * np.cos(k * phase) for k in range(1, order + 1)}


def confound_columns(motion: HeadMotion, tissue: dict[str, Array], tr_s: float) -> dict[str, Array]:
    """Assemble the table: motion and tissue signals with their expansions, FD, DVARS and cosines.

    Parameters
    ----------
    motion : HeadMotion
        From `draw_motion`.
    tissue : dict of float arrays (T,)
        `csf`, `white_matter`, `global_signal` and `std_dvars`, measured on the images.
    tr_s : float
        Repetition time.

    Returns
    -------
    dict of float arrays (T,)
        By column name, in the order of the file; nan is `n/a`.
    """
    columns: dict[str, Array] = {}
    for name in ("csf", "white_matter", "global_signal"):
        columns |= _expansions(name, tissue[name])
    columns["std_dvars"] = tissue["std_dvars"]
    columns["framewise_displacement"] = framewise_displacement(motion.parameters_T6)
    columns |= cosine_drifts(len(motion.parameters_T6), tr_s)
    for k, name in enumerate(MOTION_COLUMNS):
        columns |= _expansions(name, motion.parameters_T6[:, k])
    return columns


def _expansions(name: str, values_T: Array) -> dict[str, Array]:
    derivative = np.concatenate([[np.nan], np.diff(values_T)])
    return {
        name: values_T,
        f"{name}_derivative1": derivative,
        f"{name}_power2": values_T**2,
        f"{name}_derivative1_power2": derivative**2,
    }


def confounds_tsv(columns: dict[str, Array]) -> str:
    """Return the table as text, `n/a` for nan."""
    lines = ["\t".join(columns)]
    for row in zip(*columns.values(), strict=True):
        lines.append("\t".join("n/a" if np.isnan(value) else f"{value:.8g}" for value in row))
    return "\n".join(lines) + "\n"
