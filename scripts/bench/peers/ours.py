"""boldstream itself: `ShardSet.read_window`, and `WindowLoader` with one and two threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from peers.contract import Consume, Contender, Opened
from peers.windows import Windows
from shards.dense import Filler, box_around
from shards.format import Grid
from shards.loader import Volumes, WindowLoader
from shards.publish import publish_set, run_entry
from shards.reader import ShardSet
from shards.values import Encoded
from shards.writer import EncodedRun, write_shard

PACKAGES: dict[str, str] = {}
_AFFINE = ((2.0, 0.0, 0.0, -90.0), (0.0, 2.0, 0.0, -126.0), (0.0, 0.0, 2.0, -72.0), (0.0, 0.0, 0.0, 1.0))


def prepare(windows: Windows, folder: Path) -> None:
    """Write the shard set: every run in one shard."""
    voxels = windows.size.voxels
    ones = np.ones(voxels, np.float32)
    runs = []
    for run in range(windows.size.runs):
        encoded = Encoded(q=np.array(windows.stored(run)), mean=500 * ones, std=16 * ones, scale=ones)
        runs.append(EncodedRun(run_id=f"sub-{run}", meta={"subject": str(run), "tr_s": 0.72}, encoded=encoded))
    shard = "bench-000000.tar"
    written = write_shard(folder / shard, runs)
    publish_set(
        folder,
        name="bench",
        dtype="int8",
        mask=windows.mask,
        grid=Grid(shape=windows.size.grid, affine=_AFFINE),
        entries=[run_entry(run, shard, written.places[run.run_id]) for run in runs],
        shards=[written.info],
    )


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """The reader in the caller's thread, and the loader."""
    found = [
        Contender(name="ours: read_window", delivers="int8", workers=1, open=_reader(windows, folder), cold=True),
        Contender(
            name="ours: read_window, dense",
            delivers="dense",
            workers=1,
            open=_dense_reader(windows, folder),
            cold=True,
        ),
    ]
    for delivers in ("int8", "dense"):
        for threads in (1, 2):
            found.append(
                Contender(
                    name=f"ours: WindowLoader, {threads} thread{'s' * (threads > 1)}",
                    delivers=delivers,
                    workers=threads,
                    open=_loader(windows, folder, delivers, threads),
                    clock="steady",
                    cold=threads == 2,
                )
            )
    return found


def _reader(windows: Windows, folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        out = np.empty((windows.size.length, windows.size.voxels), np.int8)
        with ShardSet(folder) as shard_set:

            def read(consume: Consume) -> None:
                for run, start in windows.keys:
                    consume(shard_set.read_window(run, start, windows.size.length, out=out), run, start)

            yield read

    return opened


def _dense_reader(windows: Windows, folder: Path) -> Callable:
    """What a thread of the loader does, in this one."""

    @contextmanager
    def opened() -> Opened:
        out = np.empty((windows.size.length, windows.size.voxels), np.int8)
        volumes = np.zeros(windows.dense_shape, np.float16)
        bits = volumes.view(np.uint16).reshape(windows.size.length, -1)
        with ShardSet(folder) as shard_set:
            cube = (windows.size.cube,) * 3
            filler = Filler(shard_set.mask, box_around(shard_set.mask, cube), "float16")
            gains = [shard_set.residual_affine(run)[0] for run in range(windows.size.runs)]

            def read(consume: Consume) -> None:
                for run, start in windows.keys:
                    q = shard_set.read_window(run, start, windows.size.length, out=out)
                    filler.fill(q, gains[run], None, bits)
                    consume(volumes, run, start)

            yield read

    return opened


def _loader(windows: Windows, folder: Path, delivers: str, threads: int) -> Callable:
    """Batches of four in the loader's own order, which starts with the windows of the others."""

    @contextmanager
    def opened() -> Opened:
        volumes = Volumes(shape=(windows.size.cube,) * 3) if delivers == "dense" else None
        with (
            ShardSet(folder) as shard_set,
            WindowLoader(
                shard_set, window=windows.size.length, batch_size=4, threads=threads, volumes=volumes
            ) as stream,
        ):
            yield _Stream(stream)

    return opened


class _Stream:
    """The loader, row by row."""

    def __init__(self, stream: WindowLoader) -> None:
        self._stream = stream
        self.pause = stream.close

    def __call__(self, consume: Consume) -> None:
        for batch in self._stream:
            rows = batch.q if batch.volume is None else batch.volume
            for window, run, start in zip(rows, batch.run.tolist(), batch.start.tolist(), strict=True):
                consume(window.numpy(), run, start)
