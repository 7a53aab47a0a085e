"""NIfTI files and fMRIPrep-like subjects that the tests write themselves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (5, 6, 4)
AFFINE = np.array([[-3.0, 0, 0, 6], [0, 3, 0, -8], [0, 0, 3.5, -5], [0, 0, 0, 1]])


def bold_image(seed: int, num_frames: int = 20, dtype: str = "float32", tr_s: float = 2.0) -> nibabel.Nifti1Image:
    """A brain-like block of varying voxels in a frame of zeros, LAS orientation."""
    rng = np.random.default_rng(seed)
    data = np.zeros((*SHAPE, num_frames))
    data[1:, 1:, 1:] = 1000 + 20 * rng.standard_normal((4, 5, 3, num_frames))
    image = nibabel.Nifti1Image(data.astype(dtype), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = tr_s
    return image


def save(image: nibabel.Nifti1Image, path: Path) -> Path:
    """Write an image, gzipped if the name says so, with the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = image.to_bytes()
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.name.endswith(".gz") else data)
    return path


def write_subject(func: Path, subject: str, num_frames: int) -> None:
    run = f"sub-{subject}_task-rest"
    space = f"{run}_space-MNI152NLin2009cAsym"
    save(bold_image(int(subject), num_frames), func / f"{space}_desc-preproc_bold.nii.gz")
    (func / f"{space}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": 1.5}))
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:, 1:, 1:] = 1
    save(nibabel.Nifti1Image(mask, AFFINE), func / f"{space}_desc-brain_mask.nii.gz")
    fd = ["n/a"] + [f"{0.1 + 0.01 * k:.3f}" for k in range(num_frames - 1)]
    table = "\n".join(f"{value}\t0.5" for value in fd)
    (func / f"{run}_desc-confounds_timeseries.tsv").write_text(f"framewise_displacement\tcsf\n{table}\n")
