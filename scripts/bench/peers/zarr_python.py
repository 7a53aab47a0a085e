"""zarr-python on our own shard set, through `shards.zarr_store.open_zarr`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from peers.contract import Consume, Contender, Opened
from peers.windows import Windows
from shards.zarr_store import open_zarr

PACKAGES: dict[str, str] = {}


def prepare(windows: Windows, folder: Path) -> None:
    """Nothing: it reads what `ours` wrote."""


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """With zarr's own codecs and defaults."""
    reading = _reading(windows, folder.parent / "ours")
    return [Contender(name="zarr-python on our shard set", delivers="int8", workers=1, open=reading, cold=True)]


def _reading(windows: Windows, folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        group = open_zarr(folder)
        arrays = [group[f"sub-{run}"] for run in range(windows.size.runs)]

        def read(consume: Consume) -> None:
            for run, start in windows.keys:
                consume(arrays[run][start : start + windows.size.length], run, start)

        yield read

    return opened
