"""The block cache: right bytes whatever happens to its files, one fetch a block, never over its bound."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shards.errors import StorageError, UsageError
from shards.storage import cache as cache_module
from shards.storage import cache_space
from shards.storage.block_file import PAGE, file_bytes
from shards.storage.cache import BlockCache, CacheConfig, CachedShard

BLOCK = 20_000
SIZE = 30 * BLOCK + 1234
DATA = np.random.default_rng(0).bytes(SIZE)
OTHER = np.random.default_rng(1).bytes(SIZE)
SLOW_S = 0.01


class Source:
    """Where a shard lies: counts what is fetched, in a file, so that processes can share the count."""

    def __init__(self, log: Path, data: bytes = DATA, delay_s: float = 0.0) -> None:
        self.log, self.data, self.delay_s = log, data, delay_s

    def __call__(self, offset: int, num_bytes: int) -> memoryview:
        with self.log.open("a") as file:
            file.write(f"{offset}\n")
        time.sleep(self.delay_s)
        return memoryview(self.data)[offset : offset + num_bytes]

    def fetched(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


def config_of(folder: Path, num_bytes: int = 10**8, block_bytes: int = BLOCK) -> CacheConfig:
    return CacheConfig(folder=folder / "cache", num_bytes=num_bytes, block_bytes=block_bytes)


def shard_of(cache: BlockCache, location: str = "s3://bucket/set", identity: str = "a") -> CachedShard:
    return cache.shard(location, "toy-000000.tar", SIZE, identity)


def read(cache: BlockCache, shard: CachedShard, source: Source, offset: int, num_bytes: int) -> bytes:
    room = bytearray(num_bytes)
    cache.read_into(shard, offset, memoryview(room), source)
    return bytes(room)


def files(config: CacheConfig) -> list[Path]:
    """Blocks and temporary files."""
    return sorted(path for path in config.folder.glob("*/*/*/*") if path.is_file())


def stored_bytes(config: CacheConfig) -> int:
    """Bytes of all blocks, also while other processes write and remove some."""
    total = 0
    for path in files(config):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def block_path(config: CacheConfig, number: int) -> Path:
    return next(path for path in files(config) if path.name == str(number))


def churn(config: CacheConfig, log: Path, seed: int, seconds: float, delay_s: float) -> None:
    """Read at random places for some time; a wrong byte ends the process with an error."""
    sources = {"a": Source(log, DATA, delay_s), "b": Source(log, OTHER, delay_s)}
    cache, rng = BlockCache(config), np.random.default_rng(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        which, offset = "ab"[int(rng.integers(2))], int(rng.integers(SIZE - 1))
        source = sources[which]
        length = int(rng.integers(1, min(3 * BLOCK, SIZE - offset) + 1))
        found = read(cache, shard_of(cache, f"s3://{which}"), source, offset, length)
        assert found == source.data[offset : offset + length]


def read_all(config: CacheConfig, log: Path, gate: object) -> None:
    cache, source = BlockCache(config), Source(log, delay_s=SLOW_S)
    gate.wait()  # type: ignore[attr-defined]
    assert read(cache, shard_of(cache), source, 0, SIZE) == DATA


def read_with_small_files(config: CacheConfig, log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK // 2, BLOCK // 2))
    assert read(cache := BlockCache(config), shard_of(cache), Source(log), 5, SIZE - 5) == DATA[5:]


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "shards.storage.cache"])
    return context


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path / "log")


@pytest.mark.parametrize("block_bytes", [4096, BLOCK, PAGE, 2 * PAGE + 12345, 10**6])
def test_any_part_equals_the_shard(tmp_path, source, block_bytes):
    cache = BlockCache(config_of(tmp_path, block_bytes=block_bytes))
    rng = np.random.default_rng(2)
    for offset in [0, SIZE - 1, *rng.integers(0, SIZE, 150).tolist()]:
        length = int(rng.integers(1, SIZE - offset + 1)) if offset % 2 else 1
        assert read(cache, shard_of(cache), source, offset, length) == DATA[offset : offset + length]
    assert read(cache, shard_of(cache), source, 0, SIZE) == DATA
    assert sorted(source.fetched()) == list(range(0, SIZE, block_bytes))


def test_a_second_process_finds_what_a_first_one_read(tmp_path, source):
    for _ in range(2):
        cache = BlockCache(config_of(tmp_path))
        assert read(cache, shard_of(cache), source, 100, 3 * BLOCK) == DATA[100 : 100 + 3 * BLOCK]
    assert source.fetched() == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]


@pytest.mark.parametrize("num_processes", [4])
def test_processes_that_start_together_fetch_each_block_once(tmp_path, source, processes, num_processes):
    gate = processes.Barrier(num_processes)
    workers = [
        processes.Process(target=read_all, args=(config_of(tmp_path), source.log, gate)) for _ in range(num_processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * num_processes
    assert sorted(source.fetched()) == list(range(0, SIZE, BLOCK))


def test_threads_fetch_each_block_once(tmp_path, source):
    cache, source.delay_s = BlockCache(config_of(tmp_path)), SLOW_S
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: read(cache, shard_of(cache), source, 7, SIZE - 7), range(6)))
    assert found == [DATA[7:]] * 6
    assert sorted(source.fetched()) == list(range(0, SIZE, BLOCK))


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _flip(path, 0),
        lambda path: _flip(path, BLOCK - 1),
        lambda path: _flip(path, BLOCK + 3),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(bytes(file_bytes(BLOCK))),
    ],
    ids=["first byte", "last byte", "checksum", "empty", "short", "long", "zeros"],
)
def test_a_damaged_block_is_fetched_again(tmp_path, source, caplog, damage):
    config = config_of(tmp_path)
    cache = BlockCache(config)
    read(cache, shard_of(cache), source, 0, SIZE)
    damage(block_path(config, 3))
    source.log.unlink()
    for _ in range(2):
        assert read(cache, shard_of(cache), source, 3 * BLOCK - 10, BLOCK) == DATA[3 * BLOCK - 10 : 4 * BLOCK - 10]
        assert read(cache, shard_of(cache), source, 4 * BLOCK - 10, 20) == DATA[4 * BLOCK - 10 : 4 * BLOCK + 10]
    assert source.fetched() == [3 * BLOCK]
    assert caplog.text.count("is damaged") == 1


def test_the_bound_holds_and_the_rest_is_still_right(tmp_path, source):
    config = config_of(tmp_path, num_bytes=7 * file_bytes(BLOCK) + 100)
    cache, rng = BlockCache(config), np.random.default_rng(3)
    most = 0
    for offset in rng.integers(0, SIZE - 3 * BLOCK, 120).tolist():
        assert read(cache, shard_of(cache), source, offset, 2 * BLOCK) == DATA[offset : offset + 2 * BLOCK]
        most = max(most, stored_bytes(config))
    assert 5 * BLOCK < most <= config.num_bytes


def test_the_least_recently_used_go_first(tmp_path, source):
    config = config_of(tmp_path, num_bytes=10 * file_bytes(BLOCK))
    cache = BlockCache(config)
    read(cache, shard_of(cache), source, 0, 10 * BLOCK)
    for age, number in enumerate((4, 8, 2, 0, 1, 3, 5, 6, 7, 9)):
        os.utime(block_path(config, number), times=(10**9 + age, 10**9 + age))
    read(cache, shard_of(cache), source, 8 * BLOCK + 5, 100)
    read(cache, shard_of(cache), source, 20 * BLOCK, 2 * BLOCK)
    kept = {int(path.name) for path in files(config)}
    assert {8, 20, 21, 7, 9} <= kept
    assert not {4, 2} & kept


def test_recency_is_written_once_a_minute_at_most(tmp_path, source):
    config = config_of(tmp_path)
    cache = BlockCache(config)
    read(cache, shard_of(cache), source, 0, 10)
    path = block_path(config, 0)
    recent = time.time() - 30
    os.utime(path, times=(recent, recent))
    read(cache, shard_of(cache), source, 0, 10)
    assert path.stat().st_mtime == pytest.approx(recent, abs=1)
    os.utime(path, times=(recent - 60, recent - 60))
    read(cache, shard_of(cache), source, 0, 10)
    assert path.stat().st_mtime > recent + 20


def test_two_sets_and_two_block_sizes_share_a_folder(tmp_path, source):
    other = Source(tmp_path / "other", OTHER)
    for block_bytes in (BLOCK, 5000):
        cache = BlockCache(config_of(tmp_path, block_bytes=block_bytes))
        for _ in range(2):
            assert read(cache, shard_of(cache), source, 0, 3 * BLOCK) == DATA[: 3 * BLOCK]
            assert read(cache, shard_of(cache, identity="b"), other, 0, 3 * BLOCK) == OTHER[: 3 * BLOCK]
            assert read(cache, shard_of(cache, location="s3://b"), other, 0, 10) == OTHER[:10]


def test_what_a_killed_writer_left_is_taken_over(tmp_path, source):
    config = config_of(tmp_path)
    cache = BlockCache(config)
    read(cache, shard_of(cache), source, 0, 10)
    left = block_path(config, 0).with_name("5.part")
    left.write_bytes(OTHER)
    assert read(cache, shard_of(cache), source, 5 * BLOCK, BLOCK) == DATA[5 * BLOCK : 6 * BLOCK]
    assert not left.exists()
    assert block_path(config, 5).stat().st_size == file_bytes(BLOCK)


@pytest.mark.parametrize("moment", ["_open_in_folder", "try_lock"])
def test_a_block_that_comes_while_its_lock_is_taken_is_not_fetched(tmp_path, source, monkeypatch, moment):
    config = config_of(tmp_path)
    cache = BlockCache(config)
    read(cache, shard_of(cache), source, 0, 10)
    block = block_path(config, 0)
    left = block.rename(block.with_name("0.part"))
    then = getattr(cache_module, moment)

    def another_is_done(argument):
        if left.exists() and not block.exists():
            left.rename(block)
        return then(argument)

    monkeypatch.setattr(cache_module, moment, another_is_done)
    inode = left.stat().st_ino
    assert read(cache, shard_of(cache), source, 5, 10) == DATA[5:15]
    assert source.fetched() == [0]
    assert [(path.name, path.stat().st_ino) for path in files(config)] == [("0", inode)]


def test_a_temporary_that_is_swept_while_its_lock_is_taken_is_left_to_the_next_writer(tmp_path, source, monkeypatch):
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 0.1)
    config = config_of(tmp_path)
    cache = BlockCache(config)
    temporary = Path(shard_of(cache).folder) / "0.part"
    others = []

    def another_sweeps_and_a_third_begins(descriptor: int) -> bool:
        if not others:
            temporary.unlink()
            others.append(temporary.open("wb"))
            fcntl.flock(others[0], fcntl.LOCK_EX)
        return try_lock(descriptor)

    try_lock = cache_module.try_lock
    monkeypatch.setattr(cache_module, "try_lock", another_sweeps_and_a_third_begins)
    assert read(cache, shard_of(cache), source, 0, 100) == DATA[:100]
    assert [path.name for path in files(config)] == ["0.part"]
    others[0].close()


def test_stale_temporaries_are_swept_and_living_ones_left(tmp_path, source):
    config = config_of(tmp_path)
    cache = BlockCache(config)
    folder = Path(shard_of(cache).folder)
    folder.mkdir(parents=True)
    (folder / "5.part").write_bytes(OTHER)
    (folder / "6.part").write_bytes(OTHER)
    with (folder / "6.part").open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        read(cache, shard_of(cache), source, 0, 10)  # the first block that a process stores counts all
    assert [path.name for path in files(config)] == ["0", "6.part"]


def test_a_writer_that_hangs_is_waited_for_only_so_long(tmp_path, source, monkeypatch):
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 0.1)
    config = config_of(tmp_path)
    cache = BlockCache(config)
    folder = Path(shard_of(cache).folder)
    folder.mkdir(parents=True)
    with (folder / "0.part").open("wb") as hanging:
        fcntl.flock(hanging, fcntl.LOCK_EX)
        assert read(cache, shard_of(cache), source, 0, 100) == DATA[:100]
        assert [path.name for path in files(config)] == ["0.part"]
    assert read(cache, shard_of(cache), source, 0, 100) == DATA[:100]
    assert [path.name for path in files(config)] == ["0"]


def test_a_failed_fetch_is_passed_on_and_leaves_nothing(tmp_path, source):
    def fail(offset: int, num_bytes: int) -> memoryview:
        raise StorageError("down")

    config = config_of(tmp_path)
    cache = BlockCache(config)
    with pytest.raises(StorageError, match="down"):
        cache.read_into(shard_of(cache), 0, memoryview(bytearray(10)), fail)
    assert files(config) == []
    assert read(cache, shard_of(cache), source, 0, 10) == DATA[:10]


def test_where_nothing_can_be_written_bytes_pass_through(tmp_path, source, processes):
    config = config_of(tmp_path)
    worker = processes.Process(target=read_with_small_files, args=(config, source.log))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert files(config) == []


def test_a_full_disk_is_said_once_and_tried_again_later(tmp_path, source, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config = config_of(tmp_path)
    cache = BlockCache(config)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "write_block", full)
        assert read(cache, shard_of(cache), source, 0, SIZE) == DATA
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left on device; reading goes on" in caplog.text
    assert files(config) == []
    monkeypatch.setattr(cache, "_passing_until", 0.0)
    read(cache, shard_of(cache), source, 0, 10)
    assert [path.name for path in files(config)] == ["0"]


def test_a_process_that_hangs_while_it_makes_room_is_not_waited_for_long(tmp_path, source, monkeypatch, caplog):
    monkeypatch.setattr(cache_space, "_PATIENCE_S", 0.05)
    config = config_of(tmp_path)
    cache = BlockCache(config)
    with (config.folder / "boldstream-blocks-1" / "used").open("wb") as hanging:
        fcntl.flock(hanging, fcntl.LOCK_EX)
        assert read(cache, shard_of(cache), source, 5, SIZE - 5) == DATA[5:]
    assert "another process keeps used locked; reading goes on" in caplog.text
    assert files(config) == []


def test_what_cannot_be_kept_is_fetched_without_the_rest_of_its_block(tmp_path, source, monkeypatch):
    cache = BlockCache(config_of(tmp_path))
    monkeypatch.setattr(cache, "_passing_until", float("inf"))
    assert read(cache, shard_of(cache), source, BLOCK + 5, BLOCK) == DATA[BLOCK + 5 : 2 * BLOCK + 5]
    assert source.fetched() == [BLOCK + 5, 2 * BLOCK]


def test_a_folder_that_vanishes_is_made_anew(tmp_path, source):
    config = config_of(tmp_path)
    cache = BlockCache(config)
    for _ in range(2):
        assert read(cache, shard_of(cache), source, 0, 2 * BLOCK) == DATA[: 2 * BLOCK]
        assert len(files(config)) == 2
        shutil.rmtree(config.folder)


def test_a_counter_that_is_wrong_is_counted_anew(tmp_path, source):
    config = config_of(tmp_path, num_bytes=10 * file_bytes(BLOCK))
    read(cache := BlockCache(config), shard_of(cache), source, 0, 10 * BLOCK)
    counter = next(config.folder.glob("*/used"))
    for content in (b"", bytes(8), b"\xff" * 8):
        counter.write_bytes(content)
        read(cache := BlockCache(config), shard_of(cache), source, 12 * BLOCK, 10 * BLOCK)
        assert stored_bytes(config) <= config.num_bytes


def test_files_of_others_in_the_folder_stay(tmp_path, source):
    config = config_of(tmp_path, num_bytes=3 * file_bytes(BLOCK))
    config.folder.mkdir()
    (config.folder / "thesis.tex").write_text("years of work")
    read(cache := BlockCache(config), shard_of(cache), source, 0, SIZE)
    assert (config.folder / "thesis.tex").read_text() == "years of work"
    assert (config.folder / "boldstream-blocks-1").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match="choose another folder for the cache"):
        BlockCache(config_of(tmp_path))


@pytest.mark.parametrize("wrong", [{"block_bytes": 1000}, {"num_bytes": BLOCK, "block_bytes": BLOCK}])
def test_a_cache_of_less_than_two_blocks_is_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=r"(num|block)_bytes \d+ of the cache"):
        CacheConfig(folder=tmp_path, **wrong)


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_of_readers_harms_nothing(tmp_path, source, processes, kills):
    config = config_of(tmp_path, num_bytes=20 * file_bytes(BLOCK))
    rng = np.random.default_rng(kills)

    def start(seed: int) -> multiprocessing.Process:
        worker = processes.Process(target=churn, args=(config, source.log, seed, 600.0, 0.002))
        worker.start()
        return worker

    workers = [start(seed) for seed in range(3)]
    while not source.fetched():
        time.sleep(0.01)
    for kill in range(kills):
        time.sleep(float(rng.uniform(0.02, 0.3)))
        worker = workers.pop(0)
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        workers.append(start(100 + kill))
        assert stored_bytes(config) <= config.num_bytes
    assert all(worker.is_alive() for worker in workers)  # none met a wrong byte, or waits for the dead
    for worker in workers:
        worker.kill()
        worker.join()
    churn(config, source.log, 1, 0.5, 0.0)
    assert not [path for path in files(config) if path.name.endswith(".part")]
    assert stored_bytes(config) <= config.num_bytes


def test_processes_over_two_sets_and_a_small_bound_read_right(tmp_path, source, processes):
    config = config_of(tmp_path, num_bytes=12 * file_bytes(BLOCK))
    workers = [processes.Process(target=churn, args=(config, source.log, seed, 1.5, 0.001)) for seed in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert stored_bytes(config) <= config.num_bytes
        time.sleep(0.02)
    assert [worker.exitcode for worker in workers] == [0] * 4
