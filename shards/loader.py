"""Streaming windows into batches: threads that read and decode straight into reused tensors.

`pread` and the decoder release the GIL, so threads scale without worker processes, pickling or copies.
Shapes: B window, L frame, V voxel.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards import order
from shards.batch import Batch, empty_batch
from shards.dense import Filler, VolumeType, box_around
from shards.errors import MismatchError, UsageError
from shards.filling import LoaderStats, RowReader
from shards.format import xxh3
from shards.reader import ShardSet

__all__ = ["Batch", "LoaderStats", "Volumes", "WindowLoader"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Volumes:
    """Dense volumes that a batch is to hold as well, made by the loader's threads (on a GPU, make them there)."""

    shape: tuple[int, int, int] | None = None
    """Voxels of a volume, with the mask's bounding box in the middle; None: the bounding box."""
    dtype: VolumeType = "float16"


@dataclass(slots=True)
class _Pending:
    """A batch that is being filled."""

    epoch: int
    step: int
    batch: Batch
    rows: list[Future[int]]


class WindowLoader:
    """Windows of a shard set in the promised order, for one rank.

    Parameters
    ----------
    shard_set
        The opened shard set, or several as one (`shards.union.ShardUnion`).
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
    weights
        One a run of `runs`: an epoch then draws runs in these proportions (`order.shares` makes them for
        equal subjects or for cohorts). None: every window of every run once.
    pairs
        Rows 2k and 2k + 1 are windows of the same run, without common frames where it is long enough;
        an epoch then has twice as many windows.
    threads
        Threads that read and decode.
    look_ahead
        Batches prepared in advance; memory is `look_ahead + 2` batches.
    pin_memory
        Page-lock the tensors for asynchronous copies to a GPU.
    volumes
        Make dense volumes as well.
    intensity
        Give `level` and `spread` of the intensity channel as well.
    on_bad
        What to do with a window whose bytes are damaged: `raise`, or `skip`: log it, and take another
        window of the epoch in its place (in mode `tile` the row has run -1).
    max_skipped
        So many damaged windows are skipped; the next one raises.

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
        weights: Sequence[float] | NDArray[np.float64] | None = None,
        pairs: bool = False,
        threads: int = 2,
        look_ahead: int = 2,
        pin_memory: bool = False,
        volumes: Volumes | None = None,
        intensity: bool = False,
        on_bad: Literal["raise", "skip"] = "raise",
        max_skipped: int = 100,
    ) -> None:
        self._set = shard_set
        self._runs = np.arange(len(shard_set.runs)) if runs is None else np.asarray(runs, np.int64)
        if not len(self._runs):
            raise UsageError(f"{shard_set.location}: no runs to stream; check the split and the filters")
        entries = [shard_set.runs[number] for number in self._runs]
        self._num_frames = np.array([entry.num_frames for entry in entries], np.int64)
        lengths = order.parse_window(window, [entry.tr_s for entry in entries])
        self._recipe = order.Recipe(
            num_frames=np.array([entry.num_frames for entry in entries], np.int64),
            window_frames=lengths,
            tiled=mode == "tile",
            seed=seed,
            weights=None if weights is None else np.asarray(weights, np.float64),
            pairs=pairs,
        )
        self._batch_size, self._rank, self._world = batch_size, rank, world_size
        self.global_batch = batch_size * world_size
        self.window_frames = int(lengths.max())
        self.epoch = 0
        self.position = 0
        self.stats = LoaderStats()
        self._order: tuple[int, order.Windows] | None = None
        self.steps_per_epoch = order.num_steps(
            self._recipe.num_windows, self.global_batch, drop_last=not self._recipe.tiled
        )
        if not self.steps_per_epoch:
            raise UsageError(
                f"{len(self._runs)} runs of at most {self._recipe.num_frames.max()} frames give less than one global "
                f"batch of {self.global_batch} windows of {self.window_frames} frames; lower --batch_size or --window"
            )
        self._positions(0)  # refuses a batch that does not divide
        self._threads, self._look_ahead = threads, look_ahead
        filler = None
        self._shape: dict[str, Any] = {"intensity": intensity, "pinned": pin_memory}
        if volumes is not None:
            box = box_around(shard_set.mask, volumes.shape)
            filler = Filler(shard_set.mask, box, volumes.dtype)
            self._shape |= {"box": box.shape, "volume_type": volumes.dtype}
        self._rows = RowReader(
            shard_set,
            self._runs,
            self._recipe,
            filler,
            stats=self.stats,
            max_skipped=max_skipped if on_bad == "skip" else None,
        )
        self._ahead: deque[_Pending] = deque()

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from; windows already handed out are not repeated, those ahead not lost."""
        return self._identity | {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, on any number of ranks with the same global batch.

        Raises
        ------
        MismatchError
            Another shard set, selection of runs, seed, window or global batch: each difference is named.
        """
        own = self._identity
        differing = [key for key in own if own[key] != state.get(key)]
        if differing:
            listing = "; ".join(f"{key}: found {state.get(key)}, now {own[key]}" for key in differing)
            raise MismatchError(f"the saved data position does not fit this run: {listing}; start anew or restore them")
        self._drop_ahead()
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch; then the epoch number goes up by one.

        Raises
        ------
        ShardError
            A window cannot be read; the message names run and shard.
        """
        epoch, began = self.epoch, time.perf_counter()
        while self.epoch == epoch:
            asked = time.perf_counter()
            pending = self._next_batch()
            batch = pending.batch
            now = time.perf_counter()
            stats = self.stats
            stats.wait_s += now - asked
            stats.elapsed_s += now - began
            began = now
            self._advance(batch)
            yield batch

    def close(self) -> None:
        """Stop the threads; asking for a batch starts them anew."""
        self._drop_ahead()
        if "_pool" in self.__dict__:
            self._pool.shutdown(cancel_futures=True)
            del self._pool

    def __enter__(self) -> WindowLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="window")
        weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)
        return pool

    @cached_property
    def _slots(self) -> deque[Batch]:
        """Batches that are not being filled; the one handed out last is at the end."""
        shape = (self._batch_size, self.window_frames, self._set.num_voxels)
        dtype = self._set.manifest.dtype
        return deque(empty_batch(*shape, dtype=dtype, **self._shape) for _ in range(self._look_ahead + 2))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        own: dict[str, Any] = {
            "order_version": order.ORDER_VERSION,
            "seed": self._recipe.seed,
            "global_batch": self.global_batch,
            "window_frames": self.window_frames,
            "num_windows": self._recipe.num_windows,
            "pairs": self._recipe.pairs,
            "set_hash": self._set.manifest.set_hash,
            "runs_hash": xxh3(self._runs.astype("<i8").tobytes()),
        }
        weights = self._recipe.weights
        own["weights_hash"] = None if weights is None else xxh3(weights.astype("<f8").tobytes())
        return own

    def _next_batch(self) -> _Pending:
        """The batch at the present position, with those behind it under way."""
        epoch, step = self.epoch, self.position // self.global_batch
        if self._ahead and (self._ahead[0].epoch, self._ahead[0].step) != (epoch, step):
            self._drop_ahead()  # somebody set epoch or position
        while len(self._ahead) <= self._look_ahead:
            place = self._after(self._ahead[-1].epoch, self._ahead[-1].step) if self._ahead else (epoch, step)
            if place is None:
                break
            self._ahead.append(self._submit(*place))
        pending = self._ahead.popleft()
        try:
            self.stats.num_bytes += sum(row.result() for row in pending.rows)
        except BaseException:
            self._ahead.appendleft(pending)
            self._drop_ahead()
            raise
        self._slots.append(pending.batch)
        return pending

    def _after(self, epoch: int, step: int) -> tuple[int, int] | None:
        if step + 1 < self.steps_per_epoch:
            return epoch, step + 1
        return None if self._recipe.tiled else (epoch + 1, 0)

    def _advance(self, batch: Batch) -> None:
        self.position += self.global_batch
        if self.position >= self.steps_per_epoch * self.global_batch:
            self.epoch, self.position = self.epoch + 1, 0
        runs, frames = batch.run.tolist(), batch.num_valid.tolist()
        stored = [self._set.stored_bytes(run, n) for run, n in zip(runs, frames, strict=True) if run >= 0]
        self.stats.num_windows += len(stored)
        self.stats.num_bytes_stored += sum(stored)

    def _drop_ahead(self) -> None:
        """Take back what is under way: when this returns, no thread writes into a slot."""
        while self._ahead:
            pending = self._ahead.pop()
            for row in pending.rows:
                row.cancel()
            for row in pending.rows:
                if not row.cancelled():
                    row.exception()
            self._slots.appendleft(pending.batch)

    def _submit(self, epoch: int, step: int) -> _Pending:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._recipe.windows(epoch)
        windows = self._order[1]
        batch = self._slots.popleft()
        rows = [
            self._pool.submit(self._rows.fill, batch, row, windows, epoch, position)
            for row, position in enumerate(self._positions(step).tolist())
        ]
        return _Pending(epoch, step, batch, rows)

    def _positions(self, step: int) -> order.Int64:
        return order.rank_positions(step, self.global_batch, self._rank, self._world, self._recipe.unit)
