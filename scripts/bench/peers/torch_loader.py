"""A torch DataLoader of two workers over windows, set up so that nothing is copied without need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from peers.contract import Consume, Key, Opened

WORKERS = 2


class Listed(Dataset):
    """Map-style: one window an item."""

    def __init__(self, keys: Sequence[Key], make: Callable[[Key], torch.Tensor]) -> None:
        self._keys, self._make = keys, make

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int, int]:
        key = self._keys[number]
        return self._make(key), *key


def from_loader(loader: Iterable) -> Callable[[Consume], None]:
    """Read a loader whose items are tensor, run, first frame."""

    def read(consume: Consume) -> None:
        for window, run, start in loader:
            consume(window.numpy(), run, start)

    return read


@contextmanager
def loader_of(keys: Sequence[Key], make: Callable[[Key], torch.Tensor]) -> Opened:
    """Two workers that live as long as the loader; one window an item, so that no batch is assembled by a copy."""
    loader = DataLoader(Listed(keys, make), batch_size=None, num_workers=WORKERS, persistent_workers=True)
    yield from_loader(loader)
    del loader
