"""Confounds tables as fMRIPrep names them, with contents that the tests choose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ingest.record import RunRecord

TR_S = 2.0
PREFIX = "sub-01_task-rest"
BOLD = f"{PREFIX}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def confounds_frame(num_frames: int = 120, outliers: dict[int, float] | None = None, seed: int = 0) -> pd.DataFrame:
    """Columns of fMRIPrep with random values; `outliers` are frames and their framewise displacement in mm."""
    rng = np.random.default_rng(seed)
    table: dict[str, np.ndarray] = {}
    for name in (*MOTION, "csf", "white_matter", "global_signal"):
        values = np.cumsum(rng.standard_normal(num_frames))
        derivative = np.concatenate([[np.nan], np.diff(values)])
        table |= {
            name: values,
            f"{name}_derivative1": derivative,
            f"{name}_power2": values**2,
            f"{name}_derivative1_power2": derivative**2,
        }
    fd_mm = np.concatenate([[np.nan], np.full(num_frames - 1, 0.1)])
    for frame, value in (outliers or {}).items():
        fd_mm[frame] = value
    table |= {"framewise_displacement": fd_mm, "std_dvars": np.where(np.isnan(fd_mm), np.nan, 1.0)}
    phase = (np.arange(num_frames) + 0.5) * np.pi / num_frames
    table |= {f"cosine{k:02d}": np.cos((k + 1) * phase) for k in range(3)}
    table |= {f"a_comp_cor_{k:02d}": rng.standard_normal(num_frames) for k in range(5)}
    return pd.DataFrame(table)


def save_confounds(
    frame: pd.DataFrame, folder: Path, prefix: str = PREFIX, bold: str = BOLD, compcor_json: bool = True
) -> RunRecord:
    """Write the table and its JSON; the record names an image that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix}_desc-confounds_timeseries.tsv"
    frame.to_csv(path, sep="\t", na_rep="n/a", index=False)
    if compcor_json:
        names = [name for name in frame if name.startswith("a_comp_cor")]
        about = {name: {"Mask": "combined", "Method": "aCompCor", "Retained": True} for name in names}
        path.with_suffix(".json").write_text(json.dumps(about))
    return RunRecord(subject="01", task="rest", bold=folder / bold, confounds=path)


def random_signal(num_frames: int = 120, num_voxels: int = 30, seed: int = 1) -> np.ndarray:
    """(time, voxel) float32: means of 100 to 400, slow drift, noise."""
    rng = np.random.default_rng(seed)
    drift = np.linspace(-1, 1, num_frames)[:, None] * rng.normal(0, 20, num_voxels)
    noise = 10 * rng.standard_normal((num_frames, num_voxels))
    return (rng.uniform(100, 400, num_voxels) + drift + noise).astype(np.float32)
