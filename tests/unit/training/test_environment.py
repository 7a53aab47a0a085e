"""Start-up: which variables each launcher leaves, and a clean end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shards.errors import UsageError
from training import environment
from training.environment import LAUNCHER_VARIABLES

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
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")})
    for name in (*LAUNCHER_VARIABLES, "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    return monkeypatch


def test_plain_python_is_the_only_rank(launched: pytest.MonkeyPatch) -> None:
    environment._launcher_variables()
    assert [os.environ[name] for name in LAUNCHER_VARIABLES[:4]] == ["0", "1", "0", "127.0.0.1"]
    assert int(os.environ["MASTER_PORT"]) > 1023


def test_srun_gives_rank_world_and_the_first_host(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(environment, "_first_host", lambda nodes: f"first of {nodes}")
    os.environ.update(SRUN)
    environment._launcher_variables()
    assert [os.environ[name] for name in LAUNCHER_VARIABLES] == ["3", "4", "1", "first of n[1-2]", "20007"]


def test_the_batch_shell_of_slurm_is_not_a_step(launched: pytest.MonkeyPatch) -> None:
    os.environ.update({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"})
    environment._launcher_variables()
    assert os.environ["WORLD_SIZE"] == "1"


def test_torchrun_is_left_as_it_is(launched: pytest.MonkeyPatch) -> None:
    given = dict(zip(LAUNCHER_VARIABLES, ("1", "2", "1", "host", "29500"), strict=True))
    os.environ.update(given | SRUN)
    environment._launcher_variables()
    assert {name: os.environ[name] for name in LAUNCHER_VARIABLES} == given


def test_half_a_launcher_is_refused(launched: pytest.MonkeyPatch) -> None:
    os.environ["RANK"] = "0"
    with pytest.raises(UsageError, match="WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        environment._launcher_variables()


def test_the_process_group_is_closed_before_the_interpreter_ends() -> None:
    script = """
import atexit
def last():  # registered first, so it runs after what `enter` registers
    from torch import distributed
    print("open" if distributed.is_initialized() else "closed")
atexit.register(last)
from training import environment
place = environment.enter()
assert (place.rank, place.world_size, place.is_first) == (0, 1, True)
raise SystemExit(6)
"""
    env = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (6, "closed"), done.stderr
