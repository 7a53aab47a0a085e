"""A run that was stopped and started again ends bit for bit where one that was left alone ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 40
SMALL = (
    f"--preset tiny --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2 --window 10"
    " --pca_frames 64 --val_runs 2 --log_every 1 --save_every 7 --val_every 10"
).split()
# everything that draws random numbers or moves between steps: dropout, both learning rates, the best so far
PHASE_3 = ["--phase", "3", "--init", "whole-1", "--target", "group", "--dropout", "0.2", "--patience", "99"]
PHASE_3 += ["--encoder_lr_scale", "1", "--sequence_lr_scale", "1"]
PHASE_1 = ["--phase", "1", "--split_fractions", "0.5", "0.25", "0.25"]
Processes = list[subprocess.Popen]


def start(folder: Path, out: str, *arguments: str, ranks: int = 1) -> Processes:
    """Start train.py, a process per rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--shards", "shards", "--out", out, *arguments]
    processes = []
    for rank in range(ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=folder, env=env, **pipes))
    return processes


def end(processes: Processes, expect: int = 0) -> str:
    """Wait for all ranks; what the first one told."""
    told = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [expect] * len(processes), told
    return told[0]


def stop_in_the_middle(processes: Processes, folder: Path, number: signal.Signals) -> None:
    """Send a signal to the last rank (SIGKILL: to all) once there are a checkpoint and two steps more."""
    deadline = time.monotonic() + 200
    while not ((folder / "checkpoints" / "latest").exists() and last_step(folder) % 7 >= 2):
        assert all(process.poll() is None for process in processes), end(processes)
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for process in processes if number == signal.SIGKILL else processes[-1:]:
        process.send_signal(number)


def last_step(folder: Path) -> int:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return max((record["step"] for record in parsed(lines[:-1])), default=0)


def parsed(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def curve(folder: Path) -> list[tuple]:
    """Every logged figure that does not depend on the clock."""
    names = ("event", "step", "loss", "grad_norm", "lr", "score", "mse", "latent_rank", "chosen_step")
    records = parsed((folder / "log.jsonl").read_text().splitlines())
    return [tuple(record.get(name) for name in names) for record in records]


def losses(lines: list[tuple]) -> list[float]:
    return [line[2] for line in lines if line[0] == "train"]


def assert_same_run(one: Path, other: Path) -> None:
    assert len(losses(curve(one))) == NUM_STEPS
    assert curve(one) == curve(other)
    for name in ("model.safetensors", "split.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share; what one has made is not made again."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture
def study(place: Path, make_shard_set: Callable[..., Any]) -> Path:
    """`shards`, and `whole-1`: phase 1 without interruption."""
    table = "participant_id\tgroup\n" + "".join(f"sub-{k:02d}\t{'ab'[k % 2]}\n" for k in range(16))
    if not (place / "shards").exists():
        make_shard_set(place / "shards", frames=(40,) * 16, runs_per_shard=16, participants=table)
        make_shard_set(place / "changed", frames=(40,) * 16, runs_per_shard=16, participants=table, seed=1)
        end(start(place, "whole-1", *PHASE_1))
    return place


def damage(checkpoints: Path) -> None:
    """What crashes at the worst moments leave: a checkpoint half written, and one that is not yet named."""
    newest = checkpoints / (checkpoints / "latest").read_text().strip()
    for name in ("partial-step00000014", "step00000039"):
        shutil.copytree(newest, checkpoints / name)
        for path in (checkpoints / name).rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:100])


@pytest.mark.distributed
def test_phase_1_after_a_kill_and_among_broken_checkpoints(study: Path) -> None:
    processes = start(study, "killed", *PHASE_1)
    stop_in_the_middle(processes, study / "killed", signal.SIGKILL)
    end(processes, -signal.SIGKILL)
    assert not (study / "killed" / "model.json").exists()
    checkpoint = (study / "killed" / "checkpoints" / "latest").read_text().strip()
    damage(study / "killed" / "checkpoints")
    told = end(start(study, "killed", *PHASE_1))
    assert f"continuing after step {int(checkpoint.removeprefix('step'))} of {NUM_STEPS}" in told
    assert_same_run(study / "whole-1", study / "killed")
    assert not list((study / "killed" / "checkpoints").glob("partial-*"))


@pytest.mark.distributed
def test_phase_3_after_sigterm(study: Path) -> None:
    whole, stopped = start(study, "whole-3", *PHASE_3), start(study, "stopped", *PHASE_3)
    stop_in_the_middle(stopped, study / "stopped", signal.SIGTERM)
    assert "the same command continues" in end(stopped, 85)
    assert not (study / "stopped" / "model.json").exists()
    assert "continuing after step" in end(start(study, "stopped", *PHASE_3))
    end(whole)
    assert_same_run(study / "whole-3", study / "stopped")


@pytest.mark.distributed
def test_two_processes_of_which_one_gets_sigusr1(study: Path) -> None:
    half = [*PHASE_1, "--batch_size", "2"]
    stopped = start(study, "two", *half, ranks=2)
    stop_in_the_middle(stopped, study / "two", signal.SIGUSR1)
    end(stopped, 85)
    assert "continuing after step" in end(start(study, "two", *half, ranks=2))
    one, two = curve(study / "whole-1"), curve(study / "two")
    assert [line[:2] for line in two] == [line[:2] for line in one]
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-5)


@pytest.mark.distributed
def test_a_continuation_that_differs_is_refused_and_named(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (study / "whole-1").rglob("*")}
    seed = start(study, "whole-1", *PHASE_1, "--seed", "1")
    shards = start(study, "whole-1", *PHASE_1, "--shards", "changed")
    again = start(study, "whole-1", *PHASE_1, "--resume", "no")
    assert "seed: found 0, now 1" in refusal(seed, 6)
    assert "set_hash" in refusal(shards, 6)
    assert "--resume auto" in refusal(again, 5)
    assert before == {path: path.stat().st_mtime_ns for path in (study / "whole-1").rglob("*")}


def refusal(processes: Processes, code: int) -> str:
    (line,) = [line for line in end(processes, code).splitlines() if line.startswith("error: ")]
    return line
