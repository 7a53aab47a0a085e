"""From a window of masked values to the dense volumes that convolutions need, and back.

Shapes: B window, L frame of a window, N = B*L frames, V voxel of the mask, C channel,
X Y Z the mask's bounding box padded to whole patches, P Q R patches along X Y Z, K voxels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shards.loader import Batch

MIN_STRIDE = 4
MAX_PATCHES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """Where the mask's bounding box lies, and how it is cut into patches.

    Attributes
    ----------
    origin
        First voxel of the bounding box on the grid, one index an axis.
    box
        Voxels of the bounding box along each axis.
    stride
        Voxels of a patch along each axis; small axes get smaller patches.
    patches
        Patches along each axis; the last one may reach beyond the box, where the volume is zero.
    """

    origin: tuple[int, int, int]
    box: tuple[int, int, int]
    stride: tuple[int, int, int]
    patches: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the padded dense volume along each axis."""
        px, py, pz = (p * s for p, s in zip(self.patches, self.stride, strict=True))
        return px, py, pz


def patch_stride(num_voxels: int) -> int:
    """Voxels of a patch along an axis of `num_voxels`.

    The smallest power of two, at least 4, that leaves at most 12 patches; smaller where the axis
    would not give 2 patches. So the work behind the stem hardly depends on the voxel size.
    """
    stride = MIN_STRIDE
    while num_voxels > MAX_PATCHES * stride:
        stride *= 2
    while stride > 1 and num_voxels < 2 * stride:
        stride //= 2
    return stride


def crop_of(mask_XYZ: np.ndarray, *, patched: bool = True) -> Crop:
    """Bounding box and patches of a brain mask.

    Parameters
    ----------
    mask_XYZ
        Boolean mask on the grid, at least one voxel true.
    patched
        False: every voxel is a patch of its own, so the dense volume is the bounding box.
    """
    where = np.argwhere(mask_XYZ)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = [int(n) for n in high - low]
    stride = [patch_stride(n) if patched else 1 for n in box]
    patches = [-(-n // s) for n, s in zip(box, stride, strict=True)]
    return Crop(origin=_triple(low), box=_triple(box), stride=_triple(stride), patches=_triple(patches))


def dense_input(
    q_BLV: Tensor,
    gain_BV: Tensor,
    shift_BV: Tensor | None,
    level_BV: Tensor | None,
    spread_BV: Tensor | None,
    lookup_P: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Stored windows to model input in one pass: gather, dequantise, second channel; P is a place of the dense crop.

    Written for `torch.compile`, which makes one kernel of it: it reads each stored value and each voxel's affine once
    and writes the input in the model's own precision. Arithmetic is float32 whatever `dtype` is.

    Parameters
    ----------
    q_BLV
        Stored values, any dtype of the format.
    gain_BV, shift_BV
        residual = q * gain + shift; no shift where None.
    level_BV, spread_BV
        intensity = level + spread * residual, the second channel; one channel where None.
    lookup_P
        Voxel of each place, V where there is none.
    dtype
        Of the result.

    Returns
    -------
    Tensor
        `[B, L, C, P]`, 0 outside the mask.
    """
    inside_P = lookup_P < q_BLV.shape[-1]
    voxel_P = lookup_P.clamp(max=q_BLV.shape[-1] - 1)
    residual_BLP = q_BLV[..., voxel_P].float() * gain_BV[:, None, voxel_P]
    if shift_BV is not None:
        residual_BLP = residual_BLP + shift_BV[:, None, voxel_P]
    channels = [residual_BLP]
    if level_BV is not None and spread_BV is not None:
        channels.append(level_BV[:, None, voxel_P] + spread_BV[:, None, voxel_P] * residual_BLP)
    return torch.where(inside_P, torch.stack(channels, 2), 0).to(dtype)


class Volume(nn.Module):
    """Lookup tables between the V voxels of a mask and the dense crop around it.

    Parameters
    ----------
    mask_XYZ
        Boolean brain mask on the grid. It is kept as a buffer, so that stored weights carry the
        geometry they belong to.
    patched
        As of `crop_of`.
    """

    mask: Tensor
    lookup: Tensor
    places: Tensor

    def __init__(self, mask_XYZ: np.ndarray, *, patched: bool = True) -> None:
        super().__init__()
        mask_XYZ = np.ascontiguousarray(mask_XYZ, dtype=bool)
        self.crop = crop_of(mask_XYZ, patched=patched)
        self.num_voxels = int(mask_XYZ.sum())
        self.register_buffer("mask", torch.from_numpy(mask_XYZ.astype(np.uint8)))
        lookup, places = _tables(mask_XYZ, self.crop)
        self.register_buffer("lookup", torch.from_numpy(lookup), persistent=False)
        self.register_buffer("places", torch.from_numpy(places), persistent=False)

    def residual(self, q_BLV: Tensor, gain_BV: Tensor, shift_BV: Tensor | None = None) -> Tensor:
        """Residuals of a window batch, float32 `[B, L, V]`, in units of each voxel's SD over its run.

        Parameters
        ----------
        q_BLV
            Stored values, any dtype of the format.
        gain_BV, shift_BV
            residual = q * gain + shift.
        """
        residual_BLV = q_BLV.float() * gain_BV[:, None]
        return residual_BLV if shift_BV is None else residual_BLV + shift_BV[:, None]

    def input(self, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dense input `[B, L, C, X, Y, Z]` of a batch on this module's device: one channel, two if it has intensity."""
        dense_BLCP = dense_input(batch.q, batch.gain, batch.shift, batch.level, batch.spread, self.lookup, dtype)
        return dense_BLCP.unflatten(-1, self.crop.shape)

    def dense(self, residual_NV: Tensor) -> Tensor:
        """Dense volumes `[N, 1, X, Y, Z]` of masked values `[N, V]`; zero outside the mask."""
        background_N1 = residual_NV.new_zeros(residual_NV.shape[0], 1)
        padded = torch.cat([residual_NV, background_N1], dim=1)
        return padded.index_select(1, self.lookup).view(-1, 1, *self.crop.shape)

    def masked(self, patches_NKPQR: Tensor) -> Tensor:
        """Masked values `[N, V]` of decoded patches `[N, K, P, Q, R]`, K running over x, y, z of a patch."""
        return patches_NKPQR.flatten(1).index_select(1, self.places)


def _tables(mask_XYZ: np.ndarray, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """(voxel of each dense place, V = background), (place of each voxel in `[K, P, Q, R]`)."""
    position_V3 = np.argwhere(mask_XYZ) - np.asarray(crop.origin)
    num_voxels = len(position_V3)
    lookup = np.full(crop.shape, num_voxels, dtype=np.int64)
    lookup[tuple(position_V3.T)] = np.arange(num_voxels)
    patch_V3, inside_V3 = np.divmod(position_V3, np.asarray(crop.stride))
    axes = (*crop.stride, *crop.patches)
    places = np.ravel_multi_index((*inside_V3.T, *patch_V3.T), axes)
    return lookup.ravel(), places.astype(np.int64)


def _triple(values: np.ndarray | list[int]) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    return x, y, z
