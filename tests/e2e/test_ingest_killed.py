"""A cohort of 200 runs: kill -9 at 50 random moments, and what a call without work does and does not touch."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ingest.simulate.config import SimulateConfig
from ingest.simulate.run import simulate

NUM_KILLS = 50
RECORDS = ("ledger.jsonl", "report.html")
"""They tell when and how fast things were done."""
_COMMAND = "import sys; from ingest.cli import main; sys.exit(main())"
_WATCHED = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from ingest.cli import main
code = main()
print(json.dumps([code, opened]))
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "cohort"
    simulate(SimulateConfig(out=folder, subjects=200, frames=40, voxel_mm=8, seed=3, workers=2), lambda *_: None)
    return folder


def arguments(cohort: Path, out: Path) -> list[str]:
    return ["--src", str(cohort), "--out", str(out), "--workers", "2", "--shard-size", "2MB"]


def start(cohort: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments(cohort, out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
    process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in RECORDS}


def finish(cohort: Path, out: Path) -> None:
    process = start(cohort, out)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_fifty_random_moments_and_resumed_the_bytes_are_those_of_an_undisturbed_call(cohort, tmp_path):
    began = time.monotonic()
    finish(cohort, tmp_path / "whole")
    whole_s = time.monotonic() - began
    wanted = contents(tmp_path / "whole")
    assert sum(name.endswith(".tar") for name in wanted) > 10
    rng = random.Random(7)
    kills, trial = 0, 0
    while kills < NUM_KILLS:
        trial += 1
        out = tmp_path / f"out{trial}"
        for _ in range(5):  # in one folder, one after the other
            process = start(cohort, out)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.3, whole_s))
            if process.poll() is not None:
                process.communicate()
                break
            kill(process)
            kills += 1
        finish(cohort, out)
        assert contents(out) == wanted, f"trial {trial}"
    print(f"{kills} kills in {trial} folders, each cmp-equal to {len(wanted)} files of an undisturbed call")


def test_a_call_without_work_opens_no_input_and_is_soon_done(cohort, tmp_path):
    out = tmp_path / "out"
    finish(cohort, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = subprocess.run(
        [sys.executable, "-c", _WATCHED, *arguments(cohort, out)], capture_output=True, text=True, check=True
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, opened = json.loads(again.stdout.splitlines()[-1])
    assert code == 0 and "nothing to do: 200 runs" in again.stdout
    assert [path for path in opened if path.startswith(str(cohort)) and "participants" not in path] == []
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime < 2.0  # CPU seconds: the machine may be busy
