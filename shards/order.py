"""The order of windows: pure functions of (seed, epoch, run lengths, window lengths).

No state, no input or output, and no random generator of a library: the mixing function below is
part of the ORDER promise, so the same arguments give the same windows on every machine and for
ever. A global batch is a set of consecutive positions of the epoch's order, the same set whatever
the number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import UsageError

ORDER_VERSION = 1

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WINDOW = re.compile(r"(\d+(?:\.\d+)?)(s?)")

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Integers = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows in order: equally long arrays of run number, first frame and number of frames."""

    run: Int64
    start: Int64
    num_frames: Int64

    def __len__(self) -> int:
        return len(self.run)


def mix(values: UInt64) -> UInt64:
    """Scramble 64-bit integers, one to one (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = values + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashes(count: int, *key: int) -> UInt64:
    """`count` pseudo-random 64-bit integers that depend on the key's integers and their order."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = mix(state ^ np.uint64(part % 2**64))
    return mix(state + np.arange(count, dtype=np.uint64) * _GOLDEN)


def permutation(count: int, *key: int) -> Int64:
    """A pseudo-random order of `count` items."""
    return np.argsort(hashes(count, *key), kind="stable").astype(np.int64)


def parse_window(window: int | str, tr_s: Sequence[float]) -> Int64:
    """Window length in frames for each run.

    Parameters
    ----------
    window
        Frames (`20` or `"20"`), or seconds (`"16s"`): the nearest number of frames at each run's TR.
    tr_s
        Repetition time of each run in seconds.

    Raises
    ------
    UsageError
        Not a length, or shorter than one frame.
    """
    match = _WINDOW.fullmatch(str(window).strip())
    if match is None or (not match[2] and "." in match[1]):
        raise UsageError(f"--window {window!r}: give frames such as 20, or seconds such as 16s")
    if match[2]:
        frames = np.rint(float(match[1]) / np.asarray(tr_s, float)).astype(np.int64)
    else:
        frames = np.full(len(tr_s), int(match[1]), np.int64)
    if len(frames) and frames.min() < 1:
        raise UsageError(f"--window {window!r}: shorter than one frame; the longest TR is {max(tr_s)} s")
    return frames


def training_windows(num_frames: Integers, window_frames: Integers, seed: int, epoch: int) -> Windows:
    """One epoch of training windows, shuffled.

    A run of T frames gives max(1, T // L) windows of L frames, the same number in every epoch.
    Window i starts at a random frame of the i-th of as many equal parts of the possible starts
    0 .. T - L, so every frame can be a start, a run is covered evenly, and the draw is new each
    epoch. Runs shorter than their window give none.
    """
    frames, lengths = np.asarray(num_frames, np.int64), np.asarray(window_frames, np.int64)
    counts = np.where(frames >= lengths, np.maximum(frames // lengths, 1), 0)
    run = np.repeat(np.arange(len(frames)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    part = np.arange(len(run)) - first
    draw = (hashes(len(run), seed, epoch, 1) >> np.uint64(40)).astype(np.int64)  # 24 bits
    starts = frames[run] - lengths[run] + 1
    start = ((part * 2**24 + draw) * starts // counts[run]) >> 24
    order = permutation(len(run), seed, epoch, 2)
    return Windows(run[order], start[order], lengths[run][order])


def tiling_windows(num_frames: Integers, window_frames: Integers) -> Windows:
    """Windows that hold every frame of every run exactly once, in order; the last of a run may be shorter."""
    frames, lengths = np.asarray(num_frames, np.int64), np.asarray(window_frames, np.int64)
    counts = -(-frames // lengths)
    run = np.repeat(np.arange(len(frames)), counts)
    part = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = part * lengths[run]
    return Windows(run, start, np.minimum(lengths[run], frames[run] - start))


def num_steps(num_windows: int, global_batch: int, *, drop_last: bool) -> int:
    """Global batches in `num_windows`; the same on every rank."""
    return num_windows // global_batch if drop_last else -(-num_windows // global_batch)


def rank_positions(step: int, global_batch: int, rank: int, world_size: int) -> Int64:
    """Positions of the epoch's order that a rank takes at a step: k of the global batch with k mod world = rank.

    Raises
    ------
    UsageError
        The global batch cannot be cut into equal parts.
    """
    if global_batch % world_size:
        raise UsageError(
            f"global batch of {global_batch} windows on {world_size} ranks: must be a multiple; change --batch_size"
        )
    return np.arange(step * global_batch + rank, (step + 1) * global_batch, world_size, dtype=np.int64)
