"""Predictions of a job's pace: the formulae, and measured cases that they must agree with.

The measured cases calibrate a thread's rate right before and after, in the same process, so that only the model is on
trial. What is left is the noise of a shared machine: hence the tolerance, and more than one round where it is loud.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from shards import order
from shards.planning import rates
from shards.planning.model import (
    COMPUTE,
    COPY,
    CORES,
    FILESYSTEM,
    LINK,
    THREADS,
    Data,
    Job,
    Machine,
    Prediction,
    cached_share,
    enough_threads,
    fed_ranks,
    first_windows,
    loader_bytes,
    predict,
    window_bytes,
)
from shards.reader import ShardSet
from shards.storage import Storage

TOLERANCE = 0.3
ROUNDS = 8
SLOW = 8
"""Times that an emulated filesystem needs to read a window over the time to decode it."""
VOXELS, WINDOW, BATCH = 150_000, 20, 4

DATA = Data(
    num_runs=1000,
    windows_per_epoch=60_000,
    window_frames=20,
    num_voxels=200_000,
    itemsize=1,
    frame_bytes=3e6,
    wide_runs=0,
    set_bytes=200e9,
)
JOB = Job(ranks=8, ranks_per_node=4, batch_size=10, threads=4, look_ahead=2, step_s=0.1)
MACHINE = Machine(decode_windows_s=100)
FIRST = 8 / 60 * (1 - math.exp(-60 / 8))
"""Share of a rank's windows in the first epoch that are its first of their run."""


def test_threads_that_outpace_the_gpu_leave_no_wait() -> None:
    prediction = predict(DATA, JOB, MACHINE)
    assert prediction.bound == COMPUTE
    assert prediction.wait == 0
    assert prediction.windows_s == pytest.approx(8 * 10 / 0.1)
    assert prediction.epoch_s == pytest.approx(750 * 0.1)


@pytest.mark.parametrize(
    ("job", "machine", "bound", "data_s"),
    [
        ({"threads": 1}, {"decode_windows_s": 50}, THREADS, 10 / 50),
        ({}, {"bandwidth": 1.2e9}, FILESYSTEM, 8 * 10 * 3e6 / 1.2e9),
        ({}, {"node_bandwidth": 0.4e9}, LINK, 4 * 10 * 3e6 / 0.4e9),
        ({"threads": 16}, {"cores_per_node": 2}, CORES, 10 / (2 / 4 * 100)),
        ({"threads": 1}, {"latency_s": 0.02}, THREADS, 10 * (0.01 + 0.02 * (1 + FIRST))),
        ({"threads": 1}, {"stream_bandwidth": 1e8}, THREADS, 10 * (0.01 + 0.03)),
    ],
)
def test_the_slowest_stage_binds_and_its_excess_over_the_step_is_the_wait(job, machine, bound, data_s) -> None:
    prediction = predict(DATA, replace(JOB, **job), replace(MACHINE, **machine))
    assert prediction.bound == bound
    assert prediction.data_s == pytest.approx(data_s)
    assert prediction.step_s == pytest.approx(data_s)
    assert prediction.wait == pytest.approx((data_s - 0.1) / data_s)


def test_the_copy_adds_to_the_step_and_can_bind() -> None:
    job, machine = replace(JOB, step_s=0.01), replace(MACHINE, decode_windows_s=1000, copy_bandwidth=1e9)
    prediction = predict(DATA, job, machine)
    assert prediction.bound == COPY
    assert prediction.consume_s == pytest.approx(0.01 + 10 * (20 * 200_000 + 4 * 200_000) / 1e9)


def test_what_the_page_cache_holds_is_not_read_again() -> None:
    job = replace(JOB, ranks=4)  # one node
    machine = replace(MACHINE, bandwidth=0.6e9, memory=1e12)
    first, second = predict(DATA, job, machine), predict(DATA, job, machine, epoch=1)
    assert (first.cached, first.bound) == (0, FILESYSTEM)
    assert second.cached == pytest.approx(5 / 6, abs=1e-3)
    assert second.stages[0].seconds == pytest.approx(first.stages[0].seconds / 6, rel=0.01)
    assert second.bound == COMPUTE


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_share_of_first_windows_is_that_of_the_promised_order(epoch: int) -> None:
    runs, ranks = 500, 100
    seen: set[int] = set()
    for number in range(epoch + 1):
        windows = order.training_windows([600] * runs, [20] * runs, 3, number)
        mine = windows.run[7::ranks].tolist()
        first = len(set(mine) - seen)
        seen |= set(mine)
    data = replace(DATA, num_runs=runs, windows_per_epoch=len(windows))
    assert first_windows(data, replace(JOB, ranks=ranks), epoch) == pytest.approx(first / len(mine), abs=0.05)


def test_statistics_of_wide_runs_are_read_with_the_first_window_of_a_run() -> None:
    assert window_bytes(replace(DATA, wide_runs=0.5), JOB) == pytest.approx(3e6 + 0.5 * FIRST * 12 * 200_000)


def test_threads_beyond_the_look_ahead_find_no_work() -> None:
    job = replace(JOB, threads=64, look_ahead=1, step_s=0.0)
    assert predict(DATA, job, MACHINE).data_s == pytest.approx(10 / (10 * 100))


def test_enough_threads_are_the_fewest_without_a_wait() -> None:
    job, machine = replace(JOB, step_s=0.07, look_ahead=9), replace(MACHINE, latency_s=0.013)
    enough = enough_threads(DATA, job, machine)
    assert predict(DATA, replace(job, threads=enough), machine).wait == 0
    assert predict(DATA, replace(job, threads=enough - 1), machine).wait > 0


def test_fed_ranks_are_the_most_without_a_wait() -> None:
    machine = replace(MACHINE, bandwidth=1.3e9)
    fed = math.floor(fed_ranks(DATA, JOB, machine))
    assert predict(DATA, replace(JOB, ranks=fed), machine).wait == 0
    assert predict(DATA, replace(JOB, ranks=fed + 1), machine).wait > 0


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("epoch", [1, 3])
def test_the_share_found_in_the_page_cache_is_that_of_the_promised_order(nodes: int, epoch: int) -> None:
    runs, frames, length = 150, 600, 20
    held = np.zeros((runs, frames), bool)
    for number in range(epoch + 1):
        windows = order.training_windows([frames] * runs, [length] * runs, 3, number)
        mine = slice(0, None, nodes)
        places = (windows.run[mine, None], windows.start[mine, None] + np.arange(length))
        found = held[places].mean()
        held[places] = True
    job = replace(JOB, ranks=nodes, ranks_per_node=1)
    assert cached_share(DATA, job, replace(MACHINE, memory=1e12), epoch) == pytest.approx(found, abs=0.02)


def test_a_set_larger_than_the_memory_is_found_in_proportion() -> None:
    job = replace(JOB, ranks=4)
    machine = replace(MACHINE, memory=50e9 + 4 * loader_bytes(DATA, job))
    assert cached_share(DATA, job, machine, 1) == pytest.approx(50 / 200)


class Throttled:
    """A storage that sleeps for its bytes: one after another, or (not `shared`) each reader on its own."""

    def __init__(self, inner: Storage, bytes_s: float, *, shared: bool) -> None:
        self.location, self._inner, self._bytes_s = inner.location, inner, bytes_s
        self._turn = Lock() if shared else nullcontext()

    def read_file(self, name: str) -> bytes:
        return self._inner.read_file(name)

    def expect(self, sizes: Mapping[str, int]) -> None:
        self._inner.expect(sizes)

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        with self._turn:
            began = time.perf_counter()
            self._inner.read_into(name, offset, room)
            time.sleep(max(0.0, len(room) / self._bytes_s - (time.perf_counter() - began)))

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise")
    rates.write_synthetic(path, num_runs=6, num_frames=120, num_voxels=VOXELS, dtype="int8")
    return path


@pytest.fixture
def opened(folder: Path) -> Iterator[ShardSet]:
    with ShardSet(folder) as shard_set:
        yield shard_set


def job_of(threads: int, step_s: float) -> Job:
    return Job(ranks=1, ranks_per_node=1, batch_size=BATCH, threads=threads, look_ahead=2, step_s=step_s)


def measured(shard_set: ShardSet, threads: int, step_s: float, seconds: float = 0.4) -> rates.Streamed:
    _, warm = rates.stream(
        shard_set, window=WINDOW, batch_size=BATCH, threads=threads, seconds=seconds, step_s=step_s, seed=1
    )
    return warm


def calibrated(shard_set: ShardSet) -> float:
    return rates.thread_rate(shard_set, WINDOW, 0.2)


def check_agreement(attempt: Callable[[], tuple[rates.Streamed, Prediction]]) -> Prediction:
    """Measure until it agrees with what was predicted, a few times at most: a wrong model never agrees."""
    seen = []
    for _ in range(ROUNDS):
        found, predicted = attempt()
        pace, wait = found.windows_s / predicted.windows_s, found.wait - predicted.wait
        if abs(pace - 1) < TOLERANCE and abs(wait) < TOLERANCE / 2:
            return predicted
        seen.append((round(pace, 2), round(wait, 2)))
    raise AssertionError(f"pace over predicted pace, wait less predicted wait: {seen}")


@pytest.mark.parametrize("steps", [0.0, 0.5, 2.5])
def test_pace_and_wait_of_one_thread_agree_with_the_prediction(opened: ShardSet, steps: float) -> None:
    data = rates.describe_set(opened, WINDOW)

    def attempt() -> tuple[rates.Streamed, Prediction]:
        before = calibrated(opened)
        step_s = steps * BATCH / before  # in units of the data side's time
        found = measured(opened, 1, step_s)
        machine = Machine(decode_windows_s=(before + calibrated(opened)) / 2)
        return found, predict(data, job_of(1, step_s), machine)

    assert check_agreement(attempt).bound == (COMPUTE if steps > 1 else THREADS)


@pytest.mark.parametrize(
    ("shared", "threads", "bound"), [(True, 4, FILESYSTEM), (True, 1, THREADS), (False, 2, THREADS)]
)
def test_a_slow_filesystem_binds_as_predicted(opened: ShardSet, shared: bool, threads: int, bound: str) -> None:
    data = rates.describe_set(opened, WINDOW)
    plain = opened.storage

    def attempt() -> tuple[rates.Streamed, Prediction]:
        opened.storage = plain
        rate = calibrated(opened)
        bytes_s = data.frame_bytes * rate / SLOW
        opened.storage = Throttled(plain, bytes_s, shared=shared)
        machine = Machine(decode_windows_s=rate, **{"bandwidth" if shared else "stream_bandwidth": bytes_s})
        return measured(opened, threads, 0.0), predict(data, job_of(threads, 0.0), machine)

    assert check_agreement(attempt).bound == bound


def test_threads_hide_a_slow_filesystem_as_predicted(opened: ShardSet) -> None:
    data = rates.describe_set(opened, WINDOW)
    rate = calibrated(opened)
    machine = Machine(decode_windows_s=rate, stream_bandwidth=data.frame_bytes * rate / SLOW)
    opened.storage = Throttled(opened.storage, machine.stream_bandwidth, shared=False)
    step_s = 4.5 * BATCH / rate
    assert enough_threads(data, job_of(1, step_s), machine) == 2
    for threads in (1, 3):
        job = job_of(threads, step_s)
        check_agreement(lambda job=job: (measured(opened, job.threads, step_s), predict(data, job, machine)))


@pytest.mark.parametrize("voxels", [VOXELS, 30_000])
def test_a_window_takes_as_many_bytes_as_the_set_tells(tmp_path: Path, voxels: int) -> None:
    """Of the smaller frames, five make a chunk."""
    rates.write_synthetic(tmp_path / "set", num_runs=3, num_frames=100, num_voxels=voxels, dtype="int8")
    with ShardSet(tmp_path / "set") as shard_set:
        found = measured(shard_set, 1, 0.0, seconds=0.3)
        data = rates.describe_set(shard_set, WINDOW)
    assert found.stored_bytes / found.num_windows == pytest.approx(data.frame_bytes, rel=0.05)
