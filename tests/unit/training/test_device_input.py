"""The model's dense input against a numpy oracle, on the CPU, compiled, and on a GPU where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shards.affine import intensity_of
from shards.loader import Batch, WindowLoader
from shards.reader import ShardSet
from training.networks.volume import Volume, dense_input

DTYPES = ["int8", "int16", "float16", "float32"]


def oracle(shard_set: ShardSet, run: int, start: int, frames: int, *, intensity: bool) -> NDArray[np.float32]:
    """(frame, channel, x, y, z) in the mask's bounding box, by numpy from the reader's values."""
    residual = shard_set.residual(run, start, frames)
    channels = [residual]
    if intensity:
        stats = shard_set.statistics(run)
        mean, std = stats.mean.astype("f8"), stats.std.astype("f8")
        everything = np.sqrt((std**2 + (mean - mean.mean()) ** 2).mean())
        channels.append((mean - mean.mean() + std * residual) / everything)
    dense = np.zeros((frames, len(channels), *shard_set.mask.shape), np.float32)
    for number, channel in enumerate(channels):
        dense[:, number, shard_set.mask] = channel
    low, high = (fold(np.argwhere(shard_set.mask), axis=0) for fold in (np.min, np.max))
    return dense[(..., *(slice(a, b + 1) for a, b in zip(low, high, strict=True)))]


def compare(shard_set: ShardSet, batch: Batch, dense: torch.Tensor, tolerance: float) -> None:
    intensity = batch.level is not None
    for row, (run, start) in enumerate(zip(batch.run.tolist(), batch.start.tolist(), strict=True)):
        expected = oracle(shard_set, run, start, 10, intensity=intensity)
        x, y, z = expected.shape[2:]
        found = dense[row].float().cpu().numpy()
        np.testing.assert_allclose(found[..., :x, :y, :z], expected, atol=tolerance, rtol=tolerance)
        outside = found.copy()
        outside[..., :x, :y, :z] = 0
        assert not outside.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("intensity", [False, True])
def test_it_equals_numpy(tmp_path: Path, make_shard_set, dtype: str, *, intensity: bool) -> None:
    make_shard_set(tmp_path, dtype=dtype, num_wide=5)
    with ShardSet(tmp_path) as shard_set:
        volume = Volume(shard_set.mask)
        batch = next(iter(WindowLoader(shard_set, window=10, batch_size=6, intensity=intensity)))
        dense = volume.input(batch)
        assert dense.shape == (6, 10, 1 + intensity, *volume.crop.shape)
        compare(shard_set, batch, dense, 2e-4 if dtype == "float32" else 2e-5)
        compare(shard_set, batch, volume.input(batch, torch.bfloat16), 2e-2)


def test_it_equals_the_two_steps_that_training_takes(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, num_wide=5)
    with ShardSet(tmp_path) as shard_set:
        volume = Volume(shard_set.mask)
        batch = next(iter(WindowLoader(shard_set, window=10, batch_size=6)))
        steps = volume.dense(volume.residual(batch.q, batch.gain, batch.shift).flatten(0, 1))
        assert torch.equal(volume.input(batch).flatten(0, 1), steps)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for the CPU takes a C++ compiler")
def test_compiled_it_is_one_function_with_the_same_numbers(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, num_wide=5)
    with ShardSet(tmp_path) as shard_set:
        volume = Volume(shard_set.mask)
        batch = next(iter(WindowLoader(shard_set, window=10, batch_size=6, intensity=True)))
        arguments = (batch.q, batch.gain, batch.shift, batch.level, batch.spread, volume.lookup, torch.float32)
        compiled = torch.compile(dense_input, fullgraph=True)
        torch.testing.assert_close(compiled(*arguments), dense_input(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_equals_numpy(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, num_wide=5)
    with ShardSet(tmp_path) as shard_set:
        volume = Volume(shard_set.mask).to("cuda")
        for batch in WindowLoader(shard_set, window=10, batch_size=6, intensity=True, pin_memory=True, threads=4):
            moved = batch.to("cuda")
            compare(shard_set, batch, volume.input(moved), 2e-5)


def test_intensity_of_a_silent_run_is_finite() -> None:
    silent = intensity_of(np.full(9, 7, "f4"), np.zeros(9, "f4"))
    assert not silent.level_V.any() and not silent.spread_V.any()
