"""Ingest on a real Slurm of two nodes, which the tests start on this machine (Debian: slurm-wlm, as root)."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster_builds
import pytest
from cluster_builds import act, attempts, build_slowly, job
from test_cluster import Heard, built

import ingest.cluster.queue_pool
import ingest.run
from ingest.cli import main
from ingest.cluster.config import ClusterConfig
from ingest.cluster.queue_pool import NoWorkersError
from ingest.cluster.schedule import build_all
from shards.errors import UsageError

MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "squeue", "scancel") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no Slurm here ({', '.join(MISSING)} missing; apt-get install slurm-wlm)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting Slurm needs root"),
]

CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=5
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""
SLURM = ClusterConfig(cluster="slurm", workers=2, cluster_options=("memory=1GB",))
FLAGS = ("--shard-size", "10kB")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[None]:
    """Two nodes of this machine; SLURM_CONF points to them."""
    folder = tmp_path_factory.mktemp("slurm")
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for unused in (a, b, c):
            unused.bind(("127.0.0.1", 0))
        ports = [unused.getsockname()[1] for unused in (a, b, c)]
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, ports=ports))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PYTHONPATH", str(Path(cluster_builds.__file__).parent))
        daemons = [daemon(folder, "slurmctld", "-c", "-D")]
        wait_until(lambda: told("sinfo", "-h") != "")
        daemons += [daemon(folder, "slurmd", "-D", "-N", node) for node in ("n1", "n2")]
        wait_until(lambda: len(told("sinfo", "-h", "-N", "-t", "idle").splitlines()) == 2)
        yield
        for process in daemons[::-1]:
            process.terminate()
        for process in daemons:
            process.wait(30)


def daemon(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    with (folder / f"{command[-1]}.out").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


@pytest.fixture(autouse=True)
def quickly(slurm, monkeypatch):
    """Ask the queue every few seconds instead of half-minutes; no job outlives its test."""
    for name, seconds in (("LOOK_EVERY_S", 2.0), ("FIRST_LOOK_S", 1.0), ("SAY_EVERY_S", 3.0)):
        monkeypatch.setattr(ingest.cluster.queue_pool, name, seconds)
    yield
    wait_until(lambda: told("squeue", "-h") == "", 30)


@pytest.fixture
def whole(make_bids, tmp_path):
    """A source, and what this process makes of it."""
    src, out = make_bids([f"{k:02d}" for k in range(1, 13)]), tmp_path / "whole"
    assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
    return src, contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    """All but what says when and how it was made."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in ("ledger.jsonl", "report.html")]
    return {path.name: path.read_bytes() for path in files}


def on_slurm(src: Path, out: Path) -> int:
    return main(["--src", str(src), "--out", str(out), "--cluster", "slurm", "--workers", "2", *FLAGS])


def test_workers_in_slurm_jobs_make_the_same_bytes(whole, tmp_path):
    src, wanted = whole
    assert on_slurm(src, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == wanted
    assert not (tmp_path / "out" / ".worker-logs").exists()


@pytest.mark.parametrize("num_cancelled", [1, 2])
def test_jobs_cancelled_in_the_middle_are_replaced_and_lose_nothing(whole, tmp_path, monkeypatch, num_cancelled, capfd):
    src, wanted = whole
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
