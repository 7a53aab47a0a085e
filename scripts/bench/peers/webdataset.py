"""webdataset: dense float16 samples as raw bytes in tars; starts are fixed when the samples are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.contract import Consume, Contender, Opened
from peers.torch_loader import WORKERS, from_loader
from peers.windows import Windows

PACKAGES = {"webdataset": "webdataset"}
_PER_SHARD = 6


def prepare(windows: Windows, folder: Path) -> None:
    """Cut the samples, at least one shard a worker."""
    import webdataset

    per_shard = min(_PER_SHARD, len(windows.keys) // WORKERS)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=per_shard, verbose=0) as sink:
        for (run, start), volumes in windows.dense():
            place = json.dumps([run, start]).encode()
            sink.write({"__key__": f"{run}-{start:06d}", "place": place, "f16": volumes.tobytes()})


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """In stored order, without a shuffle buffer, which would only cost."""
    name = "webdataset, fixed starts"
    return [
        Contender(
            name=name,
            delivers="dense",
            workers=1,
            open=_in_process(windows, folder),
            cold=True,
            again=True,
        ),
        Contender(
            name=f"{name}: WebLoader",
            delivers="dense",
            workers=2,
            open=_loader(windows, folder),
            clock="first",
            again=True,
        ),
    ]


def _dataset(windows: Windows, folder: Path) -> Any:
    import webdataset

    def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, int, int]:
        window = np.frombuffer(sample["f16"], np.float16).reshape(windows.dense_shape)
        return torch.from_numpy(window), *json.loads(sample["place"])

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return webdataset.WebDataset(tars, shardshuffle=False).map(decode)


def _in_process(windows: Windows, folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        dataset = _dataset(windows, folder)

        def read(consume: Consume) -> None:
            for window, run, start in dataset:
                consume(window.numpy(), run, start)

        yield read

    return opened


def _loader(windows: Windows, folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        import webdataset

        dataset = _dataset(windows, folder)
        yield from_loader(webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True))

    return opened
