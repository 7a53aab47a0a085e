"""Parcels: which voxels belong together, the mean series of one run's parcels, and its connectivity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.scoring.metrics import Floats
from shards.errors import UsageError

if TYPE_CHECKING:
    from shards.reader import ShardSet

WINDOW_BYTES = 64 << 20
VOXELS_PER_PARCEL = 10


@dataclass(frozen=True, kw_only=True)
class Parcels:
    """A parcellation of the mask's voxels.

    Attributes
    ----------
    labels : numpy.ndarray, shape (V,), int64
        Parcel of each voxel, 0 .. P-1; -1 where the voxel is in none.
    num_parcels : int
        P.
    description : str
        Where it comes from, for people.
    """

    labels: npt.NDArray[np.int64]
    num_parcels: int
    description: str


def atlas_parcels(shard_set: ShardSet, atlas: Path) -> Parcels:
    """Parcels of an atlas, resampled (nearest neighbour) to the shard set's grid.

    Parameters
    ----------
    shard_set : shards.reader.ShardSet
        Open shard set.
    atlas : Path
        3-D NIfTI of integer labels, 0 is background, in the same space as the runs.

    Raises
    ------
    UsageError
        The file is missing, is no 3-D integer label image, or puts fewer than two labels into the mask.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nilearn.image import resample_img

    if not atlas.is_file():
        raise UsageError(f"--atlas {atlas}: no such file; give a 3-D NIfTI of integer labels")
    try:
        image = nib.load(atlas)
        values = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError) as error:
        raise UsageError(f"--atlas {atlas}: not a readable NIfTI ({error}); give a 3-D label image") from error
    if values.ndim != 3 or not np.array_equal(values, np.rint(values)):
        raise UsageError(
            f"--atlas {atlas}: a 3-D image of integer labels is needed, found shape {values.shape} of "
            f"{values.dtype}; turn a probabilistic atlas into labels first"
        )
    grid = shard_set.manifest.grid
    resampled = resample_img(
        nib.Nifti1Image(values.astype(np.int32), image.affine),
        target_affine=np.asarray(grid.affine),
        target_shape=grid.shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    in_mask = np.rint(np.asarray(resampled.dataobj)[shard_set.mask]).astype(np.int64)
    found = np.unique(in_mask[in_mask != 0])
    if found.size < 2:
        raise UsageError(
            f"--atlas {atlas}: {found.size} of its labels lie in the mask, at least 2 are needed; "
            "is it in the same space as the runs?"
        )
    labels = np.where(in_mask != 0, np.searchsorted(found, in_mask), -1).astype(np.int64)
    return Parcels(labels=labels, num_parcels=int(found.size), description=f"{found.size} parcels of {atlas.name}")


def geometric_parcels(shard_set: ShardSet, num_parcels: int = 100) -> Parcels:
    """Compact parcels of about equal size, by k-means on the positions of the mask's voxels.

    They follow no anatomy; they are the same for the same mask. Small masks get fewer, so that a parcel has
    about ten voxels.
    """
    from sklearn.cluster import KMeans

    positions = np.argwhere(shard_set.mask).astype(np.float64)
    voxel_mm = np.linalg.norm(np.asarray(shard_set.manifest.grid.affine)[:3, :3], axis=0)
    positions *= voxel_mm
    wanted = max(2, min(num_parcels, len(positions) // VOXELS_PER_PARCEL))
    if len(positions) < wanted:
        raise UsageError(
            f"{shard_set.location}: the mask has {len(positions)} voxels, connectivity needs at least {wanted}"
        )
    stride = max(1, len(positions) // 20_000)
    clusters = KMeans(wanted, n_init=1, random_state=0).fit(positions[::stride])
    found, labels = np.unique(clusters.predict(positions), return_inverse=True)
    return Parcels(
        labels=labels.astype(np.int64),
        num_parcels=int(found.size),
        description=f"{found.size} geometric parcels (k-means on voxel positions, no anatomy)",
    )


def averaging(parcels: Parcels) -> Any:
    """The sparse matrix, shape (P, V), float64, whose product with a frame is the mean of each parcel."""
    from scipy.sparse import csr_array

    inside = np.flatnonzero(parcels.labels >= 0)
    sizes = np.bincount(parcels.labels[inside], minlength=parcels.num_parcels)
    return csr_array(
        (1.0 / sizes[parcels.labels[inside]], (parcels.labels[inside], inside)),
        shape=(parcels.num_parcels, parcels.labels.size),
    )


def parcel_series(shard_set: ShardSet, run: int, parcels: Parcels) -> Floats:
    """Mean residual of each parcel in each frame of one run, shape (T, P); `RegionSeries` keeps those of all runs."""
    mean_PV = averaging(parcels)
    num_frames = shard_set.runs[run].num_frames
    length = max(1, WINDOW_BYTES // (4 * shard_set.num_voxels))
    series = np.empty((num_frames, parcels.num_parcels))
    for start in range(0, num_frames, length):
        stop = min(start + length, num_frames)
        series[start:stop] = (mean_PV @ shard_set.residual(run, start, stop - start).T).T
    return series


def connectivity(series: npt.ArrayLike) -> Floats:
    """Fisher z of the Pearson correlations of parcel series.

    Parameters
    ----------
    series : array_like, shape (T, P)
        Parcel means over time.

    Returns
    -------
    numpy.ndarray, shape (P * (P - 1) / 2,)
        Upper triangle, row by row. 0 where a parcel is constant; correlations are held within 1 - 1e-6.
    """
    values = np.asarray(series, dtype=np.float64)
    centred = values - values.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    usable = length > 1e-6 * np.sqrt(len(values)) * max(1e-30, float(np.abs(values).max(initial=0.0)))
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=usable)
    rows, columns = np.triu_indices(values.shape[1], k=1)
    correlation = (unit.T @ unit)[rows, columns]
    return np.asarray(np.arctanh(np.clip(correlation, -1 + 1e-6, 1 - 1e-6)), dtype=np.float64)
