"""Checkpoints of a run's own folder: complete or absent, and refused where they do not belong.

`checkpoints/<tag>/` is written by DeepSpeed under a temporary tag, completed, renamed, and only then named
by the atomically replaced file `checkpoints/latest`. DeepSpeed's files are pickles, so they are read
from the run's own folder only, after `identity.json` beside them has been compared.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from shards.errors import CorruptShardError, MismatchError
from shards.writer import write_atomic
from training.collective import first_rank_does, gather
from training.environment import Place

FOLDER = "checkpoints"
LATEST = "latest"
IDENTITY = "identity.json"
TEMPORARY = "partial-"
BEST = "best-"


class Checkpoints:
    """The checkpoints of one run folder.

    Parameters
    ----------
    folder
        Run folder.
    identity
        What a continuation must share, JSON values.
    keep
        Newest checkpoints to keep.
    place
        This rank.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], keep: int, place: Place) -> None:
        self.folder = folder / FOLDER
        self.identity, self.keep, self.place = identity, keep, place

    def latest(self) -> str | None:
        """Tag of the newest complete checkpoint, compared with this run's identity; None if there is none.

        Raises
        ------
        MismatchError
            It belongs to another shard set, split, configuration or number of ranks; each difference is named.
        CorruptShardError
            `latest` names a checkpoint that is not there or not readable.
        """
        path = self.folder / LATEST
        if not path.is_file():
            return None
        tag = path.read_text().strip()
        try:
            found = json.loads((self.folder / tag / IDENTITY).read_text())
        except (OSError, ValueError) as error:
            raise CorruptShardError(
                f"{self.folder / tag}: {error}; {path} names it, restore it or remove {path}"
            ) from None
        before, now = _flat(found), _flat(self.identity)
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if differing:
            listing = "; ".join(f"{key}: found {before.get(key)}, now {now.get(key)}" for key in differing)
            raise MismatchError(
                f"{self.folder.parent} holds a run that differs: {listing}; restore these, or choose another --out"
            )
        return tag

    def save(self, engine: Any, step: int, state: dict[str, Any], pinned: str | None = None) -> str:
        """Write a checkpoint; every rank must call it.

        Parameters
        ----------
        engine
            DeepSpeed engine.
        step
            Optimizer steps done.
        state
            What else to remember; `resume` gives it back.
        pinned
            Name of the file of best weights that this checkpoint refers to; others are removed.
        """
        tag = f"step{step:08d}"
        temporary = f"{TEMPORARY}{tag}"

        def clear() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for rest in self.folder.glob(f"{TEMPORARY}*"):
                shutil.rmtree(rest)

        first_rank_does(clear, self.place)
        client_state = {"step": step, "random": gather(random_state(), self.place), "run": state}
        engine.save_checkpoint(str(self.folder), tag=temporary, client_state=client_state, save_latest=False)
        dist.barrier()
        first_rank_does(lambda: self._publish(temporary, tag, pinned), self.place)
        return tag

    def resume(self, engine: Any, tag: str) -> tuple[int, dict[str, Any]]:
        """Load a checkpoint into the engine and this process's generators; returns the step and `state`."""
        loaded, client_state = engine.load_checkpoint(str(self.folder), tag=tag)
        if loaded is None:
            raise CorruptShardError(f"{self.folder / tag}: DeepSpeed found nothing to load; restore it or remove it")
        restore_random_state(client_state["random"][self.place.rank])
        return client_state["step"], client_state["run"]

    def save_best(self, step: int, weights: dict[str, Tensor]) -> str:
        """Write the weights of the best step so far (rank 0); returns the file's name."""
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{BEST}step{step:08d}.safetensors"
        write_atomic(self.folder / name, save({key: tensor.contiguous() for key, tensor in weights.items()}))
        return name

    def load_best(self, name: str) -> dict[str, Tensor]:
        """The weights that `save_best` wrote under this name."""
        from safetensors.torch import load_file

        return load_file(self.folder / name)

    def _publish(self, temporary: str, tag: str, pinned: str | None) -> None:
        write_atomic(self.folder / temporary / IDENTITY, json.dumps(self.identity, indent=1) + "\n")
        _sync_tree(self.folder / temporary)
        final = self.folder / tag
        if final.exists():
            shutil.rmtree(final)
        (self.folder / temporary).rename(final)
        write_atomic(self.folder / LATEST, tag + "\n")
        # a folder of a later step was never named by `latest`: a crash came between
        tags = sorted(path.name for path in self.folder.glob("step*"))
        for old in [*tags[: tags.index(tag) + 1][: -self.keep], *tags[tags.index(tag) + 1 :]]:
            shutil.rmtree(self.folder / old)
        for weights in self.folder.glob(f"{BEST}*"):
            if weights.name != pinned:
                weights.unlink()


def random_state() -> dict[str, Any]:
    """State of this process's generators: torch (CPU and GPU), numpy, python."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002 - the legacy global generator is what libraries use
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the generators where `random_state` left them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _sync_tree(folder: Path) -> None:
    """Force a folder's files and names to disk."""
    for path in [*(p for p in folder.rglob("*") if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
