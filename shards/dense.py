"""From masked values to dense volumes on the CPU, in one compiled pass without the GIL.

Legend: L frame, V voxel, X Y Z a box on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import UsageError
from shards.machine_code import LANES, compiled, float_bits, half_bits, scaled_block

VolumeType = Literal["float16", "bfloat16", "float32"]
_KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A box of voxels on the grid; where it reaches beyond the grid, volumes are 0."""

    origin: tuple[int, int, int]
    """Grid index of its first voxel; may be negative."""
    shape: tuple[int, int, int]


def box_around(mask_XYZ: NDArray[np.bool_], shape: tuple[int, int, int] | None = None) -> Box:
    """The bounding box of a mask, or a box of a given shape with the bounding box in its middle.

    Raises
    ------
    UsageError
        The mask does not fit into `shape`.
    """
    where = np.argwhere(mask_XYZ)
    low, high = where.min(0), where.max(0) + 1
    size = high - low if shape is None else np.asarray(shape)
    if (size < high - low).any():
        raise UsageError(
            f"volumes of {' x '.join(map(str, size))} voxels: the mask needs {' x '.join(map(str, high - low))}"
        )
    x, y, z = (int(v) for v in low - (size - (high - low)) // 2)
    a, b, c = (int(v) for v in size)
    return Box(origin=(x, y, z), shape=(a, b, c))


class Filler:
    """Writes windows into dense volumes; the background is not touched, so a buffer of zeros keeps its zeros.

    Parameters
    ----------
    mask_XYZ
        The mask on the grid.
    box
        Where the volumes lie; it must hold the whole mask.
    dtype
        Of the volumes.
    """

    def __init__(self, mask_XYZ: NDArray[np.bool_], box: Box, dtype: VolumeType) -> None:
        position_V3 = np.argwhere(mask_XYZ) - np.asarray(box.origin)
        place_V = np.ravel_multi_index(tuple(position_V3.T), box.shape)
        begins = np.flatnonzero(np.diff(place_V, prepend=-2) != 1)
        self.volume = int(np.prod(box.shape))
        self._kind = _KINDS[dtype]
        self._segments = np.stack([begins, place_V[begins], np.diff(begins, append=len(place_V))], 1).astype(np.int64)

    def fill(
        self,
        q_LV: NDArray,
        gain_V: NDArray[np.float32],
        shift_V: NDArray[np.float32] | None,
        volumes: NDArray,
    ) -> None:
        """Write residuals gain * q + shift, computed in float32 and rounded to nearest even.

        Parameters
        ----------
        volumes
            (frame, x * y * z), C order: float32, or uint16 that takes the bits of float16 or bfloat16.
        """
        if q_LV.dtype == np.float16:
            q_LV = q_LV.astype(np.float32)
        if shift_V is None and self._kind and q_LV.dtype.kind == "i":
            _fill_blocks(q_LV, gain_V, self._segments, volumes, self._kind)
            return
        shift_V = np.zeros_like(gain_V) if shift_V is None else shift_V
        kernel = _fill_bits if self._kind else _fill_float32
        kernel(q_LV, gain_V, shift_V, self._segments, volumes, self._kind)


_half8, _brain8 = scaled_block(8, "float16"), scaled_block(8, "bfloat16")
_half16, _brain16 = scaled_block(16, "float16"), scaled_block(16, "bfloat16")


@compiled
def _fill_blocks(q_LV, gain_V, segments, volumes, kind):  # type: ignore[no-untyped-def]
    """Blocks of a segment, the last of which overlaps the one before it; short segments one by one."""
    size, gain = q_LV.itemsize, gain_V.ctypes.data
    for frame in range(len(q_LV)):
        source, target = q_LV[frame].ctypes.data, volumes[frame].ctypes.data
        for k in range(len(segments)):
            voxel, place, length = segments[k, 0], segments[k, 1], segments[k, 2]
            if length < LANES:
                for i in range(length):
                    volumes[frame, place + i] = _bits(np.float32(q_LV[frame, voxel + i]) * gain_V[voxel + i], kind)
                continue
            for block in range(0, length, LANES):
                i = min(block, length - LANES)
                q, g, out = source + size * (voxel + i), gain + 4 * (voxel + i), target + 2 * (place + i)
                if size == 1:
                    if kind == 1:
                        _half8(q, g, out)
                    else:
                        _brain8(q, g, out)
                elif kind == 1:
                    _half16(q, g, out)
                else:
                    _brain16(q, g, out)


@compiled
def _fill_bits(q_LV, gain_V, shift_V, segments, volumes, kind):  # type: ignore[no-untyped-def]
    for frame in range(len(q_LV)):
        for k in range(len(segments)):
            voxel, place, length = segments[k]
            q, out = q_LV[frame, voxel : voxel + length], volumes[frame, place : place + length]
            gain, shift = gain_V[voxel : voxel + length], shift_V[voxel : voxel + length]
            for i in range(length):
                out[i] = _bits(np.float32(q[i]) * gain[i] + shift[i], kind)


@compiled
def _fill_float32(q_LV, gain_V, shift_V, segments, volumes, kind):  # type: ignore[no-untyped-def]
    for frame in range(len(q_LV)):
        for k in range(len(segments)):
            voxel, place, length = segments[k]
            q, out = q_LV[frame, voxel : voxel + length], volumes[frame, place : place + length]
            gain, shift = gain_V[voxel : voxel + length], shift_V[voxel : voxel + length]
            for i in range(length):
                out[i] = np.float32(q[i]) * gain[i] + shift[i]


@compiled
def _bits(value, kind):  # type: ignore[no-untyped-def]
    if kind == 1:
        return half_bits(value)
    return _brain_bits(value)


@compiled
def _brain_bits(value):  # type: ignore[no-untyped-def]
    """The bits of a finite float32 rounded to bfloat16, ties to even."""
    bits = float_bits(value)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
