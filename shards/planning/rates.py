"""Rates measured on this machine: one thread's decoding, and the whole loader on a set as it lies.

Only `stream` needs the loader, and so torch, which it imports when called.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards import order
from shards.affine import LISTED_BELOW
from shards.errors import UsageError
from shards.format import Grid, frames_per_chunk
from shards.planning.model import Data
from shards.publish import publish_set, run_entry
from shards.reader import ShardSet
from shards.storage import Storage
from shards.values import encode
from shards.writer import EncodedRun, write_shard

if TYPE_CHECKING:
    from shards.loader import Batch, WindowLoader

_BACKGROUND = 1000.0
_NOISE_SD = 20.0
_SAMPLE = 24
"""Windows that `thread_rate` reads over and over: few enough for the page cache and, each with room of its own as in
the loader's batches, too many for the processor's."""


class CountedStorage:
    """A storage that counts what is read from its shards."""

    def __init__(self, inner: Storage) -> None:
        self.location = inner.location
        self.num_bytes = 0
        self._inner = inner
        self._lock = threading.Lock()

    def read_file(self, name: str) -> bytes:
        """Read a small file whole; not counted."""
        return self._inner.read_file(name)

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Pass the sizes on."""
        self._inner.expect(sizes)

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        """Fill `room`, and count it."""
        self._inner.read_into(name, offset, room)
        with self._lock:
            self.num_bytes += len(room)

    def close(self) -> None:
        """Close what is open."""
        self._inner.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed:
    """One measurement of the loader, from its first batch to its last."""

    threads: int
    warm: bool
    """Whether the same windows had been read right before."""
    num_windows: int
    seconds: float
    wait_s: float
    """Of them, waiting for batches."""
    stored_bytes: int
    decoded_bytes: int
    disk_bytes: int
    """Bytes that came from a disk of this machine, not from its page cache; 0 for a network filesystem."""

    @property
    def windows_s(self) -> float:
        """Windows a second."""
        return self.num_windows / self.seconds

    @property
    def wait(self) -> float:
        """Share of the time that the consumer waited."""
        return self.wait_s / self.seconds


def write_synthetic(folder: Path, *, num_runs: int, num_frames: int, num_voxels: int, dtype: str) -> None:
    """Write a set of noise around a mean, which compresses as BOLD does, into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    signal = np.random.default_rng(0).standard_normal((num_frames, num_voxels), np.float32) * _NOISE_SD + _BACKGROUND
    encoded = encode(signal, dtype)
    names = [f"sub-{number:04d}" for number in range(num_runs)]
    runs = [EncodedRun(run_id=name, meta={"subject": name[4:], "tr_s": 2.0}, encoded=encoded) for name in names]
    edge = math.ceil(round(num_voxels ** (1 / 3), 6))
    mask = (np.arange(edge**3) < num_voxels).reshape(edge, edge, edge)
    written = write_shard(folder / "noise-000000.tar", runs)
    publish_set(
        folder,
        name="noise",
        dtype=dtype,
        mask=mask,
        grid=Grid(shape=mask.shape, affine=tuple(tuple(row) for row in np.eye(4).tolist())),
        entries=[run_entry(run, "noise-000000.tar", written.places[run.run_id]) for run in runs],
        shards=[written.info],
        mask_source="the first voxels of a cube",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """What noise of a given size tells about real runs of it."""

    bytes_per_frame: float
    windows_s: float
    """Of one thread, from the page cache."""


def measure_synthetic(num_voxels: int, dtype: str, window_frames: int, seconds: float) -> Synthetic:
    """Measure stored size and decoding of noise, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="boldstream-rate-") as name:
        write_synthetic(Path(name), num_runs=1, num_frames=2 * window_frames, num_voxels=num_voxels, dtype=dtype)
        with ShardSet(name) as shard_set:
            rate = thread_rate(shard_set, window_frames, seconds)
            (run,) = shard_set.runs
    return Synthetic(bytes_per_frame=run.bold_bytes / run.num_frames, windows_s=rate)


def thread_rate(shard_set: ShardSet, window: int | str, seconds: float) -> float:
    """Windows a second that one thread reads from the page cache and decodes, as the loader does.

    Raises
    ------
    UsageError
        No run is as long as the window.
    """
    windows = _windows(shard_set, window)
    room = np.zeros((_SAMPLE, int(windows.num_frames.max()), shard_set.num_voxels), shard_set.dtype)
    picks = zip(windows.run.tolist(), windows.start.tolist(), windows.num_frames.tolist(), room, strict=False)
    takes = [(run, start, frames, rows[:frames]) for run, start, frames, rows in picks]
    for run, start, frames, rows in takes:
        shard_set.read_window(run, start, frames, out=rows)
    count, began = 0, time.perf_counter()
    for run, start, frames, rows in itertools.cycle(takes):
        shard_set.read_window(run, start, frames, out=rows)
        count += 1
        if time.perf_counter() - began >= seconds:
            break
    return count / (time.perf_counter() - began)


def describe_set(shard_set: ShardSet, window: int | str) -> Data:
    """What a window of a set costs, from its tables: a window of L frames in chunks of k takes L + k - 1 on average.

    Raises
    ------
    UsageError
        No run is as long as the window.
    """
    windows = _windows(shard_set, window)
    per_frame = np.array([run.bold_bytes / run.num_frames for run in shard_set.runs])
    extra = frames_per_chunk(shard_set.num_voxels, shard_set.dtype.itemsize) - 1
    listed = LISTED_BELOW * shard_set.num_voxels
    wide = [shard_set.manifest.dtype == "float32" or run.num_wide_voxels > listed for run in shard_set.runs]
    return Data(
        num_runs=len(shard_set.runs),
        windows_per_epoch=len(windows),
        window_frames=int(windows.num_frames.max()),
        num_voxels=shard_set.num_voxels,
        itemsize=shard_set.dtype.itemsize,
        frame_bytes=float((per_frame[windows.run] * (windows.num_frames + extra)).mean()),
        wide_runs=sum(wide) / len(wide),
        set_bytes=float(sum(shard.num_bytes for shard in shard_set.manifest.shards)),
    )


def _windows(shard_set: ShardSet, window: int | str) -> order.Windows:
    num_frames = [run.num_frames for run in shard_set.runs]
    lengths = order.parse_window(window, [run.tr_s for run in shard_set.runs])
    windows = order.training_windows(num_frames, lengths, 0, 0)
    if not len(windows):
        raise UsageError(f"{shard_set.location}: --window {window}: no run is that long; give a shorter window")
    return windows


def stream(
    shard_set: ShardSet, *, window: int | str, batch_size: int, threads: int, seconds: float, step_s: float, seed: int
) -> tuple[Streamed, Streamed]:
    """Run the loader twice over the same windows: as the page cache is found, and warm.

    Parameters
    ----------
    seconds
        Time for each of the two.
    step_s
        An emulated GPU step: the consumer sleeps that long after each batch.
    seed
        Another seed, other windows: for a first pass that no earlier measurement has warmed.
    """
    from shards.loader import WindowLoader

    plain = shard_set.storage
    counted = CountedStorage(plain)
    shard_set.storage = counted
    try:
        with WindowLoader(shard_set, window=window, batch_size=batch_size, threads=threads, seed=seed) as loader:
            meter = _Meter(loader, counted, threads, seconds, step_s)
            start = loader.state_dict()
            first = meter.measure(_endless(loader), warm=False)
            num_batches = first.num_windows // batch_size + 1
            return first, meter.measure(_repeated(loader, start, num_batches), warm=True)
    finally:
        shard_set.storage = plain


@dataclass(frozen=True, slots=True)
class _Meter:
    loader: WindowLoader
    counted: CountedStorage
    threads: int
    seconds: float
    step_s: float

    def measure(self, batches: Generator[Batch, None, None], *, warm: bool) -> Streamed:
        """Time from the first batch to the last, so that the filling of the look-ahead counts for nothing."""
        with closing(batches):
            next(batches)
            before, began = self._counts(), time.perf_counter()
            while time.perf_counter() - began < self.seconds:
                if self.step_s:
                    time.sleep(self.step_s)
                next(batches)
            seconds, after = time.perf_counter() - began, self._counts()
        windows, decoded, wait_s, stored, disk = (now - then for now, then in zip(after, before, strict=True))
        return Streamed(
            threads=self.threads,
            warm=warm,
            num_windows=int(windows),
            seconds=seconds,
            wait_s=wait_s,
            stored_bytes=int(stored),
            decoded_bytes=int(decoded),
            disk_bytes=int(disk),
        )

    def _counts(self) -> tuple[float, ...]:
        stats = self.loader.stats
        return stats.num_windows, stats.num_bytes, stats.wait_s, self.counted.num_bytes, disk_bytes()


def _endless(loader: WindowLoader) -> Generator[Batch, None, None]:
    while True:
        yield from loader


def _repeated(loader: WindowLoader, start: dict[str, Any], num_batches: int) -> Generator[Batch, None, None]:
    while True:
        loader.load_state_dict(start)
        with closing(_endless(loader)) as batches:
            yield from itertools.islice(batches, num_batches)


def disk_bytes() -> int:
    """Bytes that this process had fetched from block devices so far (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
