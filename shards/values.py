"""The values of a shard set: how a run's signal becomes stored numbers and back.

This numpy code is the definition (FORMAT.md, "Values"); the fused kernels of `ingest` must agree
with it bit for bit. Arrays are `(time, voxel)`; the signal is `slope * raw + inter` in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS_PER_SD = {"int8": 16, "int16": 1024}
LIMIT = {"int8": 127, "int16": 32767}

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One run as it is stored."""

    q: NDArray
    """(time, voxel), the stored dtype."""
    mean: Float32
    """(voxel,), temporal mean of the signal."""
    std: Float32
    """(voxel,), temporal SD (ddof 0)."""
    scale: Float32
    """(voxel,), signal per unit of q; 0 where the voxel is constant."""
    lossless: bool = False
    grid_slope: float = math.nan
    grid_inter: float = math.nan

    @property
    def num_wide_voxels(self) -> int:
        """Varying voxels whose scale differs from std/16 (int8) or std/1024 (int16)."""
        steps = STEPS_PER_SD.get(str(self.q.dtype))
        if steps is None:
            return 0
        return int(((self.scale != self.std / np.float32(steps)) & (self.std > 0)).sum())


def signal(raw: NDArray, slope: float = 1.0, inter: float = 0.0) -> Float32:
    """The signal of raw stored values: `slope * raw + inter`, computed in float64, as float32."""
    if raw.dtype == np.float32 and slope == 1.0 and inter == 0.0:
        return raw
    return (raw.astype(np.float64) * slope + inter).astype(np.float32)


def moments(raw: NDArray, slope: float = 1.0, inter: float = 0.0) -> tuple[Float32, Float32, Float32]:
    """Mean, SD and largest deviation from the mean of every voxel.

    Sums run over time in order, in float64; the SD uses the float64 mean, the deviation the
    float32 one. Returns three (voxel,) float32 arrays.
    """
    num_frames, num_voxels = raw.shape
    total = np.zeros(num_voxels)
    for row in raw:
        total += signal(row, slope, inter)
    mean64 = total / num_frames
    mean = mean64.astype(np.float32)
    squares = np.zeros(num_voxels)
    deviation = np.zeros(num_voxels, np.float32)
    for row in raw:
        x = signal(row, slope, inter)
        squares += (x - mean64) ** 2
        np.maximum(deviation, np.abs(x - mean), out=deviation)
    std = np.sqrt(squares / num_frames).astype(np.float32)
    std[deviation == 0] = 0
    return mean, std, deviation


def encode(raw: NDArray, dtype: str, *, slope: float = 1.0, inter: float = 0.0) -> Encoded:
    """Quantise a run.

    Parameters
    ----------
    raw
        (time, voxel), finite; any real dtype, in the source's own units.
    dtype
        `int8` or `int16` (per-voxel steps, never clipped), `float16` (z-score) or `float32` (the signal itself).
    slope, inter
        `scl_slope` and `scl_inter` of the source.
    """
    mean, std, deviation = moments(raw, slope, inter)
    if dtype == "float32":
        return Encoded(q=signal(raw, slope, inter), mean=mean, std=std, scale=np.ones_like(mean))
    if dtype == "float16":
        z = np.stack([_times(signal(row, slope, inter) - mean, std) for row in raw])
        return Encoded(q=z.astype(np.float16), mean=mean, std=std, scale=std)
    origin = integer_origin(raw.dtype, dtype, mean, std, deviation, slope, inter)
    if origin is not None:
        q = (raw.astype(np.int64) - origin).astype(dtype)
        scale = np.where(std > 0, np.float32(slope), np.float32(0)).astype(np.float32)
        return Encoded(
            q=q, mean=mean, std=std, scale=scale, lossless=True, grid_slope=float(slope), grid_inter=float(inter)
        )
    scale = step(std, deviation, dtype)
    q = np.stack([np.rint(_times(signal(row, slope, inter) - mean, scale)).astype(dtype) for row in raw])
    return Encoded(q=q, mean=mean, std=std, scale=scale)


def step(std: Float32, deviation: Float32, dtype: str) -> Float32:
    """Signal per unit of q: SD/16 (int8) or SD/1024 (int16), wider where a value would be clipped."""
    scale: Float32 = np.maximum(std / np.float32(STEPS_PER_SD[dtype]), deviation / np.float32(LIMIT[dtype]))
    scale[std == 0] = 0
    return scale


def integer_origin(
    raw_dtype: np.dtype, dtype: str, mean: Float32, std: Float32, deviation: Float32, slope: float, inter: float
) -> NDArray[np.int64] | None:
    """The integer that q = 0 stands for, per voxel, if the source's own integers are to be kept exactly.

    They are when the source is of integer type, every deviation fits the stored dtype, and the
    source's step is no finer than ours would be (so that exact is not larger).
    """
    varying = std > 0
    if raw_dtype.kind not in "iu" or slope <= 0 or not varying.any():
        return None
    fits = (deviation[varying].max() / slope) + 1 <= LIMIT[dtype]
    coarse = slope >= float(np.median(std[varying])) / STEPS_PER_SD[dtype]
    return origin_of(mean, slope, inter) if fits and coarse else None


def origin_of(mean: Float32, slope: float, inter: float) -> NDArray[np.int64]:
    """Nearest source integer to the mean (half up), in float64 arithmetic."""
    return np.floor((mean.astype(np.float64) - inter) / slope + 0.5).astype(np.int64)


def decode(
    q: NDArray,
    mean: Float32,
    scale: Float32,
    *,
    lossless: bool = False,
    grid_slope: float = math.nan,
    grid_inter: float = math.nan,
) -> Float32:
    """The signal of stored values: `mean + scale * q`, or the source's exact values where they were kept."""
    if q.dtype == np.float32:
        return q
    if lossless:
        return ((q + origin_of(mean, grid_slope, grid_inter)) * grid_slope + grid_inter).astype(np.float32)
    return mean + scale * q.astype(np.float32)


def residual_affine(mean: Float32, std: Float32, scale: Float32, dtype: str) -> tuple[Float32, Float32 | None]:
    """Gain and shift with which `gain * q + shift` is the residual (x - mean) / SD; 0 for constant voxels."""
    if dtype == "float32":
        gain = _ratio(np.ones_like(std), std)
        return gain, -mean * gain
    return _ratio(scale, std), None


def _times(x: Float32, divisor: Float32) -> Float32:
    """x * (1 / divisor) in float32, 0 where the divisor is 0."""
    return x * _ratio(np.ones_like(divisor), divisor)


def _ratio(x: Float32, divisor: Float32) -> Float32:
    """x / divisor in float32, 0 where the divisor is 0."""
    return np.divide(x, divisor, out=np.zeros_like(divisor), where=divisor > 0)
