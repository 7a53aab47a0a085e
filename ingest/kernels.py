"""Fused kernels for int8 and int16: statistics, quantisation and its error, in one pass over a run.

`shards.values` is the definition; these agree with it bit for bit, for any number of frames. A block
of voxels is walked through all its frames while it lies in the cache. No fast-math: the order of
every sum is the oracle's.

Legend: T frame, V voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.scratch import Scratch
from shards.machine_code import compiled
from shards.values import LIMIT, STEPS_PER_SD, Encoded, decode, encode, integer_origin, signal

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


def _encode_integers(
    raw_TV: NDArray[Any], dtype: str, slope: float, inter: float, scratch: Scratch
) -> EncodedWithError:
    mean, std, deviation, scale = (np.empty(raw_TV.shape[1], np.float32) for _ in range(4))
    error_max, error_squares = np.empty(len(mean)), np.empty(len(mean))
    q = scratch.array("q", raw_TV.shape, dtype)
    steps, limit = np.float32(STEPS_PER_SD[dtype]), np.float32(LIMIT[dtype])
    scaling = (None, None) if (slope, inter) == (1.0, 0.0) else (slope, inter)
    found = mean, std, deviation, scale, q, error_max, error_squares
    _moments_and_levels(raw_TV, *scaling, _block(raw_TV), steps, limit, *found)
    finite = bool(np.isfinite(mean).all())
    origin = integer_origin(raw_TV.dtype, dtype, mean, std, deviation, slope, inter) if finite else None
    if origin is None:
        rms = math.sqrt(float(error_squares.sum()) / raw_TV.size)
        encoded = Encoded(q=q, mean=mean, std=std, scale=scale)
        return EncodedWithError(encoded=encoded, error_max=float(error_max.max()), error_rms=rms)
    _subtract(raw_TV, origin, q)
    scale = np.where(std > 0, np.float32(slope), np.float32(0)).astype(np.float32)
    encoded = Encoded(
        q=q, mean=mean, std=std, scale=scale, lossless=True, grid_slope=float(slope), grid_inter=float(inter)
    )
    return _with_lossless_error(raw_TV, encoded)


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


# Rows are sliced and per-voxel values copied into scratch before the inner loops: LLVM vectorises them
# only when it can see that no two arrays overlap (4 x). `slope` None means that the values are the signal.


@compiled
def _source(value, slope, inter):  # type: ignore[no-untyped-def]
    """The signal in float64."""
    if slope is None:
        return np.float64(value)
    return np.float64(value) * slope + inter


@compiled
def _block_moments(raw, first, size, slope, inter, total, squares, centre, furthest, std):  # type: ignore[no-untyped-def]
    """Mean, largest deviation and SD of the voxels of a block, into `centre`, `furthest` and `std`."""
    num_frames = len(raw)
    total[:] = 0.0
    for t in range(num_frames):
        row = raw[t, first : first + size]
        for v in range(size):
            total[v] += np.float32(_source(row[v], slope, inter))
    for v in range(size):
        total[v] /= num_frames
        centre[v] = np.float32(total[v])
        squares[v] = 0.0
        furthest[v] = np.float32(0.0)
    for t in range(num_frames):
        row = raw[t, first : first + size]
        for v in range(size):
            x = np.float32(_source(row[v], slope, inter))
            distance = x - total[v]
            squares[v] += distance * distance
            away = abs(np.float32(x - centre[v]))
            furthest[v] = away if away > furthest[v] else furthest[v]
    for v in range(size):
        std[v] = np.float32(math.sqrt(squares[v] / num_frames)) if furthest[v] > 0 else np.float32(0.0)


@compiled
def _block_levels(raw, first, size, slope, inter, centre, step, inverse, q, worst, squares):  # type: ignore[no-untyped-def]
    """Quantise a block; its largest errors and their sums of squares into `worst` and `squares`."""
    worst[:], squares[:] = 0.0, 0.0
    for t in range(len(raw)):
        row, levels = raw[t, first : first + size], q[t, first : first + size]
        for v in range(size):
            source = _source(row[v], slope, inter)
            level = np.rint(np.float32(np.float32(np.float32(source) - centre[v]) * inverse[v]))
            levels[v] = np.int32(level)
            stored = np.float32(centre[v] + np.float32(step[v] * level))
            error = abs(np.float64(stored) - source)
            worst[v] = error if error > worst[v] else worst[v]
            squares[v] += error * error


@compiled
def _moments_and_levels(  # type: ignore[no-untyped-def]
    raw, slope, inter, block, steps, limit, mean, std, deviation, scale, q, error_max, error_squares
):
    """Statistics, step and quantisation of one block after another: a block is fetched from memory once."""
    total, squares = np.empty(block, np.float64), np.empty(block, np.float64)
    centre, furthest, spread = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    step, inverse = np.empty(block, np.float32), np.empty(block, np.float32)
    for first in range(0, raw.shape[1], block):
        size = min(block, raw.shape[1] - first)
        last = first + size
        _block_moments(raw, first, size, slope, inter, total, squares, centre, furthest, spread)
        for v in range(size):
            usual, widest = spread[v] / steps, furthest[v] / limit
            step[v] = np.float32(0) if spread[v] == 0 else usual if usual > widest else widest
            inverse[v] = np.float32(1) / step[v] if step[v] > 0 else np.float32(0)
        mean[first:last], std[first:last] = centre[:size], spread[:size]
        deviation[first:last], scale[first:last] = furthest[:size], step[:size]
        _block_levels(raw, first, size, slope, inter, centre, step, inverse, q, total, squares)
        error_max[first:last], error_squares[first:last] = total[:size], squares[:size]


@compiled
def _subtract(raw, origin, q):  # type: ignore[no-untyped-def]
    num_frames, num_voxels = raw.shape
    for t in range(num_frames):
        row, levels = raw[t], q[t]
        for v in range(num_voxels):
            levels[v] = np.int64(row[v]) - origin[v]
