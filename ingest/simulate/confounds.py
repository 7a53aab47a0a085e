"""Head motion of simulated runs, and their confounds table with fMRIPrep's column names.

Axes: T frame; the six rigid-body parameters are three translations in mm and three rotations in rad.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ingest.simulate.cohort import Stream, Subject, random_stream
from ingest.simulate.config import SimulateConfig

Array = npt.NDArray[np.float64]

MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
HEAD_RADIUS_MM = 50.0
"""Arm that turns rotations into mm, as in Power et al. 2012 (doi:10.1016/j.neuroimage.2011.10.018)."""
HIGH_PASS_S = 128.0
DRIFT_STEP_MM = 0.01
JERK_MM = 0.6
"""Mean size of a jerk along each axis."""
OUTLIER_FD_MM = 0.5
OUTLIER_DVARS = 1.5
"""Above these, fMRIPrep marks a frame as motion_outlier."""
RETAINED_VARIANCE = 0.5
"""CompCor's components are retained until they explain this part of the variance, as in fMRIPrep."""
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


def cosine_drifts(config: SimulateConfig) -> dict[str, Array]:
    """Return the discrete cosine columns that high-pass at 128 s; none for short runs, 0 in non-steady frames."""
    num_steady = config.frames - config.non_steady
    order = int(2 * num_steady * config.tr_s / HIGH_PASS_S)
    phase = (np.arange(num_steady) + 0.5) * np.pi / num_steady
    start = np.zeros(config.non_steady)
    return {
        f"cosine{k - 1:02d}": np.concatenate([start, np.sqrt(2 / num_steady) * np.cos(k * phase)])
        for k in range(1, order + 1)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """A principal component of tissue voxels (T,), with its singular value and part of the variance."""

    series_T: Array
    singular_value: float
    variance_explained: float


def tissue_components(tissue_TV: Array, drifts: dict[str, Array], num_non_steady: int) -> list[Component]:
    """Return aCompCor's components (Behzadi 2007), as many as explain half of the variance, the largest first.

    As fMRIPrep has them: steady frames only, cosines taken out, voxels scaled to unit variance, 0 in other frames.
    """
    steady_TV = tissue_TV[num_non_steady:]
    basis = np.stack([np.ones(len(tissue_TV)), *drifts.values()], axis=1)[num_non_steady:]
    residual_TV = steady_TV - basis @ np.linalg.lstsq(basis, steady_TV, rcond=None)[0]
    sd_V = residual_TV.std(axis=0)
    series, singular, _ = np.linalg.svd(residual_TV / np.where(sd_V > 0, sd_V, 1), full_matrices=False)
    explained = singular**2 / (singular**2).sum()
    num_retained = int(np.searchsorted(np.cumsum(explained), RETAINED_VARIANCE)) + 1
    components = []
    for k in range(num_retained):
        sign = np.sign(series[np.abs(series[:, k]).argmax(), k])
        series_T = np.concatenate([np.zeros(num_non_steady), sign * series[:, k]])
        components.append(
            Component(series_T=series_T, singular_value=float(singular[k]), variance_explained=float(explained[k]))
        )
    return components


def confound_columns(
    config: SimulateConfig, motion: HeadMotion, signals: dict[str, Array], tissue_TV: Array
) -> tuple[dict[str, Array], dict[str, Component]]:
    """Assemble the table, with what nilearn's strategies ask for.

    Parameters
    ----------
    config : SimulateConfig
        For TR and non-steady frames.
    motion : HeadMotion
        From `draw_motion`.
    signals : dict of float arrays (T,)
        `csf`, `white_matter`, `global_signal` and `std_dvars`, measured on the images.
    tissue_TV : float array (T, V)
        Voxels of white matter and CSF, for CompCor.

    Returns
    -------
    columns : dict of float arrays (T,)
        By column name, in the order of the file; nan is `n/a`.
    components : dict of Component
        Those of the columns that are CompCor's.
    """
    columns: dict[str, Array] = {}
    for name in ("csf", "white_matter", "global_signal"):
        columns |= _expansions(name, signals[name])
    fd_mm = framewise_displacement(motion.parameters_T6)
    columns |= {"std_dvars": signals["std_dvars"], "framewise_displacement": fd_mm}
    drifts = cosine_drifts(config)
    found = tissue_components(tissue_TV, drifts, config.non_steady)
    components = {f"a_comp_cor_{k:02d}": component for k, component in enumerate(found)}
    columns |= {name: component.series_T for name, component in components.items()} | drifts
    columns |= _one_hot("non_steady_state_outlier", np.arange(config.frames) < config.non_steady)
    for k, name in enumerate(MOTION_COLUMNS):
        columns |= _expansions(name, motion.parameters_T6[:, k])
    columns |= _one_hot("motion_outlier", (fd_mm > OUTLIER_FD_MM) | (signals["std_dvars"] > OUTLIER_DVARS))
    return columns, components


def _one_hot(name: str, marked_T: npt.NDArray[np.bool_]) -> dict[str, Array]:
    """A column for each marked frame."""
    return {f"{name}{k:02d}": 1.0 * (np.arange(len(marked_T)) == t) for k, t in enumerate(np.flatnonzero(marked_T))}


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


def confounds_json(components: dict[str, Component]) -> str:
    """Return the table's side-car, with fMRIPrep's keys."""
    about: dict[str, dict[str, Any]] = {}
    cumulative = 0.0
    for name, component in components.items():
        cumulative += component.variance_explained
        about[name] = {
            "CumulativeVarianceExplained": round(cumulative, 10),
            "Mask": "combined",
            "Method": "aCompCor",
            "Retained": True,
            "SingularValue": round(component.singular_value, 10),
            "VarianceExplained": round(component.variance_explained, 10),
        }
    about |= {name: {"Method": "Mean"} for name in ("csf", "global_signal", "white_matter")}
    return json.dumps(about, indent=2) + "\n"
