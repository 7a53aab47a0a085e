"""Streaming windows into batches: threads that read and decode straight into reused tensors.

`pread` and zstd release the GIL, so threads scale without worker processes, pickling or copies.
Shapes: B window, L frame, V voxel.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from shards import order
from shards.errors import MismatchError, UsageError
from shards.reader import ShardSet
from shards.values import STEPS_PER_SD


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Windows of one step on one rank. The tensors are reused: valid until the next batch is taken."""

    q: torch.Tensor
    """[B, L, V] as stored; frames past `num_valid` are 0."""
    gain: torch.Tensor
    """[B, V] float32: the residual is `gain * q + shift`."""
    shift: torch.Tensor | None
    """[B, V] float32, or None where it is 0 (every dtype but float32)."""
    run: torch.Tensor
    """[B] int64, number in `ShardSet.runs`; -1 marks a row that only fills up the batch."""
    start: torch.Tensor
    """[B] int64, first frame."""
    num_valid: torch.Tensor
    """[B] int64, frames that are real."""
    tr_s: torch.Tensor
    """[B] float32, repetition time in seconds."""


@dataclass(kw_only=True, slots=True)
class LoaderStats:
    """What a loader did so far."""

    num_windows: int = 0
    num_bytes: int = 0
    """Decoded bytes of frames."""
    wait_s: float = 0.0
    """Time its consumer waited for batches."""


class WindowLoader:
    """Windows of a shard set in the promised order, for one rank.

    Parameters
    ----------
    shard_set
        The opened shard set.
    runs
        Numbers of the runs to use; None means all.
    window
        Frames (`20`) or seconds (`"16s"`).
    batch_size
        Windows per rank and step.
    mode
        `train`: shuffled windows at random starts, new each epoch, incomplete last batch left out.
        `tile`: every frame of every run exactly once, in order; rows that fill up have run -1.
    seed, rank, world_size
        The order depends on the seed alone; ranks take disjoint parts of each global batch.
    threads
        Threads that read and decode.
    look_ahead
        Batches prepared in advance; memory is `look_ahead + 1` batches.
    pin_memory
        Page-lock the tensors for asynchronous copies to a GPU.

    Raises
    ------
    UsageError
        No run is as long as the window (train), or there is less than one global batch.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        runs: Sequence[int] | None = None,
        window: int | str = 20,
        batch_size: int = 8,
        mode: Literal["train", "tile"] = "train",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        look_ahead: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._set = shard_set
        self._runs = np.arange(len(shard_set.runs)) if runs is None else np.asarray(runs, np.int64)
        if not len(self._runs):
            raise UsageError(f"{shard_set.location}: no runs to stream; check the split and the filters")
        entries = [shard_set.runs[number] for number in self._runs]
        self._num_frames = np.array([entry.num_frames for entry in entries], np.int64)
        self._window = order.parse_window(window, [entry.tr_s for entry in entries])
        self._batch_size, self._mode, self._seed = batch_size, mode, seed
        self._rank, self._world = rank, world_size
        self._threads, self._look_ahead, self._pin = threads, look_ahead, pin_memory
        self.global_batch = batch_size * world_size
        self.window_frames = int(self._window.max())
        self.epoch = 0
        self.position = 0
        self.stats = LoaderStats()
        self._slots = [self._new_slot() for _ in range(look_ahead + 1)]
        self._num_windows = len(self._windows(0))  # the same in every epoch
        self.steps_per_epoch = order.num_steps(self._num_windows, self.global_batch, drop_last=mode == "train")
        if not self.steps_per_epoch:
            raise UsageError(
                f"{len(self._runs)} runs of at most {self._num_frames.max()} frames give less than one global batch of "
                f"{self.global_batch} windows of {self.window_frames} frames; lower --batch_size or --window"
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from; windows already handed out are not repeated, those ahead not lost."""
        return {
            "order_version": order.ORDER_VERSION,
            "epoch": self.epoch,
            "position": self.position,
            "seed": self._seed,
            "global_batch": self.global_batch,
            "window_frames": self.window_frames,
            "num_windows": self._num_windows,
            "set_hash": self._set.manifest.set_hash,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of ranks with the same global batch.

        Raises
        ------
        MismatchError
            Another shard set, selection of runs, seed, window or global batch: each difference is named.
        """
        own = self.state_dict()
        moving = ("epoch", "position")
        differing = [key for key in own if key not in moving and own[key] != state.get(key)]
        if differing:
            listing = "; ".join(f"{key}: found {state.get(key)}, now {own[key]}" for key in differing)
            raise MismatchError(f"the saved data position does not fit this run: {listing}; start anew or restore them")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch; then the epoch number goes up by one."""
        windows = self._windows(self.epoch)
        first = self.position // self.global_batch
        steps = range(first, self.steps_per_epoch)
        ahead: deque[tuple[int, list[Future[int]]]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="window") as pool:
            try:
                for step in steps:
                    for future_step in range(step + len(ahead), min(step + self._look_ahead + 1, steps.stop)):
                        ahead.append(self._submit(pool, windows, future_step))
                    slot, rows = ahead.popleft()
                    began = time.perf_counter()
                    self.stats.num_bytes += sum(row.result() for row in rows)
                    self.stats.wait_s += time.perf_counter() - began
                    batch = self._slots[slot]
                    self.stats.num_windows += int((batch.run >= 0).sum())
                    self.position = (step + 1) * self.global_batch
                    if step + 1 == self.steps_per_epoch:
                        self.epoch, self.position = self.epoch + 1, 0
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, windows: order.Windows, step: int) -> tuple[int, list[Future[int]]]:
        slot = step % len(self._slots)
        positions = order.rank_positions(step, self.global_batch, self._rank, self._world)
        return slot, [pool.submit(self._fill, slot, row, windows, k) for row, k in enumerate(positions.tolist())]

    def _fill(self, slot: int, row: int, windows: order.Windows, position: int) -> int:
        """Read one window into its row of a slot; returns the decoded bytes."""
        batch = self._slots[slot]
        if position >= len(windows):
            batch.run[row], batch.num_valid[row] = -1, 0
            batch.start[row], batch.tr_s[row] = 0, 1.0
            batch.q[row].zero_()
            batch.gain[row].zero_()
            return 0
        number = int(self._runs[windows.run[position]])
        start, frames = int(windows.start[position]), int(windows.num_frames[position])
        q = batch.q[row].numpy()
        self._set.read_window(number, start, frames, out=q[:frames])
        q[frames:] = 0
        self._fill_affine(batch, row, number)
        batch.run[row], batch.start[row], batch.num_valid[row] = number, start, frames
        batch.tr_s[row] = self._set.runs[number].tr_s
        return frames * self._set.num_voxels * self._set.dtype.itemsize

    def _fill_affine(self, batch: Batch, row: int, number: int) -> None:
        steps = STEPS_PER_SD.get(self._set.manifest.dtype)
        if steps is not None and self._set.runs[number].num_wide_voxels == 0:
            batch.gain[row].fill_(1 / steps)  # constant voxels hold q = 0, so any gain is right
            return
        gain, shift = self._set.residual_affine(number)
        batch.gain[row].numpy()[:] = gain
        if batch.shift is not None and shift is not None:
            batch.shift[row].numpy()[:] = shift

    def _windows(self, epoch: int) -> order.Windows:
        if self._mode == "tile":
            return order.tiling_windows(self._num_frames, self._window)
        return order.training_windows(self._num_frames, self._window, self._seed, epoch)

    def _new_slot(self) -> Batch:
        shape = (self._batch_size, self.window_frames, self._set.num_voxels)
        flat = (self._batch_size, self._set.num_voxels)
        has_shift = self._set.manifest.dtype == "float32"

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=self._pin)

        return Batch(
            q=zeros(shape, getattr(torch, self._set.manifest.dtype)),
            gain=zeros(flat, torch.float32),
            shift=zeros(flat, torch.float32) if has_shift else None,
            run=torch.zeros(self._batch_size, dtype=torch.int64),
            start=torch.zeros(self._batch_size, dtype=torch.int64),
            num_valid=torch.zeros(self._batch_size, dtype=torch.int64),
            tr_s=torch.ones(self._batch_size),
        )
