"""What --sample_by and --shard_weights make of the runs, and that they reach the loader."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.errors import UsageError
from shards.union import open_sets
from training.config import TrainConfig
from training.engine.environment import Place
from training.inputs import make_loader, open_inputs, run_weights

BASE: dict[str, Any] = {"phase": 1, "out": Path("out"), "preset": "tiny", "window": "10"}


@pytest.fixture
def folders(tmp_path: Path, make_shard_set) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    voxels = 211

    def signals(names: list[str], frames: list[int]) -> dict[str, np.ndarray]:
        return {n: rng.standard_normal((t, voxels)).astype("f4") for n, t in zip(names, frames, strict=True)}

    mask = np.zeros((7, 8, 6), bool)
    mask.ravel()[:voxels] = True
    first = signals(["sub-1_run-1", "sub-1_run-2", "sub-2_run-1"], [40, 60, 100])
    second = signals(["sub-3_run-1", "sub-4_run-1"], [200, 50])
    for name, given in (("a", first), ("b", second)):
        make_shard_set(tmp_path / name, signals=given, mask=mask)
    return str(tmp_path / "a"), str(tmp_path / "b")


def weights(folders: tuple[str, ...], runs: list[int], **flags: Any) -> list[float] | None:
    with open_sets(folders) as shard_set:
        found = run_weights(TrainConfig(**BASE, shards=folders, **flags), shard_set, runs)
        return None if found is None else found.tolist()


def test_by_default_every_window_counts_once(folders: tuple[str, str]) -> None:
    assert weights(folders, [0, 1, 2, 3, 4]) is None


def test_runs_subjects_and_sets_get_their_shares(folders: tuple[str, str]) -> None:
    assert weights(folders[:1], [0, 1, 2], sample_by="run") == [1, 1, 1]
    assert weights(folders[:1], [0, 1, 2], sample_by="subject") == pytest.approx([0.4, 0.6, 1])
    assert weights(folders, [0, 2, 3, 4], shard_weights=(1.0, 3.0)) == pytest.approx([2 / 7, 5 / 7, 12 / 5, 3 / 5])
    both = weights(folders, [0, 1, 2, 3, 4], sample_by="subject", shard_weights=(1.0, 3.0))
    assert both == pytest.approx([0.2, 0.3, 0.5, 1.5, 1.5])


def test_as_many_weights_as_sets(folders: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="--shard_weights: 1 for 2 shard sets"):
        TrainConfig(**BASE, shards=folders, shard_weights=(1.0,))


def test_they_reach_the_loader(folders: tuple[str, str]) -> None:
    config = TrainConfig(
        **BASE, shards=folders, shard_weights=(1.0, 9.0), batch_size=2, split_fractions=(1.0, 0.0, 0.0)
    )
    inputs = open_inputs(config)
    place = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    loader = make_loader(config, place, inputs.shard_set, inputs.train_runs, "train")
    seen = Counter(int(run) >= 3 for _ in range(10) for batch in loader for run in batch.run)
    assert 0.85 < seen[True] / seen.total() < 0.95
