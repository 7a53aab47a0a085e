"""The generators of random numbers of this process: seeded, kept in checkpoints, given back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed torch (CPU and GPU), numpy and python with one number, or with one made of several."""
    seed = key[0] if len(key) == 1 else int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global generator is what libraries use
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """State of this process's generators: torch (CPU and GPU), numpy, python."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the generators where `random_state` left them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
