"""Training and search on a real Slurm of two nodes, started on this machine (Debian: slurm-wlm, as root)."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "srun", "scontrol") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"no Slurm here ({', '.join(MISSING)} missing; apt-get install slurm-wlm)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting Slurm needs root"),
]

ROOT = Path(__file__).resolve().parents[2]
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
JobRequeue=1
KillWait=5
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""
NUM_STEPS = 60
TRAIN = (
    f"train.py --phase 1 --preset tiny --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2"
    " --window 10 --pca_frames 64 --val_runs 2 --log_every 1 --save_every 1000 --val_every 20 --shards shards"
    " --split_fractions 0.5 0.25 0.25"
)
JOB = f"""#!/bin/bash
srun {sys.executable} {ROOT}/{TRAIN} --batch_size 2 --out "$1"
code=$?
echo "ended with $code" >> ends.txt
if [ $code = 85 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
"""
FAKE = """
import json, signal, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
def note(text):
    with (out / "starts").open("a") as file:
        file.write(text + "\\n")
def stopped(*_):
    note("stopped")
    sys.exit(85)
signal.signal(signal.SIGTERM, stopped)
again = (out / "starts").exists()
note("started")
time.sleep(2 if again or Path("go").exists() else 600)
(out / "model.json").write_text(json.dumps({"val_score": float(sys.argv[sys.argv.index("--lr") + 1])}))
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
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
        patch.setenv("OMP_NUM_THREADS", "1")
        if not resolves("n1"):
            patch.setenv("MASTER_ADDR", "127.0.0.1")
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


def resolves(name: str) -> bool:
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, told("squeue") + told("bash", "-c", "tail -n 30 slurm-*.out tune-*.txt")
        time.sleep(0.2)


@pytest.fixture
def place(
    slurm: None, tmp_path: Path, make_shard_set: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A working directory with a shard set; no job outlives the test."""
    make_shard_set(tmp_path / "shards", frames=(40,) * 16, runs_per_shard=16)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    subprocess.run(["scancel", "--user=root"], check=True)
    wait_until(lambda: told("squeue", "-h") == "")


def submit(*words: str) -> str:
    """Submit a job; returns its number."""
    done = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def start_again(job: str) -> None:
    """Slurm waits two minutes before it starts a job again; 20 s are enough for the nodes to forget its end."""
    wait_until(lambda: told("squeue", "-h", "-j", job, "-t", "pending", "-o", "%A") != "")
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now+20"], check=True)


def losses(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["event"] == "train"]


def one_process(out: str) -> list[float]:
    command = [sys.executable, *f"{ROOT}/{TRAIN} --batch_size 4 --out {out}".split()]
    env = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return losses(Path(out))


def test_srun_on_two_nodes_trains_as_one_process_and_goes_on_after_usr1(place: Path) -> None:
    (place / "job.sh").write_text(JOB)
    job = submit("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append", "job.sh", "two")
    log = place / "two" / "log.jsonl"
    wait_until(lambda: log.exists() and len(losses_so_far(log)) >= 5)
    subprocess.run(
        ["scancel", "--signal=USR1", job], check=True
    )  # as --signal=USR1@60 does: to the tasks of every step
    wait_until((place / "ends.txt").exists)
    assert (place / "ends.txt").read_text() == "ended with 85\n"
    assert not (place / "two" / "model.json").exists()
    start_again(job)
    wait_until((place / "two" / "model.json").exists, 240)
    two, one = losses(place / "two"), one_process("one")
    assert len(one) == NUM_STEPS
    assert two == pytest.approx(one, rel=0, abs=1e-5)
    assert "continuing after step" in (place / f"slurm-{job}.out").read_text()


def losses_so_far(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if '"train"' in line]


def test_an_array_of_workers_shares_a_search_also_after_usr1(place: Path) -> None:
    pytest.importorskip("optuna")
    (place / "train.py").write_text(FAKE)
    (place / "scripts").symlink_to(ROOT / "scripts")
    (place / "tune.sbatch").write_text(script())
    job = submit("--array=0-1", "tune.sbatch")
    running = [place / "tuned" / f"trial-{k:05d}" / "starts" for k in range(2)]
    wait_until(lambda: all(path.exists() for path in running))
    (place / "go").touch()
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{job}_1"], check=True)  # as --signal=B:USR1@180 does
    wait_until(lambda: any("stopped" in path.read_text() for path in running))
    (stopped,) = [path for path in running if "stopped" in path.read_text()]
    (other,) = {*running} - {stopped}
    pid = (other.parent.parent / f"{other.parent.name}.alive").read_text().split()[1]
    os.kill(int(pid), 9)  # the other worker dies without a word
    start_again(f"{job}_1")
    wait_until((place / "tuned" / "trials.tsv").exists, 240)
    wait_until(lambda: (place / "tuned" / "trials.tsv").read_text().count("complete") == 6, 240)
    assert sum(path.is_dir() for path in (place / "tuned").iterdir()) == 6
    for k in range(6):
        starts = (place / "tuned" / f"trial-{k:05d}" / "starts").read_text().split()
        assert starts == (["started", "stopped", "started"] if k < 2 else ["started"]), k


def script() -> str:
    """The script that is shipped, with this test's search and without GPUs."""
    text = (ROOT / "scripts" / "slurm" / "tune.sbatch").read_text()
    head, rest = text.split("search=(\n")
    own = (
        f"search=(\n --out tuned --trials 6 --search lr=1e-4:1:log -- {sys.executable} train.py --phase 3 --init none\n"
    )
    lines = (head + own + " --target sex --shards shards\n)" + rest.split("\n)", 1)[1]).splitlines()
    assert len(lines) > 20
    cut = ("#SBATCH --gpus", "#SBATCH --cpus")
    return "".join(f"{line}\n" for line in lines if not line.startswith(cut)).replace("\npython", f"\n{sys.executable}")
