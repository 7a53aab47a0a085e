"""One .pt file a frame, float16 in a cube: how TFF, SwiFT and the hackathon's project store runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from peers.contract import Consume, Contender, Key, Opened
from peers.torch_loader import loader_of
from peers.windows import Windows

PACKAGES: dict[str, str] = {}


def prepare(windows: Windows, folder: Path) -> None:
    """Write every frame of every run."""
    for run in range(windows.size.runs):
        (folder / f"{run}").mkdir()
        for number, frame in enumerate(windows.stored(run)):
            torch.save(torch.from_numpy(windows.volumes(frame[None])[0]), folder / f"{run}" / f"frame_{number}.pt")


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """Twenty loads and a stack."""
    name = "per-frame .pt files"
    return [
        Contender(
            name=f"{name}: torch.load, stack",
            delivers="dense",
            workers=1,
            open=_in_process(windows, folder),
            cold=True,
            again=True,
        ),
        Contender(
            name=f"{name}: torch DataLoader",
            delivers="dense",
            workers=2,
            open=_loader(windows, folder),
            clock="first",
            again=True,
        ),
    ]


def _loading(windows: Windows, folder: Path) -> Callable[[Key], torch.Tensor]:
    def load(key: Key) -> torch.Tensor:
        run, start = key
        frames = range(start, start + windows.size.length)
        return torch.stack([torch.load(folder / f"{run}" / f"frame_{k}.pt", weights_only=True) for k in frames])

    return load


def _in_process(windows: Windows, folder: Path) -> Callable:
    @contextmanager
    def opened() -> Opened:
        load = _loading(windows, folder)

        def read(consume: Consume) -> None:
            for key in windows.keys:
                consume(load(key).numpy(), *key)

        yield read

    return opened


def _loader(windows: Windows, folder: Path) -> Callable:
    return lambda: loader_of(windows.keys, _loading(windows, folder))
