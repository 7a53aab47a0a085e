"""LitData: dense float16 samples cut beforehand, and `TemporalArrayLoader`, whose windows may start anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.contract import Consume, Contender, Key, Opened
from peers.torch_loader import WORKERS, from_loader, loader_of
from peers.windows import Windows

PACKAGES = {"litdata": "litdata"}
_CHUNK = "256MB"


def prepare(windows: Windows, folder: Path) -> None:
    """Samples of tensors; and whole runs, masked int8 and dense float16, neither compressed."""
    from litdata import TemporalArrayLoader

    samples = ({"run": run, "start": start, "window": torch.from_numpy(v)} for (run, start), v in windows.dense())
    _write(folder / "samples", samples)
    runs = range(windows.size.runs)
    stored = [np.array(windows.stored(run)) for run in runs]
    _write(folder / "int8", ({"window": torch.from_numpy(q)} for q in stored), TemporalArrayLoader())
    dense = ({"window": torch.from_numpy(windows.volumes(q))} for q in stored)
    _write(folder / "dense", dense, TemporalArrayLoader())


def _write(folder: Path, samples: Iterator[dict[str, Any]], item_loader: Any = None) -> None:
    """What `litdata.optimize` does in each of its workers."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=_CHUNK, item_loader=item_loader)
    for number, sample in enumerate(samples):
        writer.add_item(number, sample)
    writer.done()
    writer.merge(1)


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """Chunks are mapped in place, as LitData does by itself for local folders."""
    name = "LitData, fixed starts"
    found = [
        Contender(
            name=name,
            delivers="dense",
            workers=1,
            open=_samples(folder / "samples"),
            cold=True,
            maps=True,
            again=True,
        ),
        Contender(
            name=f"{name}: StreamingDataLoader",
            delivers="dense",
            workers=2,
            open=_sample_loader(folder / "samples"),
            clock="first",
            again=True,
        ),
    ]
    for delivers in ("int8", "dense"):
        name = "LitData, TemporalArrayLoader, not compressed"
        reading = _windows(windows, folder / delivers)
        loading = _window_loader(windows, folder / delivers)
        found.append(
            Contender(
                name=name,
                delivers=delivers,
                workers=1,
                open=reading,
                cold=True,
                maps=True,
                again=delivers == "dense",
            )
        )
        found.append(
            Contender(name=f"{name}: DataLoader", delivers=delivers, workers=2, open=loading, clock="first", again=True)
        )
    return found


def _samples(folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        from litdata import StreamingDataset

        dataset = StreamingDataset(str(folder), shuffle=False)

        def read(consume: Consume) -> None:
            for sample in dataset:
                consume(sample["window"].numpy(), sample["run"], sample["start"])

        yield read

    return opened


def _only(samples: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, int, int]:
    """A batch of one, without the copy that collating makes."""
    sample = samples[0]
    return sample["window"], sample["run"], sample["start"]


def _sample_loader(folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        from litdata import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(str(folder), shuffle=False)
        yield from_loader(
            StreamingDataLoader(dataset, batch_size=1, num_workers=WORKERS, collate_fn=_only, persistent_workers=True)
        )

    return opened


class _Reader:
    """A dataset of whole runs, opened anew in each process, as LitData's documentation asks for."""

    def __init__(self, folder: Path, length: int) -> None:
        self._folder, self._length = str(folder), length
        self._dataset: Any = None

    def open(self) -> None:
        """Open the dataset."""
        from litdata import StreamingDataset, TemporalArrayLoader

        self._dataset = StreamingDataset(self._folder, item_loader=TemporalArrayLoader())

    def __call__(self, key: Key) -> torch.Tensor:
        if self._dataset is None:
            self.open()
        window: torch.Tensor = self._dataset.read_window(key[0], key[1], self._length)["window"]
        return window


def _windows(windows: Windows, folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        reader = _Reader(folder, windows.size.length)
        reader.open()

        def read(consume: Consume) -> None:
            for key in windows.keys:
                consume(reader(key).numpy(), *key)

        yield read

    return opened


def _window_loader(windows: Windows, folder: Path) -> Callable:
    return lambda: loader_of(windows.keys, _Reader(folder, windows.size.length))
