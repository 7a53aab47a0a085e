"""Start-up: which variables each launcher leaves, and a clean end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import UsageError
from training.engine import environment
from training.engine.environment import LAUNCHER_VARIABLES, PeerLostError

SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "20007",
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which no launcher has been."""
    others = ("SLURM_", "OMPI_", "PMI_", "PALS_", "PBS_", "MPI_")
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(others)})
    for name in (*LAUNCHER_VARIABLES, "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return monkeypatch


def test_plain_python_is_the_only_rank(launched: pytest.MonkeyPatch) -> None:
    environment._launcher_variables(os.environ)
    assert [os.environ[name] for name in LAUNCHER_VARIABLES[:4]] == ["0", "1", "0", "127.0.0.1"]
    assert int(os.environ["MASTER_PORT"]) > 1023


def test_srun_gives_rank_world_and_the_first_host(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(environment, "_first_host", lambda nodes: f"first of {nodes}")
    os.environ.update(SRUN)
    environment._launcher_variables(os.environ)
    assert [os.environ[name] for name in LAUNCHER_VARIABLES] == ["3", "4", "1", "first of n[1-2]", "20007"]


def test_asking_how_many_ranks_there_are_sets_nothing(launched: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    assert environment.world_size_of_launcher() == 1 and dict(os.environ) == before
    os.environ.update(SRUN | {"MASTER_ADDR": "n1"})
    before = dict(os.environ)
    assert environment.world_size_of_launcher() == 4 and dict(os.environ) == before


def test_the_batch_shell_of_slurm_is_not_a_step(launched: pytest.MonkeyPatch) -> None:
    os.environ.update({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"})
    environment._launcher_variables(os.environ)
    assert os.environ["WORLD_SIZE"] == "1"


def test_torchrun_is_left_as_it_is(launched: pytest.MonkeyPatch) -> None:
    given = dict(zip(LAUNCHER_VARIABLES, ("1", "2", "1", "host", "29500"), strict=True))
    os.environ.update(given | SRUN)
    environment._launcher_variables(os.environ)
    assert {name: os.environ[name] for name in LAUNCHER_VARIABLES} == given


OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
PALS = {
    "PMI_RANK": "6",
    "PMI_SIZE": "8",
    "PALS_LOCAL_RANKID": "2",
    "PALS_RANKID": "6",
    "PBS_JOBID": "123456.polaris-pbs-01",
}


def test_mpiexec_on_a_pbs_machine_meets_on_the_first_host_of_the_job(
    launched: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nodes").write_text("x3001c0s1\nx3001c0s7\n")
    os.environ.update(PALS | {"PBS_NODEFILE": str(tmp_path / "nodes")})
    assert environment.rank_of_launcher() == 6
    environment._launcher_variables(os.environ)
    assert [os.environ[name] for name in LAUNCHER_VARIABLES] == [
        "6",
        "8",
        "2",
        "x3001c0s1",
        str(20000 + 123456 % 20000),
    ]


def test_mpirun_on_one_node_needs_no_job(launched: pytest.MonkeyPatch) -> None:
    os.environ.update(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "8"})
    environment._launcher_variables(os.environ)
    assert [os.environ[name] for name in LAUNCHER_VARIABLES] == ["5", "8", "1", "127.0.0.1", "29500"]
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"


@pytest.mark.parametrize("mpi", [OPEN_MPI, {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}])
def test_mpirun_inside_a_slurm_job_is_not_taken_for_the_step_of_its_daemons(
    launched: pytest.MonkeyPatch, mpi: dict[str, str]
) -> None:
    launched.setattr(environment, "_first_host", lambda nodes: f"first of {nodes}")
    os.environ.update(SRUN | mpi | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"})
    environment._launcher_variables(os.environ)
    assert [os.environ[name] for name in LAUNCHER_VARIABLES] == ["5", "8", "1", "first of n[1-2]", "20007"]


def test_srun_with_pmi_is_srun(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(environment, "_first_host", lambda nodes: "n1")
    os.environ.update(SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"})
    environment._launcher_variables(os.environ)
    assert [os.environ[name] for name in LAUNCHER_VARIABLES[:3]] == ["3", "4", "1"]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (OPEN_MPI, "MASTER_ADDR"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "LOCAL_RANK"),
        (PALS | {"PBS_NODEFILE": "/nowhere"}, "MASTER_ADDR"),
    ],
)
def test_what_mpi_does_not_tell_is_asked_for(launched: pytest.MonkeyPatch, given: dict[str, str], missing: str) -> None:
    os.environ.update(given)
    with pytest.raises(UsageError, match=f"export {missing}"):
        environment._launcher_variables(os.environ)


def test_the_first_rank_tells_an_error_at_once_and_another_waits(
    launched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    launched.setattr(environment.time, "sleep", waited.append)
    os.environ["RANK"] = "0"
    environment.tell(UsageError("wrong"))
    assert (capsys.readouterr().err, waited) == ("error: wrong\n", [])
    os.environ["RANK"] = "3"
    environment.tell(UsageError("wrong"))
    assert re.fullmatch(r"error on rank 3 \(.+\): wrong\n", capsys.readouterr().err) and waited[0] >= 2


def test_only_a_lost_peer_is_taken_for_one() -> None:
    environment.raise_if_peer_lost(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(PeerLostError, match="another rank has ended"):
        environment.raise_if_peer_lost(RuntimeError("[gloo/pair.cc:553] Connection closed by peer [10.0.0.1]:13746"))


def test_half_a_launcher_is_refused(launched: pytest.MonkeyPatch) -> None:
    os.environ["RANK"] = "0"
    with pytest.raises(UsageError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        environment._launcher_variables(os.environ)


def test_the_process_group_is_closed_before_the_interpreter_ends() -> None:
    script = """
import atexit
def last():  # registered first, so it runs after what `enter` registers
    from torch import distributed
    print("open" if distributed.is_initialized() else "closed")
atexit.register(last)
from training.engine import environment
place = environment.enter()
assert (place.rank, place.world_size, place.is_first) == (0, 1, True)
raise SystemExit(6)
"""
    env = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (6, "closed"), done.stderr
