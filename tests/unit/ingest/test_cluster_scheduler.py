"""Shard jobs on a Dask scheduler that somebody else runs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cluster_builds
import pytest
from cluster_builds import act, attempts, job
from distributed import LocalCluster
from test_cluster import Heard, built

import ingest.cluster.reach
from ingest.cluster.config import ClusterConfig
from ingest.cluster.schedule import ClusterLostError, build_all
from ingest.cluster.task import UnfitWorkerError
from shards.errors import UsageError


@pytest.fixture(scope="module")
def cluster():
    """A scheduler as Dask starts it, with two workers; --scheduler reaches it by its address alone."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50, memory_limit=0
    ) as cluster:
        yield ClusterConfig(scheduler=cluster.scheduler_address)


def test_all_is_built_and_the_scheduler_stays_for_the_next_call(cluster, tmp_path):
    for call in ("a", "b"):
        (tmp_path / call).mkdir()
        heard = Heard()
        lines = list(build_all([job(tmp_path / call, k, "fine", "fine") for k in range(5)], cluster, heard, act))
        assert len(built(lines)) == 5 and heard.counts[0] == 10


@pytest.mark.slow
def test_a_run_that_kills_its_workers_costs_that_run_alone(cluster, tmp_path):
    """The scheduler tries again by itself until it gives the task up."""
    jobs = [job(tmp_path, 0, "fine", "kills", "fine"), job(tmp_path, 1, "fine"), job(tmp_path, 2, "kills once")]
    lines = list(build_all(jobs, cluster, heard := Heard(), act))
    assert built(lines) == {
        "x-000000.tar": ["sub-0x0", "sub-0x2"],
        "x-000001.tar": ["sub-1x0"],
        "x-000002.tar": ["sub-2x0"],
    }
    assert heard.counts == (5, 5000, 1)


def test_a_task_nobody_waits_for_ends_after_its_run(cluster, tmp_path):
    long = job(tmp_path, 0, *["waits"] * 9)
    lines = build_all([job(tmp_path, 1, "waits"), long], cluster, Heard(), act)
    next(lines)
    lines.close()
    time.sleep(3)
    assert [attempts(long, run) for run in (0, 8)] == [1, 0]


def test_no_scheduler_is_one_line_within_seconds(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(UsageError, match=rf"--scheduler {address}: no Dask scheduler answers there \(.+\); start"):
            list(build_all([job(tmp_path, 0, "fine")], ClusterConfig(scheduler=address), Heard(), act))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_server_that_is_no_scheduler_is_one_line(tmp_path, monkeypatch, greeting):
    monkeypatch.setattr(ingest.cluster.reach, "CONNECT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=lambda: server.accept()[0].sendall(greeting) if greeting else None).start()
        with pytest.raises(UsageError, match="no Dask scheduler answers there"):
            list(build_all([job(tmp_path, 0, "fine")], ClusterConfig(scheduler=address), Heard(), act))


def test_workers_with_several_threads_are_refused_by_name(tmp_path):
    with LocalCluster(
        n_workers=1, threads_per_worker=3, processes=False, dashboard_address=":0", protocol="tcp", silence_logs=50
    ) as cluster:
        (worker,) = cluster.scheduler_info["workers"]
        with pytest.raises(
            UnfitWorkerError, match=f"worker {re.escape(worker)} has 3 threads.*--nthreads 1 --nworkers 3"
        ):
            config = ClusterConfig(scheduler=cluster.scheduler_address)
            list(build_all([job(tmp_path, 0, "fine")], config, Heard(), act))


def start(module: str, *arguments: str, paths: tuple[Path, ...] = ()) -> subprocess.Popen[bytes]:
    """A Dask scheduler or worker as a user starts it."""
    folders = [*map(str, paths), str(Path(cluster_builds.__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
        env=environment,
        cwd=folders[0],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def own_scheduler():
    """A scheduler process that a test may kill, its address, and a list for worker processes."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    workers: list[subprocess.Popen[bytes]] = []
    yield scheduler, address, workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


WORKER = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "20")


@pytest.mark.slow
def test_workers_may_come_later_and_the_wait_is_explained(own_scheduler, tmp_path):
    _, address, workers = own_scheduler
    heard = Heard()
    say = heard.say

    def say_and_start(line: str) -> None:
        say(line)
        if "has no worker" in line:
            workers.append(start("dask_worker", address, *WORKER))

    heard.say = say_and_start
    lines = list(build_all([job(tmp_path, 0, "fine")], ClusterConfig(scheduler=address), heard, act))
    assert built(lines) == {"x-000000.tar": ["sub-0x0"]}
    assert f"`dask worker {address} --nthreads 1`" in heard.said[-1]


@pytest.mark.slow
def test_a_scheduler_that_goes_away_is_one_line(own_scheduler, tmp_path):
    scheduler, address, workers = own_scheduler
    workers.append(start("dask_worker", address, *WORKER))
    lines = build_all([job(tmp_path, k, "waits") for k in range(9)], ClusterConfig(scheduler=address), Heard(), act)
    next(lines)
    scheduler.kill()
    with pytest.raises(ClusterLostError, match=r"the Dask scheduler is gone .*; finished shards are kept"):
        list(lines)


@pytest.mark.slow
def test_a_worker_of_another_version_is_refused_by_name(own_scheduler, tmp_path):
    _, address, workers = own_scheduler
    other = tmp_path / "site" / "boldstream-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: boldstream\nVersion: 99.0\n")
    workers.append(start("dask_worker", address, *WORKER, paths=(other.parent,)))
    with pytest.raises(UnfitWorkerError, match=r"worker tcp://127.0.0.1:\d+ on \S+ has boldstream 99.0, not"):
        list(build_all([job(tmp_path, 0, "fine")], ClusterConfig(scheduler=address), Heard(), act))
