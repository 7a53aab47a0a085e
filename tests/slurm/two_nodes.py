"""A real Slurm on this machine: two nodes that claim 128 cores and 4 GPUs each, so that the job scripts fit.

Jobs are real: batch steps, `srun`, signals, requeues, preemption, nodes that go down. The nodes share this
machine's cores and its name, and nothing confines a job to what it asked for.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "slurm"
STAND_INS = ROOT / "tests" / "unit" / "ingest"
"""Builders of shards that the tests of ingest share with those on Slurm."""
COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
PATIENCE_S = 240.0
"""How long a test waits for anything; a machine may be busy."""
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=1
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=20
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=128 RealMemory=500000 Gres=gpu:4
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=100 PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefMemPerCPU=100 PriorityTier=2
"""
NODES = ("n1", "n2")


def why_not() -> str | None:
    """What this machine lacks to run a Slurm of its own, or None."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} missing; apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "starting a Slurm needs root"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Run the two nodes; gives the variables that commands and jobs need, and stops all of it at the end.

    Raises
    ------
    TimeoutError
        They did not come up; says what the daemons last wrote.
    """
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for unused in (a, b, c):
            unused.bind(("127.0.0.1", 0))
        ports = [unused.getsockname()[1] for unused in (a, b, c)]
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    # train.py meets on a port that follows from the number of the job: no two Slurms on a machine count from 1
    config = CONFIG.format(folder=folder, ports=ports, first_job=random.randrange(1000, 19000))
    (folder / "slurm.conf").write_text(config)
    stand_ins = ("null", "zero", "full", "random")  # a GPU is a device file, to Slurm
    (folder / "gres.conf").write_text("".join(f"Name=gpu File=/dev/{name}\n" for name in stand_ins))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
    variables |= {"DS_ACCELERATOR": "cpu"} | ({} if _resolves("n1") else {"MASTER_ADDR": "127.0.0.1"})
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        with environment(variables):
            daemons.append(_daemon(folder, "slurmctld", "-c", "-D"))
            _wait(lambda: told("sinfo", "-h") != "", folder, daemons)
            daemons += [_daemon(folder, "slurmd", "-D", "-N", node) for node in NODES]
            _wait(all_idle, folder, daemons)
        yield variables
    finally:
        for process in daemons[::-1]:
            process.terminate()
        for process in daemons:
            process.wait(30)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def _daemon(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start a daemon that ends with this process, however that ends."""
    with (folder / f"{'-'.join(command[::3])}.out").open("wb") as out:
        command = ("setpriv", "--pdeathsig", "TERM", *command)
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def _wait(true: Callable[[], bool], folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        if time.monotonic() > deadline or any(process.poll() is not None for process in daemons):
            lines = [f"{path.stem}: {path.read_text().strip()[-300:]}" for path in sorted(folder.glob("*.out"))]
            raise TimeoutError(" | ".join(lines))
        time.sleep(0.2)


def _resolves(name: str) -> bool:
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


def told(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def all_idle() -> bool:
    """Whether both nodes are up and empty."""
    return len(told("sinfo", "-h", "-N", "-p", "main", "-t", "idle").splitlines()) == len(NODES)


def clear() -> None:
    """Cancel all jobs, and bring both nodes up again."""
    subprocess.run(["scancel", "--user=root"], check=True)
    for node in NODES:
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
    wait_until(lambda: told("squeue", "-h") == "" and all_idle())


def wait_until(true: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait for something to become true; else fail with the queue and what the jobs last wrote."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            texts = [f"{path}:\n{path.read_text()[-3000:]}" for path in sorted(Path.cwd().glob("*.txt"))]
            pytest.fail("\n".join([f"not within {seconds:.0f} s", told("squeue"), *texts]))
        time.sleep(0.1)


def submit(script: str | Path, *flags: str, **variables: str) -> str:
    """Submit one of the project's scripts (or a path); returns the number of the job."""
    path = SCRIPTS / script
    command = ["sbatch", "--parsable", *flags, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(job: str) -> str:
    """A job's state as `scontrol` has it, such as RUNNING."""
    found = [word for word in told("scontrol", "show", "job", job).split() if word.startswith("JobState=")]
    return found[0].removeprefix("JobState=") if found else "GONE"


def ended(*jobs: str, seconds: float = PATIENCE_S) -> list[str]:
    """Wait until jobs are through, requeues included; returns their states."""
    wait_until(lambda: not {state(job) for job in jobs} & {"PENDING", "RUNNING", "COMPLETING", "REQUEUED"}, seconds)
    return [state(job) for job in jobs]


def text(job: str) -> str:
    """All that a job has printed so far, in the file that its script's header names."""
    return "".join(path.read_text() for path in Path.cwd().glob(f"*-{job}*.txt"))


def ask_to_stop(job: str, signal: str = "USR1") -> None:
    """Signal the tasks of a job, as Slurm does: USR1 at `--signal=USR1@180`, TERM when it is preempted."""
    subprocess.run(["scancel", f"--signal={signal}", job], check=True)


def node_down(node: str) -> None:
    """Tell Slurm that a node is gone: what runs there is ended, and nothing new is sent there."""
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)


def node_up(node: str) -> None:
    """Give a node back."""
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)


def kill(process: int) -> None:
    """End a process without a word."""
    os.kill(process, signal.SIGKILL)
