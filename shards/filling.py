"""One row of a batch: read, decoded, with what its values mean, and what happens when its bytes are damaged."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import numpy as np
import torch

from shards import order
from shards.batch import Batch
from shards.dense import Filler
from shards.errors import CorruptShardError
from shards.reader import ShardSet

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class LoaderStats:
    """What a loader did so far."""

    num_windows: int = 0
    num_bytes: int = 0
    """Decoded bytes of frames."""
    num_bytes_stored: int = 0
    """Bytes of the shards that they came from."""
    num_skipped: int = 0
    """Damaged windows that another one took the place of."""
    wait_s: float = 0.0
    """Time its consumer waited for batches."""
    elapsed_s: float = 0.0
    """Time from asking for the first batch of an epoch to having the last, without the time between epochs."""

    @property
    def windows_per_s(self) -> float:
        """Windows handed out a second."""
        return self.num_windows / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes of the shards read a second."""
        return self.num_bytes_stored / self.elapsed_s if self.elapsed_s else 0.0


class RowReader:
    """Fills rows of batches; safe to use from several threads, each with a row of its own.

    Parameters
    ----------
    shard_set, runs
        Where windows are read; `runs[k]` is the number in the set of the order's run k.
    recipe
        Says which windows may take the place of a damaged one.
    filler
        Writes dense volumes, if they are wanted.
    stats
        Where damaged windows are counted.
    max_skipped
        Damaged windows that are skipped before one raises; None: the first raises.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        runs: order.Int64,
        recipe: order.Recipe,
        filler: Filler | None,
        *,
        stats: LoaderStats,
        max_skipped: int | None,
    ) -> None:
        self._set, self._runs, self._recipe, self._filler = shard_set, runs, recipe, filler
        self._stats, self._max_skipped = stats, max_skipped
        self._lock = threading.Lock()

    def fill(self, batch: Batch, row: int, windows: order.Windows, epoch: int, position: int) -> int:
        """Read one window into its row of a batch; returns the decoded bytes.

        Raises
        ------
        CorruptShardError
            The window is damaged, and so are more of them than are skipped.
        StorageError
            Storage fails; such a window is never skipped.
        """
        batch.wait_for_copies()
        if position >= len(windows):
            return _leave_empty(batch, row)
        try:
            return self._read(batch, row, windows, position)
        except CorruptShardError as error:
            self._skip(error)
        others = self._recipe.replacements(epoch, position, len(windows))
        for other in others.tolist():
            try:
                return self._read(batch, row, windows, other)
            except CorruptShardError as error:
                self._skip(error)
        if not len(others):
            return _leave_empty(batch, row)
        raise CorruptShardError(
            f"{self._set.location}: {len(others)} windows one after the other are damaged; inspect-fmri verify names "
            "the shards"
        )

    def _skip(self, error: CorruptShardError) -> None:
        if self._max_skipped is None:
            raise error
        with self._lock:
            self._stats.num_skipped += 1
            count = self._stats.num_skipped
        if count > self._max_skipped:
            raise CorruptShardError(
                f"more than {self._max_skipped} damaged windows; inspect-fmri verify lists them all; last: {error}"
            )
        logger.warning("skipped a damaged window (%d of at most %d): %s", count, self._max_skipped, error)

    def _read(self, batch: Batch, row: int, windows: order.Windows, position: int) -> int:
        number = int(self._runs[windows.run[position]])
        start, frames = int(windows.start[position]), int(windows.num_frames[position])
        entry = self._set.runs[number]
        try:
            q = batch.q[row].numpy()
            self._set.read_window(number, start, frames, out=q[:frames])
            q[frames:] = 0
            self._fill_affine(batch, row, number)
        except Exception as error:
            error.add_note(f"while reading frames {start} to {start + frames} of {entry.run_id} in {entry.shard}")
            raise
        batch.run[row], batch.start[row], batch.num_valid[row] = number, start, frames
        batch.tr_s[row] = entry.tr_s
        if self._filler is not None:
            self._fill_volume(self._filler, batch, row, frames)
        return frames * self._set.num_voxels * self._set.dtype.itemsize

    def _fill_affine(self, batch: Batch, row: int, number: int) -> None:
        gain = self._set.gain(number)
        gain.put(batch.gain[row].numpy(), batch._gains[row])
        batch._gains[row] = gain
        if batch.shift is not None and gain.shift_V is not None:
            batch.shift[row].numpy()[:] = gain.shift_V
        if batch.level is not None and batch.spread is not None:
            intensity = self._set.intensity(number)
            batch.level[row].numpy()[:] = intensity.level_V
            batch.spread[row].numpy()[:] = intensity.spread_V

    def _fill_volume(self, filler: Filler, batch: Batch, row: int, frames: int) -> None:
        assert batch.volume is not None  # made with the filler
        volume = batch.volume[row].flatten(1)
        bits = volume.numpy() if volume.dtype == torch.float32 else volume.view(torch.int16).numpy().view(np.uint16)
        shift = None if batch.shift is None else batch.shift[row].numpy()
        filler.fill(batch.q[row, :frames].numpy(), batch.gain[row].numpy(), shift, bits)
        bits[frames:] = 0


def _leave_empty(batch: Batch, row: int) -> int:
    """A row that only fills up the batch."""
    batch.run[row], batch.num_valid[row] = -1, 0
    batch.start[row], batch.tr_s[row] = 0, 1.0
    batch._gains[row] = None
    for tensor in (batch.q, batch.gain, batch.shift, batch.level, batch.spread, batch.volume):
        if tensor is not None:
            tensor[row].zero_()
    return 0
