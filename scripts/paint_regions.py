"""Paint real region series on their atlas: 4D files of real series in a synthetic volume.

    python scripts/paint_regions.py --series SERIES/sub-*_ts*.t* --atlas ATLAS.nii.gz --tr_s 2 --out DIR

For data that were published as region averages. Every voxel of a region holds that region's series, unchanged, so
the time courses are real and the volumes are not: no anatomy, no noise within a region, no more dimensions than
regions. Files are named `desc-paintedregions`; a result on them is one on region series, and is to be reported as such.

Series are tables of text with a header, a column a region and a row a frame; column k (after --skip_columns) is
the atlas's label k, whatever its title. Names hold `sub-LABEL`, and `run-NUMBER` or `run_NUMBER` (none: run 1).

--out receives BIDS-like folders, participants.tsv, mask.nii.gz (every voxel of a painted region) and runs.tsv, so:

    ingest-fmri --src DIR/runs.tsv --mask DIR/mask.nii.gz --participants DIR/participants.tsv --out SET

Exit codes: 0 done, 2 usage, 5 output unusable.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import EXIT_OK, BoldstreamError, OutputError, UsageError
from shards.flags import read_flags

if TYPE_CHECKING:
    import nibabel

ABOUT = "real region series painted on an atlas; the volume is synthetic: every voxel of a region holds its series"
_NAME = re.compile(r"sub-(?P<subject>[A-Za-z0-9]+)(?:.*run[-_](?P<run>\d+))?.*")


@dataclass(frozen=True, kw_only=True)
class PaintConfig:
    """Paint real region series on their atlas: real series, synthetic volume.

    Exit codes: 0 done, 2 usage, 5 output unusable.
    """

    series: tuple[Path, ...]
    """Tables of text, one a run."""
    atlas: Path
    """3-D NIfTI; label k is the series' column k."""
    out: Path
    """New folder to write."""
    tr_s: float
    """Repetition time in seconds."""
    voxel_mm: float = 6.0
    """Edge of a voxel; the atlas is sampled at voxel centres (nearest neighbour)."""
    skip_columns: int = 0
    """Leading columns that are no regions, such as a global signal."""
    drop_regions: tuple[int, ...] = ()
    """Labels to leave out, such as regions that are constant in some runs."""
    task: str = "task"
    """Task label in the file names."""

    def __post_init__(self) -> None:
        for name in ("tr_s", "voxel_mm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"--{name} {getattr(self, name)}: must be above 0")
        if self.skip_columns < 0:
            raise UsageError(f"--skip_columns {self.skip_columns}: must be at least 0")


def main() -> int:
    """Read flags and paint; returns the exit code."""
    import tyro

    try:
        parse = partial(tyro.cli, PaintConfig, description=__doc__, use_underscores=True)
        return paint(read_flags(parse, "scripts/paint_regions.py"))
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def paint(config: PaintConfig) -> int:
    """Write every run, the mask and the tables."""
    import nibabel

    if config.out.exists():
        raise OutputError(f"--out {config.out}: is already there; name a new folder")
    runs = named_runs(config.series)
    labels = sample_atlas(config.atlas, config.voxel_mm)
    labels_XYZ = np.asarray(labels.dataobj).astype(np.int64)
    labels_XYZ[np.isin(labels_XYZ, config.drop_regions)] = 0
    rows = ["subject\tbold\ttask\trun\ttr_s"]
    for (subject, run), path in runs.items():
        painted_XYZT = paint_run(read_series(path, config.skip_columns), labels_XYZ, path)
        image = nibabel.Nifti1Image(painted_XYZT, labels.affine)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((config.voxel_mm,) * 3 + (config.tr_s,))
        name = f"sub-{subject}/func/sub-{subject}_task-{config.task}_run-{run}_desc-paintedregions_bold.nii.gz"
        _make_folder((config.out / name).parent)
        nibabel.save(image, config.out / name)
        rows.append(f"{subject}\t{name}\t{config.task}\t{run}\t{config.tr_s:g}")
    nibabel.save(nibabel.Nifti1Image((labels_XYZ > 0).astype(np.uint8), labels.affine), config.out / "mask.nii.gz")
    (config.out / "runs.tsv").write_text("\n".join(rows) + "\n")
    subjects = sorted({subject for subject, _ in runs})
    (config.out / "participants.tsv").write_text("\n".join(["participant_id", *(f"sub-{s}" for s in subjects)]) + "\n")
    (config.out / "README").write_text(ABOUT + "\n")
    num_regions = len(np.unique(labels_XYZ)) - 1
    print(
        f"{len(runs)} runs of {len(subjects)} subjects, {num_regions} regions, {(labels_XYZ > 0).sum()} voxels: {ABOUT}"
    )
    return EXIT_OK


def named_runs(paths: tuple[Path, ...]) -> dict[tuple[str, str], Path]:
    """(subject, run) of each file, in order.

    Raises
    ------
    UsageError
        A name without a subject, or two files of the same run.
    """
    runs: dict[tuple[str, str], Path] = {}
    for path in sorted(paths):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise UsageError(f"--series {path}: no sub-LABEL in its name; rename it to sub-LABEL_run-NUMBER.tsv")
        key = match["subject"], f"{int(match['run'] or 1):02d}"
        if key in runs:
            raise UsageError(f"--series {path}: the same run as {runs[key]}; leave one out or rename it")
        runs[key] = path
    return runs


def read_series(path: Path, skip_columns: int) -> NDArray[np.float32]:
    """Region series of a run, (time, region) float32."""
    import pandas

    try:
        table = pandas.read_csv(path, sep=None, engine="python", dtype=np.float32)
    except (OSError, ValueError) as error:
        raise UsageError(f"--series {path}: no table of numbers ({error}); give a header and a row a frame") from None
    return table.to_numpy()[:, skip_columns:]


def sample_atlas(path: Path, voxel_mm: float) -> nibabel.Nifti1Image:
    """The atlas at the centres of larger voxels, in RAS order."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nilearn.image import resample_img

    try:
        atlas = nibabel.as_closest_canonical(nibabel.load(path))
    except (ImageFileError, OSError) as error:
        raise UsageError(f"--atlas {path}: not a readable NIfTI ({error}); give a 3-D image of labels") from None
    image: Any = resample_img(
        nibabel.Nifti1Image(np.asarray(atlas.dataobj).astype(np.int16), atlas.affine),
        target_affine=np.diag([voxel_mm] * 3),
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    return image


def paint_run(series_TR: NDArray[np.float32], labels_XYZ: NDArray[np.int64], path: Path) -> NDArray[np.float32]:
    """Every voxel of label k gets column k - 1; (x, y, z, time) float32, 0 where there is no label.

    Raises
    ------
    UsageError
        The atlas has more labels than the table has columns, or values are not finite.
    """
    num_regions = series_TR.shape[1]
    if labels_XYZ.max() > num_regions:
        raise UsageError(
            f"--series {path}: {num_regions} regions, but the atlas has labels up to {labels_XYZ.max()}; check "
            "--skip_columns, or leave labels out with --drop_regions"
        )
    if not np.isfinite(series_TR).all():
        raise UsageError(f"--series {path}: has values that are not numbers; leave the run out")
    background_T1 = np.zeros((len(series_TR), 1), np.float32)
    painted_TXYZ = np.concatenate([background_T1, series_TR], axis=1)[:, labels_XYZ]
    return np.moveaxis(painted_TXYZ, 0, -1)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; choose another --out") from None


if __name__ == "__main__":
    sys.exit(main())
