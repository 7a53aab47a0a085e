"""`scripts/slurm/submit.sh`: three phases and the report, each a job that waits for the one before."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from two_nodes import SCRIPTS, ask_to_stop, ended, state, text, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = "--preset tiny --window 10 --batch_size 2 --val_runs 2 --log_every 1"
Note = Callable[[str, str, str], None]


@pytest.fixture
def study(checkout: Path) -> Path:
    """A simulated cohort as a shard set."""
    for command in (
        "simulate-fmri --out prep --subjects 24 --frames 30 --voxel-mm 12 --missing 0 --workers 1",
        "ingest-fmri --src prep --out shards --workers 0",
    ):
        subprocess.run(command.split(), check=True, capture_output=True, timeout=300)
    return checkout


def chain(**flags: str) -> list[str]:
    """Submit the chain, one task a job; returns the numbers of its jobs."""
    command = [str(SCRIPTS / "submit.sh"), "--nodes=1", "--ntasks-per-node=1"]
    variables = {"TARGET": "group", "DEEPSPEED_CONFIG": ""} | flags
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return re.findall(r"job (\d+)", done.stdout)


def test_the_chain_goes_through_also_when_a_phase_is_interrupted(study: Path, note: Note) -> None:
    jobs = chain(
        FLAGS_1=f"{SMALL} --steps 60",
        FLAGS_2=f"{SMALL} --steps 10",
        FLAGS_3=f"{SMALL} --steps 10 --val_every 5",
        FLAGS_EVAL="--bootstrap 100 --skip baselines controls embed explain",
    )
    log = study / "runs" / "p1" / "log.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count('"train"') > 3)
    ask_to_stop(jobs[0])
    wait_until(lambda: "stopped by a signal" in text(jobs[0]))
    assert [state(job) for job in jobs[1:]] == ["PENDING"] * 3
    for phase, job in zip((1, 2, 3), jobs, strict=False):
        assert ended(job) == ["COMPLETED"], text(job)
        assert json.loads((study / "runs" / f"p{phase}" / "config.json").read_text())["phase"] == phase
    assert "continuing after step" in text(jobs[0])
    assert ended(jobs[3], seconds=900) == ["COMPLETED"], text(jobs[3])
    assert (study / "report" / "report.html").exists()
    note("USR1 to phase 1 of submit.sh's chain", "it is queued again, the rest waits for it", "nothing")


def test_a_phase_that_fails_ends_the_chain(study: Path) -> None:
    jobs = chain(FLAGS_1=f"{SMALL} --steps 4", FLAGS_2="--window 10000 --preset tiny --batch_size 2")
    assert ended(jobs[0]) == ["COMPLETED"], text(jobs[0])
    assert ended(*jobs[1:]) == ["FAILED", "CANCELLED", "CANCELLED"]
