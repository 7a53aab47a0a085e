"""Fused kernels for int8 and int16: statistics, quantisation and its error, in two passes over a run.

`shards.values` is the definition; these agree with it bit for bit, for any number of frames. A block
of voxels is walked through all its frames while it lies in the cache. No fast-math: the order of
every sum is the oracle's.

Legend: T frame, V voxel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from ingest.scratch import Scratch
from shards.values import Encoded, decode, encode, integer_origin, origin_of, signal, step

BLOCK_BYTES = 512 * 1024
"""Of one block of voxels by all frames: half of a usual second-level cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedWithError:
    """A run as it is stored, and how far that is from its source."""

    encoded: Encoded
    error_max: float
    """Largest |stored - source|, in units of the source signal."""
    error_rms: float


def encode_run(
    raw_TV: NDArray[Any], dtype: str, *, slope: float = 1.0, inter: float = 0.0, scratch: Scratch | None = None
) -> EncodedWithError:
    """Quantise one run and measure the error.

    Parameters
    ----------
    raw_TV
        (time, voxel), C order, in the source's own units, native byte order.
    dtype
        `int8`, `int16`, `float16` or `float32`.
    slope, inter
        The signal is `slope * raw + inter`.
    scratch
        Where the stored values of int8 and int16 are put; they are lost when it is used again.

    Notes
    -----
    Voxels that hold NaN or infinity come out with a mean that is not finite; the caller checks.
    """
    if dtype in ("int8", "int16"):
        return _encode_integers(raw_TV, dtype, slope, inter, scratch or Scratch())
    encoded = encode(raw_TV, dtype, slope=slope, inter=inter)
    largest, squares = 0.0, 0.0
    for q, raw in zip(encoded.q, raw_TV, strict=True):
        difference = decode(q, encoded.mean, encoded.scale) - (raw.astype(np.float64) * slope + inter)
        largest = max(largest, float(np.abs(difference).max()))
        squares += float((difference**2).sum())
    return EncodedWithError(encoded=encoded, error_max=largest, error_rms=math.sqrt(squares / raw_TV.size))


def moments(
    raw_TV: NDArray[Any], slope: float, inter: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean, SD and largest deviation of every voxel, three (voxel,) float32: `shards.values.moments`, fused."""
    num_voxels = raw_TV.shape[1]
    mean, std, deviation = (np.empty(num_voxels, np.float32) for _ in range(3))
    _moments(raw_TV, slope, inter, _block(raw_TV), mean, std, deviation)
    return mean, std, deviation


def _encode_integers(
    raw_TV: NDArray[Any], dtype: str, slope: float, inter: float, scratch: Scratch
) -> EncodedWithError:
    mean, std, deviation = moments(raw_TV, slope, inter)
    q = scratch.array("q", raw_TV.shape, dtype)
    error_max, error_squares = np.zeros(len(mean)), np.zeros(len(mean))
    finite = bool(np.isfinite(mean).all())
    origin = integer_origin(raw_TV.dtype, dtype, mean, std, deviation, slope, inter) if finite else None
    if origin is not None:
        _subtract(raw_TV, origin_of(mean, slope, inter), q)
        scale = np.where(std > 0, np.float32(slope), np.float32(0)).astype(np.float32)
        encoded = Encoded(
            q=q, mean=mean, std=std, scale=scale, lossless=True, grid_slope=float(slope), grid_inter=float(inter)
        )
        return _with_lossless_error(raw_TV, encoded)
    scale = step(std, deviation, dtype)
    inverse = np.zeros_like(scale)
    with np.errstate(over="ignore"):  # of a scale that is denormal: the caller refuses it
        np.divide(np.float32(1), scale, out=inverse, where=scale > 0)
    _quantise(raw_TV, slope, inter, _block(raw_TV), mean, scale, inverse, q, error_max, error_squares)
    encoded = Encoded(q=q, mean=mean, std=std, scale=scale)
    rms = math.sqrt(float(error_squares.sum()) / raw_TV.size)
    return EncodedWithError(encoded=encoded, error_max=float(error_max.max()), error_rms=rms)


def _with_lossless_error(raw_TV: NDArray[Any], encoded: Encoded) -> EncodedWithError:
    """Error of a run whose integers were kept: what float32 cannot hold of `slope * n + inter`."""
    slope, inter = encoded.grid_slope, encoded.grid_inter
    if slope == 1.0 and inter == 0.0 and raw_TV.dtype.itemsize <= 2:
        return EncodedWithError(encoded=encoded, error_max=0.0, error_rms=0.0)
    largest, squares = 0.0, 0.0
    for raw in raw_TV:
        difference = signal(raw, slope, inter) - (raw.astype(np.float64) * slope + inter)
        largest = max(largest, float(np.abs(difference).max()))
        squares += float((difference**2).sum())
    return EncodedWithError(encoded=encoded, error_max=largest, error_rms=math.sqrt(squares / raw_TV.size))


def _block(raw_TV: NDArray[Any]) -> int:
    """Voxels in a block: a multiple of 64, so that rows of it fill whole cache lines."""
    num_frames = max(1, raw_TV.shape[0])
    return int(max(64, BLOCK_BYTES // (num_frames * raw_TV.itemsize) // 64 * 64))


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile without the GIL; cached on disk unless neither the package's nor the user's folder is writable."""
    try:
        kernel: Callable[..., None] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        kernel = numba.njit(nogil=True)(function)
    return kernel


# Rows are sliced and per-voxel values copied into scratch before the inner loops: LLVM vectorises them
# only when it can see that no two arrays overlap (4 x).


@_compiled
def _moments(raw, slope, inter, block, mean, std, deviation):  # type: ignore[no-untyped-def]
    num_frames, num_voxels = raw.shape
    total, squares = np.empty(block, np.float64), np.empty(block, np.float64)
    centre, furthest = np.empty(block, np.float32), np.empty(block, np.float32)
    for first in range(0, num_voxels, block):
        size = min(block, num_voxels - first)
        total[:] = 0.0
        for t in range(num_frames):
            row = raw[t, first : first + size]
            for v in range(size):
                total[v] += np.float32(np.float64(row[v]) * slope + inter)
        for v in range(size):
            total[v] /= num_frames
            centre[v] = np.float32(total[v])
            squares[v] = 0.0
            furthest[v] = np.float32(0.0)
        for t in range(num_frames):
            row = raw[t, first : first + size]
            for v in range(size):
                x = np.float32(np.float64(row[v]) * slope + inter)
                distance = x - total[v]
                squares[v] += distance * distance
                away = abs(np.float32(x - centre[v]))
                furthest[v] = away if away > furthest[v] else furthest[v]
        for v in range(size):
            mean[first + v] = centre[v]
            deviation[first + v] = furthest[v]
            std[first + v] = np.float32(math.sqrt(squares[v] / num_frames)) if furthest[v] > 0 else np.float32(0.0)


@_compiled
def _quantise(raw, slope, inter, block, mean, scale, inverse, q, error_max, error_squares):  # type: ignore[no-untyped-def]
    num_frames, num_voxels = raw.shape
    centre, step, steps = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    worst, squares = np.empty(block, np.float64), np.empty(block, np.float64)
    for first in range(0, num_voxels, block):
        size = min(block, num_voxels - first)
        for v in range(size):
            centre[v], step[v], steps[v] = mean[first + v], scale[first + v], inverse[first + v]
            worst[v], squares[v] = 0.0, 0.0
        for t in range(num_frames):
            row, levels = raw[t, first : first + size], q[t, first : first + size]
            for v in range(size):
                source = np.float64(row[v]) * slope + inter
                level = np.rint(np.float32(np.float32(np.float32(source) - centre[v]) * steps[v]))
                levels[v] = np.int32(level)
                stored = np.float32(centre[v] + np.float32(step[v] * level))
                error = abs(np.float64(stored) - source)
                worst[v] = error if error > worst[v] else worst[v]
                squares[v] += error * error
        for v in range(size):
            error_max[first + v], error_squares[first + v] = worst[v], squares[v]


@_compiled
def _subtract(raw, origin, q):  # type: ignore[no-untyped-def]
    num_frames, num_voxels = raw.shape
    for t in range(num_frames):
        row, levels = raw[t], q[t]
        for v in range(num_voxels):
            levels[v] = np.int64(row[v]) - origin[v]
