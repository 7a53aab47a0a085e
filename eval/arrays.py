"""Named arrays and maps as the bytes of files: npz without pickles, and NIfTI on the grid of a shard set."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.errors import CorruptShardError

if TYPE_CHECKING:
    from shards.format import Grid


def packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """An uncompressed npz; object arrays are refused."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpacked(path: Path, remove: str = "its folder") -> dict[str, npt.NDArray[Any]]:
    """All arrays of an npz.

    Parameters
    ----------
    path : Path
        The file.
    remove : str
        What to remove where it is damaged: 'it' or 'its folder'.

    Raises
    ------
    CorruptShardError
        The file is gone or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptShardError(f"{path}: cannot be read ({error}); remove {remove} and run again") from error


def map_image(values_V: npt.ArrayLike, mask: npt.NDArray[np.bool_], affine: npt.ArrayLike) -> Any:
    """Values of the mask's voxels as a `nibabel.Nifti1Image` of float32 in mm, 0 outside the mask."""
    import nibabel

    dense = np.zeros(mask.shape, dtype=np.float32)
    dense[mask] = values_V
    image = nibabel.Nifti1Image(dense, np.asarray(affine))
    image.header.set_xyzt_units("mm")
    return image


def to_nifti(values_V: npt.ArrayLike, mask: npt.NDArray[np.bool_], grid: Grid) -> bytes:
    """`map_image` on the grid of a shard set as a `.nii.gz`; the same bytes every time."""
    return gzip.compress(map_image(values_V, mask, grid.affine).to_bytes(), compresslevel=6, mtime=0)
