"""`scripts/slurm/train.sbatch` on two nodes: the losses of one process, whatever happens on the way."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from small_training import FLAGS, NUM_STEPS, Losses, assert_same_curve, losses
from two_nodes import ask_to_stop, ended, kill, node_down, node_up, state, submit, text, told, wait_until

Note = Callable[[str, str, str], None]


@pytest.fixture(scope="session")
def undisturbed() -> Losses:
    """The losses of one process, once they are known."""
    return {}


@pytest.fixture
def study(checkout: Path, make_shard_set: Callable[..., Any]) -> Path:
    """A working directory with a shard set."""
    make_shard_set(checkout / "shards", frames=(40,) * 16, runs_per_shard=16)
    return checkout


def train(out: str, *flags: str, nodes: int = 2, more: str = "") -> str:
    """Submit the script for a run whose steps hold four windows, one task a node; returns the number of the job."""
    flags = (f"--nodes={nodes}", "--ntasks-per-node=1", *flags)
    words = f"{FLAGS} --batch_size {4 // nodes} {more}"
    # a shell that is itself a rank, such as one inside another job, must not make every task rank 0 of 1
    inherited = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return submit("train.sbatch", *flags, OUT=out, DEEPSPEED_CONFIG="", FLAGS=words, **inherited)


def test_two_nodes_train_as_one_process(study: Path, undisturbed: Losses) -> None:
    job = train("two")
    step = ""
    while "CPUs" not in step and state(job) in ("PENDING", "RUNNING"):
        step = told("scontrol", "show", "step", f"{job}.0")
    assert ended(job) == ["COMPLETED"], text(job)
    assert_same_curve(study / "two", undisturbed)
    # what the header asks for is what the step gets: 32 cores for each task, and all GPUs of the nodes
    assert re.search(r"CPUs=64\b", step) and "gpu:4" in step and "NodeList=n[1-2]" in step, step


@pytest.mark.slow
def test_preflight_on_two_nodes_writes_nothing(study: Path) -> None:
    job = train("two", more="--preflight")
    assert ended(job) == ["COMPLETED"], text(job)
    assert re.search(r"2 ranks on \d hosts?: fit for training", text(job)), text(job)
    assert not (study / "two").exists()


def running_rank(job: str, rank: int) -> int:
    """The process of a rank of a job."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            names = process.environ() if "train.py" in (process.info["cmdline"] or []) else {}
            if (names.get("SLURM_JOB_ID"), names.get("SLURM_PROCID")) == (job, str(rank)):
                return process.pid
    pytest.fail(f"job {job} has no rank {rank}")


def reach(run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    wait_until(lambda: len(losses(run)) >= step)


def continued(job: str) -> list[int]:
    """The steps that a job went on after, each time it did."""
    return [int(step) for step in re.findall(r"continuing after step (\d+) of", text(job))]


def test_usr1_saves_and_the_job_is_queued_again(study: Path, undisturbed: Losses, note: Note) -> None:
    job = train("two")
    reach(study / "two", 5)
    ask_to_stop(job)
    wait_until(lambda: "stopped by a signal after step" in text(job))
    assert not (study / "two" / "model.json").exists()
    assert ended(job) == ["COMPLETED"], text(job)
    (stopped,) = map(int, re.findall(r"stopped by a signal after step (\d+)", text(job)))
    assert continued(job) == [stopped] and 5 <= stopped < NUM_STEPS
    assert_same_curve(study / "two", undisturbed)
    note("USR1 as before a time limit, two nodes", f"saved at step {stopped}, exit 85, requeued, continued", "nothing")


@pytest.mark.slow
def test_a_time_limit_that_comes_near_is_answered_in_time(study: Path, note: Note) -> None:
    job = train("long", "--time=2", "--signal=USR1@45", more="--steps 1000000 --val_every 1000000")
    wait_until(lambda: continued(job) != [])
    (stopped,) = map(int, re.findall(r"stopped by a signal after step (\d+)", text(job)))
    assert continued(job) == [stopped] and "DUE TO TIME LIMIT" not in text(job)
    subprocess.run(["scancel", job], check=True)
    note("--time nearly up", f"saved at step {stopped}, exit 85, requeued, continued", "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_a_signal_while_the_ranks_still_start_costs_a_start(
    signal: str, study: Path, undisturbed: Losses, note: Note
) -> None:
    job = train("two")
    wait_until(lambda: told("squeue", "-h", "-s", "-j", job, "-o", "%i").count(f"{job}.0") == 1)
    time.sleep(1)
    ask_to_stop(job, signal)
    assert ended(job) == ["COMPLETED"], text(job)
    assert_same_curve(study / "two", undisturbed)
    note(f"{signal} while python still imports", "the step ends by the signal, requeued", "the start")


@pytest.mark.slow
def test_an_urgent_job_takes_the_nodes_and_gives_them_back(study: Path, undisturbed: Losses, note: Note) -> None:
    (study / "urgent.sh").write_text("#!/bin/sh\n#SBATCH --output=urgent.out\nsleep 2\n")
    job = train("two")
    reach(study / "two", 5)
    urgent = submit(study / "urgent.sh", "--nodes=2", "--exclusive", "--partition=urgent")
    assert ended(urgent, job) == ["COMPLETED"] * 2, text(job)
    assert len(continued(job)) == 1
    assert_same_curve(study / "two", undisturbed)
    note("preempted by a partition of higher priority", f"saved at step {continued(job)[0]}, requeued", "nothing")


def test_a_killed_rank_ends_the_job_by_name_and_a_requeue_continues(
    study: Path, undisturbed: Losses, note: Note
) -> None:
    job = train("two")
    reach(study / "two", 15)
    kill(running_rank(job, 1))
    began = time.monotonic()
    assert ended(job, seconds=90) == ["FAILED"]
    took = time.monotonic() - began
    assert re.search(r"srun: error: \S+: task 1: Killed", text(job)), text(job)
    done = len(losses(study / "two"))
    subprocess.run(["scontrol", "requeue", job], check=True)
    assert ended(job) == ["COMPLETED"], text(job)
    (step,) = continued(job)
    assert step in range(10, NUM_STEPS, 10)
    assert_same_curve(study / "two", undisturbed)
    note("SIGKILL of rank 1", f"ends in {took:.0f} s naming task 1; requeued by hand", f"{done - step} steps, redone")


@pytest.mark.slow
def test_a_node_that_dies_takes_the_job_to_the_queue_again(study: Path, undisturbed: Losses, note: Note) -> None:
    job = train("two")
    reach(study / "two", 15)
    rank = running_rank(job, 1)
    for process in (psutil.Process(rank).ppid(), rank):  # Slurm's process beside the rank, too
        kill(process)
    node_down("n2")
    wait_until(lambda: state(job) == "PENDING")
    done = len(losses(study / "two"))
    node_up("n2")
    assert ended(job) == ["COMPLETED"], text(job)
    step = continued(job)[-1]
    assert_same_curve(study / "two", undisturbed)
    note("a node dies while training, is set down", "Slurm itself queues the job again", f"{done - step} steps, redone")


@pytest.mark.slow
def test_a_cancelled_job_saves_and_does_not_come_back(study: Path, note: Note) -> None:
    job = train("two")
    reach(study / "two", 5)
    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: "stopped by a signal" in text(job))
    assert ended(job) == ["CANCELLED"], text(job)
    time.sleep(12)  # longer than a requeued job waits
    assert state(job) == "CANCELLED" and not (study / "two" / "model.json").exists()
    note("scancel by its owner", "saved, is not queued again", "nothing: a later job continues")


@pytest.mark.slow
def test_a_run_goes_on_with_one_node_and_again_with_two(study: Path, undisturbed: Losses, note: Note) -> None:
    jobs = []
    for nodes, until in ((2, 15), (1, 35), (2, None)):
        jobs.append(train("run", nodes=nodes))
        if until is not None:
            reach(study / "run", until)
            ask_to_stop(jobs[-1])
            wait_until(lambda job=jobs[-1]: "stopped by a signal" in text(job) and state(job) == "PENDING")
            subprocess.run(["scancel", jobs[-1]], check=True)  # instead of it comes one of another size
    assert ended(jobs[-1]) == ["COMPLETED"], text(jobs[-1])
    assert "saved by 2 ranks, continued by 1: the same windows" in text(jobs[1])
    assert "saved by 1 ranks, continued by 2: the same windows" in text(jobs[2])
    assert_same_curve(study / "run", undisturbed)
    note("2 nodes, then 1, then 2", "the same windows in each step, the same losses", "nothing")
