"""`mask.nii.gz`: written deterministically, read in memory that the grid bounds."""

from __future__ import annotations

import gzip
import math
import zlib

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from shards.errors import CorruptShardError
from shards.format import Grid, mask_identity

_HEADER_BYTES = 348
_UINT8 = 2  # NIfTI's code
_MAX_EXTENSIONS = 1024 * 1024
_GZIP = 16 + zlib.MAX_WBITS


def mask_to_nifti(mask: NDArray[np.bool_], grid: Grid) -> bytes:
    """The bytes of `mask.nii.gz`: uint8, deterministic (no name, no time)."""
    image = nibabel.Nifti1Image(mask.astype(np.uint8), np.asarray(grid.affine))
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def read_mask(data: bytes, grid: Grid, num_voxels: int, mask_hash: str, where: str) -> NDArray[np.bool_]:
    """Read `mask.nii.gz`.

    Parameters
    ----------
    data
        The file. Memory is bounded by what the grid implies, whatever it decompresses to.
    grid, num_voxels, mask_hash
        As the manifest states them.
    where
        The file, for messages.

    Returns
    -------
    ndarray of bool, (x, y, z)

    Raises
    ------
    CorruptShardError
        Not a gzipped NIfTI-1 of uint8 zeros and ones on the grid, or not the mask of the manifest.
    """
    try:
        mask = _voxels(_gunzip(data, _HEADER_BYTES + 4 + _MAX_EXTENSIONS + math.prod(grid.shape)), grid)
    except (ValueError, zlib.error, HeaderDataError, WrapStructError) as error:
        raise CorruptShardError(f"{where}: {error}; restore the file") from None
    if int(np.count_nonzero(mask)) != num_voxels:
        raise CorruptShardError(
            f"{where}: {np.count_nonzero(mask)} voxels, the manifest says {num_voxels}; restore the file"
        )
    if mask_identity(mask, grid) != mask_hash:
        raise CorruptShardError(f"{where}: not the mask that the shards were made with; restore it")
    return mask


def _voxels(raw: bytes, grid: Grid) -> NDArray[np.bool_]:
    header = nibabel.Nifti1Header(raw[:_HEADER_BYTES], check=False)  # nibabel's own check talks on the terminal
    size = math.prod(grid.shape)
    if header.get_data_shape() != grid.shape or header["datatype"].item() != _UINT8:
        raise ValueError(
            f"type {header['datatype']} of shape {header.get_data_shape()}, expected uint8 of {grid.shape}"
        )
    offset = float(header["vox_offset"])
    placed = offset.is_integer() and _HEADER_BYTES + 4 <= offset <= len(raw) - size
    if header["magic"].item() != b"n+1" or not placed:
        raise ValueError(f"{len(raw)} bytes with voxels at {offset}, expected {size} voxels behind a header")
    if not np.allclose(header.get_best_affine(), grid.affine, rtol=1e-4, atol=1e-3):
        raise ValueError("its affine is not that of the manifest's grid")
    voxels = np.frombuffer(raw, np.uint8, size, int(offset))
    if voxels.max() > 1:
        raise ValueError(f"holds the value {voxels.max()}, allowed are 0 and 1")
    return np.ascontiguousarray(voxels.reshape(grid.shape, order="F") != 0)


def _gunzip(data: bytes, limit: int) -> bytes:
    """Decompress one gzip member of at most `limit` bytes."""
    stream = zlib.decompressobj(_GZIP)
    raw = stream.decompress(data, limit + 1)
    if len(raw) > limit:
        raise ValueError(f"decompresses to more than the {limit} bytes that the manifest's grid needs")
    if not stream.eof or stream.unused_data:
        raise ValueError("its gzip data are cut, or followed by something")
    return raw
