"""Ingest with `--cluster slurm`: workers in jobs of a real Slurm, through dask-jobqueue."""

from __future__ import annotations

import functools
import subprocess
import threading
from pathlib import Path

import cluster_builds
import pytest
from cluster_builds import act, attempts, build_slowly, job
from shard_set_bytes import FLAGS, contents
from test_cluster import Heard, built
from two_nodes import told, wait_until

import ingest.cluster.queue_pool
import ingest.run
from ingest.cli import main
from ingest.cluster.config import ClusterConfig
from ingest.cluster.queue_pool import NoWorkersError
from ingest.cluster.schedule import build_all
from shards.errors import UsageError

pytestmark = pytest.mark.slow

SLURM = ClusterConfig(cluster="slurm", workers=2, cluster_options=("memory=1GB",))


@pytest.fixture(autouse=True)
def quickly(slurm, monkeypatch):
    """Ask the queue every few seconds instead of half-minutes, and let the jobs find the builders of this test."""
    for name, seconds in (("LOOK_EVERY_S", 2.0), ("FIRST_LOOK_S", 1.0), ("SAY_EVERY_S", 3.0)):
        monkeypatch.setattr(ingest.cluster.queue_pool, name, seconds)
    monkeypatch.setenv("PYTHONPATH", str(Path(cluster_builds.__file__).parent))


def on_slurm(src: Path, out: Path) -> int:
    return main(["--src", str(src), "--out", str(out), "--cluster", "slurm", "--workers", "2", *FLAGS])


def test_workers_in_slurm_jobs_make_the_same_bytes(cohort, tmp_path):
    src, wanted = cohort
    assert on_slurm(src, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == wanted
    assert not (tmp_path / "out" / ".worker-logs").exists()


@pytest.mark.parametrize("num_cancelled", [1, 2])
def test_jobs_cancelled_in_the_middle_are_replaced_and_lose_nothing(
    cohort, tmp_path, monkeypatch, num_cancelled, capfd
):
    src, wanted = cohort
    out = tmp_path / "out"
    monkeypatch.setattr(ingest.run, "build_all", functools.partial(build_all, build=build_slowly))

    def cancel() -> None:
        wait_until(lambda: (out / "ledger.jsonl").exists() and (out / "ledger.jsonl").read_bytes().count(b"\n") > 2)
        subprocess.run(["scancel", *told("squeue", "-h", "-o", "%A").split()[:num_cancelled]], check=True)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    assert on_slurm(src, out) == 0
    canceller.join()
    assert contents(out) == wanted
    assert "ended; going on with 2" in capfd.readouterr().err


def test_a_run_that_kills_its_worker_costs_that_run_alone(tmp_path):
    jobs = [job(tmp_path, 0, "fine", "kills", "fine"), job(tmp_path, 1, "kills once"), job(tmp_path, 2, "waits")]
    lines = list(build_all(jobs, SLURM, heard := Heard(), act))
    assert built(lines)["x-000000.tar"] == ["sub-0x0", "sub-0x2"] and built(lines)["x-000001.tar"] == ["sub-1x0"]
    assert attempts(jobs[0], 1) == 3 and heard.counts == (5, 5000, 1)
    assert f"what the jobs print is kept in {tmp_path / 'out' / '.worker-logs'}" in heard.said


def test_several_workers_share_a_job(tmp_path):
    config = ClusterConfig(cluster="slurm", workers=2, cluster_options=("cores=2", "memory=2GB"))
    heard = Heard()
    lines = list(build_all([job(tmp_path, k, "waits") for k in range(4)], config, heard, act))
    assert len(lines) == 4
    assert heard.said[0].startswith("1 job ingest-") and "and 2 workers" in heard.said[0]


def test_a_job_that_slurm_refuses_is_one_line(tmp_path):
    config = ClusterConfig(cluster="slurm", workers=2, cluster_options=("queue=nowhere", "memory=1GB"))
    with pytest.raises(
        UsageError, match=r"sbatch refused the job: .*Invalid partition name.*; check --cluster-options"
    ):
        list(build_all([job(tmp_path, 0, "fine")], config, Heard(), act))


def test_jobs_that_end_before_a_worker_starts_are_one_line_with_their_last_words(tmp_path):
    config = ClusterConfig(cluster="slurm", workers=2, cluster_options=("python=/no/python", "memory=1GB"))
    with pytest.raises(NoWorkersError, match=r"2 jobs ended before a worker started; .*/no/python: No such file"):
        list(build_all([job(tmp_path, 0, "fine")], config, Heard(), act))


def test_a_wait_in_the_queue_is_explained_and_ended_by_ctrl_c(tmp_path):
    subprocess.run(["scontrol", "update", "partitionname=main", "state=down"], check=True)
    heard = Heard()

    class CtrlC(BaseException):
        pass

    def say(line: str) -> None:
        heard.said.append(line)
        if len(heard.said) == 3:
            raise CtrlC

    heard.say = say
    try:
        with pytest.raises(CtrlC):
            list(build_all([job(tmp_path, 0, "fine")], SLURM, heard, act))
    finally:
        subprocess.run(["scontrol", "update", "partitionname=main", "state=up"], check=True)
    assert heard.said[1] == "0 of 2 workers are connected; squeue shows 2 PENDING (PartitionDown)"
