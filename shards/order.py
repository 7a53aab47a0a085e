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
REPLACEMENTS = 10
"""Units that are drawn to take the place of a damaged one."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WINDOW = re.compile(r"(\d+(?:\.\d+)?)(s?)")

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Integers = Sequence[int] | NDArray[np.int64]
Floats = Sequence[float] | NDArray[np.float64] | NDArray[np.int64]


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
    return _drawn(frames, lengths, natural_counts(frames, lengths), seed, epoch)


def natural_counts(num_frames: Integers, window_frames: Integers) -> Int64:
    """Windows that each run gives to an unweighted epoch: max(1, T // L), none where the run is shorter."""
    frames, lengths = np.asarray(num_frames, np.int64), np.asarray(window_frames, np.int64)
    return np.where(frames >= lengths, np.maximum(frames // lengths, 1), 0)


def weighted_windows(
    num_frames: Integers, window_frames: Integers, weights: Floats, count: int, seed: int, epoch: int
) -> Windows:
    """One epoch of `count` training windows of which each run gets its share, shuffled.

    A run with share s of the weights gets floor(count * s) or one more, in such a way that over the
    epochs its mean is count * s (systematic sampling over the runs in a new order each epoch). Where in
    a run windows start is as in `training_windows`.

    Parameters
    ----------
    weights
        One a run, not negative, not all 0; runs shorter than their window get none.
    """
    frames, lengths = np.asarray(num_frames, np.int64), np.asarray(window_frames, np.int64)
    order = permutation(len(frames), seed, epoch, 3)
    share = np.where(frames >= lengths, np.asarray(weights, np.float64), 0.0)[order]
    upto = np.cumsum(share)
    upto = upto * (count / upto[-1])
    upto[-1] = count
    dither = float(hashes(1, seed, epoch, 4)[0] >> np.uint64(11)) * 2.0**-53
    counts = np.empty(len(frames), np.int64)
    counts[order] = np.diff(np.floor(np.minimum(upto, count) + dither).astype(np.int64), prepend=0)
    return _drawn(frames, lengths, counts, seed, epoch)


def shares(weights: Floats, groups: Integers, wanted: Floats | None = None) -> NDArray[np.float64]:
    """Scale the weights of runs so that groups (subjects, cohorts) get the shares that are wanted.

    Parameters
    ----------
    weights
        One a run, such as `natural_counts`; within a group their proportions stay.
    groups
        Number of each run's group, from 0.
    wanted
        One a group; None means equal. Groups whose runs weigh nothing get nothing.
    """
    own, number = np.asarray(weights, np.float64), np.asarray(groups, np.int64)
    total = np.bincount(number, own)
    target = np.ones(len(total)) if wanted is None else np.asarray(wanted, np.float64)
    factor = np.divide(target[: len(total)], total, out=np.zeros(len(total)), where=total > 0)
    return own * factor[number]


def paired(windows: Windows, num_frames: Integers, seed: int, epoch: int) -> Windows:
    """Give each window a partner from the same run, right behind it: positions 2k and 2k + 1 belong together.

    A partner shares no frame with its window where the run is long enough for two windows behind each
    other or the place of the first leaves room for it; else it starts anywhere in the run.
    """
    frames = np.asarray(num_frames, np.int64)[windows.run]
    length, start = windows.num_frames, windows.start
    draw = (hashes(len(windows), seed, epoch, 5) >> np.uint64(40)).astype(np.int64)
    before = np.maximum(start - length + 1, 0)
    behind = np.maximum(frames - length - (start + length) + 1, 0)
    apart = before + behind > 0
    pick = (draw * np.where(apart, before + behind, frames - length + 1)) >> 24
    partner = np.where(apart & (pick >= before), pick - before + start + length, pick)
    return Windows(np.repeat(windows.run, 2), np.stack([start, partner], 1).ravel(), np.repeat(length, 2))


def _drawn(frames: Int64, lengths: Int64, counts: Int64, seed: int, epoch: int) -> Windows:
    """`counts` windows of each run, each start in its own part of the possible starts, shuffled."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What an epoch's windows depend on."""

    num_frames: Int64
    """One a run."""
    window_frames: Int64
    """One a run."""
    tiled: bool = False
    """Every frame once, in order, the same in every epoch; the rest is then without meaning."""
    seed: int = 0
    weights: NDArray[np.float64] | None = None
    """One a run; None: every window once."""
    pairs: bool = False
    """Each window with a partner from its run."""

    def __post_init__(self) -> None:
        own = self.weights
        if own is None:
            return
        if own.shape != self.num_frames.shape or not np.isfinite(own).all() or (own < 0).any():
            raise UsageError(f"weights: {own.size} for {len(self.num_frames)} runs; give one finite number >= 0 a run")
        if not own[self.num_frames >= self.window_frames].any():
            raise UsageError("weights: 0 for every run that is as long as the window; give some run a weight")

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, the same in every epoch."""
        if self.tiled:
            return int((-(-self.num_frames // self.window_frames)).sum())
        return int(natural_counts(self.num_frames, self.window_frames).sum()) * self.unit

    @property
    def unit(self) -> int:
        """So many consecutive positions belong together."""
        return 2 if self.pairs and not self.tiled else 1

    def replacements(self, epoch: int, position: int, num_windows: int) -> Int64:
        """Positions of the windows that take the place of a damaged one, the first that is whole; none in a tiling.

        Of a pair, first the partner; then pairs drawn for both, so that two rows stay windows of one run.
        """
        if self.tiled:
            return np.zeros(0, np.int64)
        unit = self.unit
        drawn = hashes(REPLACEMENTS, self.seed, epoch, position // unit, 6) % np.uint64(num_windows // unit)
        first = np.concatenate([[position // unit], drawn.astype(np.int64)]) * unit
        sides = (position % unit + np.arange(unit)) % unit
        return (first[:, None] + sides).ravel()[1:]

    def windows(self, epoch: int) -> Windows:
        """The windows of an epoch, in order; equally many in every epoch."""
        frames, lengths = self.num_frames, self.window_frames
        if self.tiled:
            return tiling_windows(frames, lengths)
        if self.weights is None:
            windows = training_windows(frames, lengths, self.seed, epoch)
        else:
            count = self.num_windows // self.unit
            windows = weighted_windows(frames, lengths, self.weights, count, self.seed, epoch)
        return paired(windows, frames, self.seed, epoch) if self.pairs else windows


def num_steps(num_windows: int, global_batch: int, *, drop_last: bool) -> int:
    """Global batches in `num_windows`; the same on every rank."""
    return num_windows // global_batch if drop_last else -(-num_windows // global_batch)


def rank_positions(step: int, global_batch: int, rank: int, world_size: int, unit: int = 1) -> Int64:
    """Positions of the epoch's order that a rank takes at a step.

    Parameters
    ----------
    unit
        So many consecutive positions stay on one rank (2 for pairs). Unit k of the global batch goes to
        rank k mod world.

    Raises
    ------
    UsageError
        The global batch cannot be cut into equal parts.
    """
    if global_batch % (world_size * unit):
        raise UsageError(
            f"global batch of {global_batch} windows on {world_size} ranks in units of {unit}: must be a multiple; "
            "change --batch_size"
        )
    units = np.arange(global_batch // unit, dtype=np.int64).reshape(-1, world_size)[:, rank]
    return step * global_batch + (units[:, None] * unit + np.arange(unit)).ravel()
