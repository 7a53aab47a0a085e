"""MosaicML Streaming: dense float16 samples in MDS shards; starts are fixed when the samples are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from peers.contract import Consume, Contender, Opened
from peers.torch_loader import WORKERS, from_loader
from peers.windows import Windows

PACKAGES = {"streaming": "mosaicml-streaming"}


def prepare(windows: Windows, folder: Path) -> None:
    """Cut the samples; arrays of static type and shape, so raw bytes without a header, no compression, no hashes."""
    from streaming import MDSWriter

    shape = ",".join(map(str, windows.dense_shape))
    columns = {"run": "int", "start": "int", "window": f"ndarray:float16:{shape}"}
    with MDSWriter(out=str(folder), columns=columns, compression=None, hashes=[], size_limit=1 << 28) as sink:
        for (run, start), volumes in windows.dense():
            sink.write({"run": run, "start": start, "window": volumes})


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """In stored order: local folder, no shuffle."""
    name = "MosaicML Streaming, fixed starts"
    return [
        Contender(name=name, delivers="dense", workers=1, open=_in_process(folder), cold=True, again=True),
        Contender(
            name=f"{name}: DataLoader", delivers="dense", workers=2, open=_loader(folder), clock="first", again=True
        ),
    ]


def _dataset(folder: Path) -> Any:
    from streaming import StreamingDataset

    class Samples(StreamingDataset):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, int, int]]:
            for sample in super().__iter__():
                yield torch.from_numpy(sample["window"]), sample["run"], sample["start"]

    return Samples(local=str(folder), shuffle=False, batch_size=1, num_canonical_nodes=1)


def _in_process(folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        dataset = _dataset(folder)

        def read(consume: Consume) -> None:
            for window, run, start in dataset:
                consume(window.numpy(), run, start)

        yield read

    return opened


def _loader(folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        dataset = _dataset(folder)
        yield from_loader(DataLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True))

    return opened
