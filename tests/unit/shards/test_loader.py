"""The loader hands out exactly the promised windows, whatever the ranks, threads and interruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import CorruptShardError, MismatchError, UsageError
from shards.loader import WindowLoader
from shards.reader import ShardSet

Key = tuple[int, int]


@pytest.fixture
def opened(tmp_path: Path, make_shard_set):
    make_shard_set(tmp_path, frames=(37, 150, 83, 20, 64))
    with ShardSet(tmp_path) as shard_set:
        yield shard_set


def keys(batch) -> list[Key]:
    return list(zip(batch.run.tolist(), batch.start.tolist(), strict=True))


def global_order(opened: ShardSet, world: int, per_rank: int, epochs: int, threads: int = 2) -> list[list[Key]]:
    loaders = [
        WindowLoader(opened, window=10, batch_size=per_rank, seed=5, rank=rank, world_size=world, threads=threads)
        for rank in range(world)
    ]
    result = []
    for _ in range(epochs):
        for parts in zip(*loaders, strict=True):
            by_rank = [keys(part) for part in parts]
            result.append([by_rank[k % world][k // world] for k in range(world * per_rank)])
    return result


@pytest.mark.parametrize("world", [2, 3, 4, 12])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_order_is_the_same_for_any_number_of_ranks_and_threads(opened, world: int, threads: int) -> None:
    assert global_order(opened, world, 12 // world, 2, threads) == global_order(opened, 1, 12, 2)


def test_batches_hold_the_windows_they_name(opened) -> None:
    loader = WindowLoader(opened, window=10, batch_size=4)
    for batch in loader:
        for row, (run, start) in enumerate(keys(batch)):
            np.testing.assert_array_equal(batch.q[row].numpy(), opened.read_window(run, start, 10))
            residual = batch.q[row].numpy() * batch.gain[row].numpy()
            np.testing.assert_allclose(residual, opened.residual(run, start, 10), rtol=1e-6)
            assert batch.tr_s[row] == opened.runs[run].tr_s


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
def test_gain_and_shift_give_the_residual_also_for_wide_voxels(tmp_path: Path, make_shard_set, dtype: str) -> None:
    make_shard_set(tmp_path / dtype, dtype=dtype, num_wide=5)
    with ShardSet(tmp_path / dtype) as shard_set:
        batch = next(iter(WindowLoader(shard_set, window=10, batch_size=4)))
        for row, (run, start) in enumerate(keys(batch)):
            shift = 0 if batch.shift is None else batch.shift[row].numpy()
            residual = batch.q[row].numpy() * batch.gain[row].numpy() + shift
            np.testing.assert_allclose(residual, shard_set.residual(run, start, 10), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("world", [1, 3])
def test_tiles_hold_every_frame_once_and_rows_that_fill_up_are_marked(opened, world: int) -> None:
    seen = [np.zeros(entry.num_frames, int) for entry in opened.runs]
    steps = set()
    for rank in range(world):
        loader = WindowLoader(opened, window=16, batch_size=5, mode="tile", rank=rank, world_size=world)
        steps.add(loader.steps_per_epoch)
        for batch in loader:
            for row, (run, start) in enumerate(keys(batch)):
                frames = int(batch.num_valid[row])
                assert (run < 0) == (frames == 0)
                assert not batch.q[row, frames:].any()
                if run >= 0:
                    seen[run][start : start + frames] += 1
                    np.testing.assert_array_equal(batch.q[row, :frames].numpy(), opened.read_window(run, start, frames))
    assert all((count == 1).all() for count in seen)
    assert len(steps) == 1


def test_interrupted_at_every_step_it_continues_exactly(opened) -> None:
    whole = global_order(opened, 1, 4, 2)
    for stop in range(len(whole)):
        first = WindowLoader(opened, window=10, batch_size=4, seed=5)
        seen: list[list[Key]] = []
        while len(seen) < stop:
            for batch in first:
                seen.append(keys(batch))
                if len(seen) == stop:
                    break
        second = WindowLoader(opened, window=10, batch_size=2, seed=5, rank=0, world_size=2)
        third = WindowLoader(opened, window=10, batch_size=2, seed=5, rank=1, world_size=2)
        state = first.state_dict()
        second.load_state_dict(state)
        third.load_state_dict(state)
        while len(seen) < len(whole):
            for a, b in zip(second, third, strict=True):
                seen.append([keys(a)[0], keys(b)[0], keys(a)[1], keys(b)[1]])
        assert seen == whole


def test_a_state_of_another_run_is_refused_field_by_field(opened) -> None:
    state = WindowLoader(opened, window=10, batch_size=4, seed=5).state_dict()
    other = WindowLoader(opened, window=12, batch_size=4, seed=6)
    with pytest.raises(MismatchError, match=r"seed: found 5, now 6; .*window_frames: found 10, now 12"):
        other.load_state_dict(state)


def test_too_few_windows_and_no_runs_are_refused(opened) -> None:
    with pytest.raises(UsageError, match="--batch_size"):
        WindowLoader(opened, window=140, batch_size=4)
    with pytest.raises(UsageError, match="no runs"):
        WindowLoader(opened, runs=[], window=10)


def test_seconds_give_each_run_its_own_length(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path / "two", frames=(80, 80), tr_s=(2.0, 0.8))
    with ShardSet(tmp_path / "two") as shard_set:
        loader = WindowLoader(shard_set, window="16s", batch_size=2)
        lengths = {run: int(n) for batch in loader for run, n in zip(batch.run.tolist(), batch.num_valid, strict=True)}
        assert lengths == {0: 8, 1: 20} and loader.window_frames == 20


def test_an_error_in_a_thread_reaches_the_caller(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path / "bad")
    with ShardSet(tmp_path / "bad") as shard_set:
        path = tmp_path / "bad" / "toy-000000.tar"
        data = bytearray(path.read_bytes())
        data[shard_set.runs[0].bold_offset + 40] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptShardError, match="sub-00_task-rest"):
            for _ in WindowLoader(shard_set, window=10, batch_size=3):
                pass


def test_it_measures_itself(opened) -> None:
    loader = WindowLoader(opened, window=10, batch_size=4)
    steps = sum(1 for _ in loader)
    assert loader.stats.num_windows == 4 * steps
    assert loader.stats.num_bytes == 4 * steps * 10 * opened.num_voxels
