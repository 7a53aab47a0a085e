"""The loader hands out exactly the promised windows, whatever the ranks, threads and interruptions."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.errors import CorruptShardError, MismatchError, UsageError
from shards.format import Grid
from shards.loader import Volumes, WindowLoader
from shards.reader import ShardSet

Key = tuple[int, int]
GRID_AFFINE = ((2.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))


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


def test_pairs_of_rows_are_windows_of_one_run_on_every_rank(opened) -> None:
    whole = [keys(batch) for batch in WindowLoader(opened, window=10, batch_size=8, pairs=True, seed=5)]
    loaders = [
        WindowLoader(opened, window=10, batch_size=4, pairs=True, seed=5, rank=rank, world_size=2) for rank in range(2)
    ]
    for expected, *parts in zip(whole, *loaders, strict=True):
        by_rank = [keys(part) for part in parts]
        assert by_rank[0][:2] + by_rank[1][:2] + by_rank[0][2:] + by_rank[1][2:] == expected
        assert all(a[0] == b[0] for a, b in zip(expected[::2], expected[1::2], strict=True))
    with pytest.raises(UsageError, match="in units of 2"):
        WindowLoader(opened, window=10, batch_size=3, pairs=True)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_volumes_are_the_residuals_in_a_box(tmp_path: Path, make_shard_set, dtype: str, kind: str) -> None:
    make_shard_set(tmp_path, dtype=dtype, num_wide=5, frames=(37, 50))
    with ShardSet(tmp_path) as shard_set:
        volumes = Volumes(shape=(9, 10, 11), dtype=kind)
        for batch in WindowLoader(shard_set, window=12, batch_size=5, mode="tile", volumes=volumes):
            for row, (run, _) in enumerate(keys(batch)):
                expected = np.zeros((12, 11, 12, 13), np.float32)
                frames = int(batch.num_valid[row])
                if run >= 0:
                    residual = batch.q[row, :frames].float() * batch.gain[row]
                    residual += 0 if batch.shift is None else batch.shift[row]
                    low = [int(v.min()) for v in np.nonzero(shard_set.mask)]
                    size = [int(v.max()) + 1 - a for v, a in zip(np.nonzero(shard_set.mask), low, strict=True)]
                    x, y, z = (1 + (n - b) // 2 - a for n, b, a in zip(volumes.shape, size, low, strict=True))
                    part = expected[:frames, x : x + 7, y : y + 8, z : z + 6]
                    part[:, shard_set.mask] = residual.numpy()
                inner = torch.from_numpy(expected[:, 1:-1, 1:-1, 1:-1].copy())
                if batch.shift is None:
                    assert torch.equal(batch.volume[row], inner.to(getattr(torch, kind)))
                else:  # the product is rounded before the sum, or not
                    torch.testing.assert_close(batch.volume[row].float(), inner, rtol=1e-2, atol=1e-3)


def test_volumes_smaller_than_the_mask_are_refused(opened) -> None:
    with pytest.raises(UsageError, match=r"4 x 20 x 20 voxels: the mask needs 7 x 8 x 6"):
        WindowLoader(opened, window=10, volumes=Volumes(shape=(4, 20, 20)))


def test_intensity_is_the_signal_over_the_whole_brain(tmp_path: Path, make_shard_set) -> None:
    sources = make_shard_set(tmp_path, dtype="int16")
    with ShardSet(tmp_path) as shard_set:
        for batch in WindowLoader(shard_set, window=10, batch_size=4, intensity=True):
            for row, (run, start) in enumerate(keys(batch)):
                signal = sources[shard_set.runs[run].run_id]
                expected = (signal[start : start + 10] - signal.mean()) / signal.std()
                found = batch.level[row] + batch.spread[row] * batch.gain[row] * batch.q[row].float()
                np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def damage(shard_set: ShardSet, run: int, frames: range) -> None:
    entry = shard_set.runs[run]
    path = Path(shard_set.location) / entry.shard
    data = bytearray(path.read_bytes())
    bounds = shard_set._bounds.get(run, shard_set._read_bounds)
    per_chunk = -(-entry.num_frames // (len(bounds) - 1))
    for frame in frames:
        data[entry.bold_offset + int(bounds[frame // per_chunk]) + 30] ^= 1
    path.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path, big_frames):
    big_frames(tmp_path / "damaged")
    with ShardSet(tmp_path / "damaged") as shard_set:
        damage(shard_set, 1, range(30, 31))
        yield shard_set


@pytest.fixture
def big_frames(make_shard_set):
    """Frames of more than a chunk, so that damage costs the windows that hold the frame and no others."""

    def make(folder: Path) -> None:
        mask = np.ones((52, 52, 50), bool)
        rng = np.random.default_rng(3)
        signals = {
            f"sub-{k:02d}_task-rest": rng.standard_normal((frames, mask.sum())).astype("f4")
            for k, frames in enumerate((40, 80))
        }
        grid = Grid(shape=mask.shape, affine=GRID_AFFINE)
        make_shard_set(folder, signals=signals, mask=mask, grid=grid, runs_per_shard=1)

    return make


def test_skipping_puts_another_window_in_place_and_counts(damaged, caplog: pytest.LogCaptureFixture) -> None:
    healthy = {}
    loader = WindowLoader(damaged, window=10, batch_size=2, on_bad="skip", seed=3)
    for epoch in range(6):
        for batch in loader:
            for row, (run, start) in enumerate(keys(batch)):
                assert run == 0 or not start <= 30 < start + 10
                healthy[epoch, len(healthy)] = batch.q[row].numpy().copy(), run, start
    assert len(healthy) == 6 * 12
    for q, run, start in healthy.values():
        np.testing.assert_array_equal(q, damaged.read_window(run, start, 10))
    assert loader.stats.num_skipped == len([r for r in caplog.records if "sub-01_task-rest" in r.getMessage()]) > 0


def test_the_substitutes_are_the_same_on_any_number_of_threads(damaged) -> None:
    orders = [
        [keys(b) for b in WindowLoader(damaged, window=10, batch_size=2, on_bad="skip", seed=3, threads=threads)]
        for threads in (1, 3)
    ]
    assert orders[0] == orders[1]


def test_skipping_stops_after_the_tolerance(damaged) -> None:
    damage(damaged, 1, range(0, 30))
    damage(damaged, 1, range(31, 80))
    loader = WindowLoader(damaged, window=10, batch_size=2, on_bad="skip", max_skipped=3)
    with pytest.raises(CorruptShardError, match=r"more than 3 damaged windows; .*verify.*sub-01_task-rest"):
        for _ in range(5):
            for _ in loader:
                pass


def test_skipping_in_a_tiling_leaves_the_row_empty(damaged) -> None:
    rows = [
        (run, n)
        for batch in WindowLoader(damaged, window=10, batch_size=4, mode="tile", on_bad="skip")
        for run, n in zip(batch.run.tolist(), batch.num_valid.tolist(), strict=True)
    ]
    assert rows.count((0, 10)) == 4 and rows.count((1, 10)) == 7 and rows.count((-1, 0)) == 1


def test_after_an_error_the_loader_goes_on_where_it_was(damaged) -> None:
    more = range(31, 50)
    damage(damaged, 1, more)
    loader = WindowLoader(damaged, window=10, batch_size=2, seed=3)
    seen = []
    with pytest.raises(CorruptShardError) as caught:
        for batch in loader:
            seen.append(keys(batch))
    assert any("of sub-01_task-rest in toy-000001.tar" in note for note in caught.value.__notes__)
    assert loader.position == 2 * len(seen) < 12
    damage(damaged, 1, range(30, 50))  # flips every bit back
    seen += [keys(batch) for batch in loader]
    assert seen == [keys(batch) for batch in WindowLoader(damaged, window=10, batch_size=2, seed=3)]


def test_windows_of_the_next_epoch_are_under_way_before_it_begins(opened) -> None:
    loader = WindowLoader(opened, window=10, batch_size=4, look_ahead=2)
    for _ in loader:
        pass
    assert [(pending.epoch, pending.step) for pending in loader._ahead] == [(1, 0), (1, 1)]
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    first = [keys(batch) for batch in loader]
    again = WindowLoader(opened, window=10, batch_size=4)
    again.load_state_dict(state)
    assert [keys(batch) for batch in again] == first


def test_a_batch_stays_as_it_is_until_the_next_is_taken(opened) -> None:
    loader = WindowLoader(opened, window=10, batch_size=4, look_ahead=1, threads=4)
    for batch in loader:
        copy = batch.q.clone(), keys(batch)
        time.sleep(0.005)
        assert torch.equal(batch.q, copy[0]) and keys(batch) == copy[1]


def test_closing_leaves_no_thread_and_asking_again_works(opened) -> None:
    gc.collect()
    before = set(threading.enumerate())
    loader = WindowLoader(opened, window=10, batch_size=4, threads=3)
    with loader:
        next(iter(loader))
        assert len(set(threading.enumerate()) - before) > 0
    assert set(threading.enumerate()) <= before
    assert loader.position == 4
    next(iter(loader))
    del loader
    deadline = time.time() + 5
    while set(threading.enumerate()) - before and time.time() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def test_a_program_that_stops_in_the_middle_of_an_epoch_ends(opened) -> None:
    code = (
        "import sys; from shards.reader import ShardSet; from shards.loader import WindowLoader\n"
        "loader = WindowLoader(ShardSet(sys.argv[1]), window=10, batch_size=4, threads=4)\n"
        "next(iter(loader)); print('first')"
    )
    done = subprocess.run([sys.executable, "-c", code, opened.location], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\n", "")


def test_weights_decide_how_often_a_run_is_seen(opened) -> None:
    weights = [0.0, 1.0, 0.0, 0.0, 3.0]
    loader = WindowLoader(opened, window=10, batch_size=1, weights=weights)
    runs = [int(batch.run[0]) for _ in range(8) for batch in loader]
    assert set(runs) == {1, 4} and abs(runs.count(4) / len(runs) - 0.75) < 0.02
    other = WindowLoader(opened, window=10, batch_size=1, weights=weights[::-1])
    with pytest.raises(MismatchError, match="weights_hash"):
        other.load_state_dict(loader.state_dict())


def test_another_selection_of_runs_is_refused(opened) -> None:
    state = WindowLoader(opened, runs=[1, 2], window=10, batch_size=2).state_dict()
    with pytest.raises(MismatchError, match="runs_hash"):
        WindowLoader(opened, runs=[2, 1], window=10, batch_size=2).load_state_dict(state)
