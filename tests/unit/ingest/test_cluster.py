"""Shard jobs on worker processes, some of which are killed for real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cluster_builds
import psutil
import pytest
from cluster_builds import RUN_BYTES, act, attempts, die_at_once, job

import ingest.cluster.task
from ingest.cluster.config import ClusterConfig
from ingest.cluster.schedule import build_all
from ingest.cluster.task import Expected
from shards.errors import OutputError
from shards.writer import TEMPORARY

TWO = ClusterConfig(workers=2)


class Heard:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.begun = self.runs = self.num_bytes = self.failures = 0
        self.said: list[str] = []
        self.moments: list[float] = []

    def begin(self) -> None:
        self.begun += 1

    def advance(self, *, runs: int, num_bytes: int, failures: int) -> None:
        self.moments.append(time.monotonic())
        self.runs += runs
        self.num_bytes += num_bytes
        self.failures += failures

    def say(self, line: str) -> None:
        self.said.append(line)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.runs, self.num_bytes, self.failures


def built(lines) -> dict[str, list[str]]:
    return {line["name"]: [row["run_id"] for row in line["rows"]] for line in lines}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_shard_is_built_once_and_every_run_counted_once(tmp_path, workers):
    jobs = [job(tmp_path, k, "fine", "fine") for k in range(5)]
    heard = Heard()
    lines = list(build_all(jobs, ClusterConfig(workers=workers), heard, act))
    assert built(lines) == {f"x-{k:06d}.tar": [f"sub-{k}x0", f"sub-{k}x1"] for k in range(5)}
    assert heard.counts == (10, 10 * RUN_BYTES, 0)
    assert heard.begun == 1
    assert {attempts(job, run) for job in jobs for run in range(2)} == {1}


def test_progress_comes_after_each_run_of_a_long_shard(tmp_path):
    heard = Heard()
    list(build_all([job(tmp_path, 0, "fine", "waits", "waits")], ClusterConfig(workers=1), heard, act))
    first, second, third = heard.moments
    assert 0.5 < second - first < 1.9 and 0.5 < third - second < 1.9


def test_no_jobs_start_no_cluster():
    heard = Heard()
    assert list(build_all([], TWO, heard, act)) == [] and heard.said == []


@pytest.fixture(scope="module")
def with_deaths(tmp_path_factory):
    """Shards of which some kill their worker: the lines, what was heard, the jobs."""
    folder = tmp_path_factory.mktemp("deaths")
    jobs = [
        job(folder, 0, "fine", "waits"),
        job(folder, 1, "fine", "kills", "fine"),
        job(folder, 2, "kills once", "fine"),
        job(folder, 3, "fine", "kills once", "kills", "fine"),
    ]
    heard = Heard()
    return list(build_all(jobs, TWO, heard, act)), heard, jobs


def test_a_run_that_kills_its_worker_costs_that_run_alone(with_deaths):
    lines, _, _ = with_deaths
    assert built(lines)["x-000001.tar"] == ["sub-1x0", "sub-1x2"]
    assert built(lines)["x-000003.tar"] == ["sub-3x0", "sub-3x1", "sub-3x3"]


def test_a_killed_worker_loses_nothing(with_deaths):
    lines, _, _ = with_deaths
    assert built(lines)["x-000002.tar"] == ["sub-2x0", "sub-2x1"]


def test_the_run_that_kills_is_on_record_with_reason_and_remedy(with_deaths):
    lines, _, _ = with_deaths
    failures = [failure for line in lines for failure in line["failures"]]
    assert sorted(failure["run_id"] for failure in failures) == ["sub-1x1", "sub-3x2"]
    assert {failure["stage"] for failure in failures} == {"worker"}
    assert failures[0]["reason"] == "2 worker processes died while working on it, the last one with nothing beside it"
    assert "nibabel" in failures[0]["remedy"] and failures[0]["source"] == "kills"


def test_a_run_that_kills_is_tried_twice(with_deaths):
    _, _, jobs = with_deaths
    assert attempts(jobs[1], 1) == attempts(jobs[3], 2) == 2


def test_shards_that_are_built_again_are_counted_once(with_deaths):
    _, heard, _ = with_deaths
    assert heard.counts == (11, 11 * RUN_BYTES, 2)


def test_deaths_are_told_with_the_run_and_the_process(with_deaths):
    _, heard, _ = with_deaths
    (line,) = [line for line in heard.said if "sub-2x0" in line]
    assert line.startswith("process ") and line.endswith("died while working on sub-2x0: x-000002.tar is built again")


def test_what_killed_workers_left_is_removed(with_deaths):
    _, _, jobs = with_deaths
    assert list(jobs[0].out.glob(f"{TEMPORARY}*")) == []


@pytest.mark.slow
def test_a_shard_that_kills_without_a_run_to_blame_stays_pending(tmp_path):
    killer = job(tmp_path, 0, "fine")
    (line,) = build_all([killer], ClusterConfig(workers=1), Heard(), die_at_once)
    assert (line["status"], line["rows"], line["failures"]) == ("error", [], [])
    assert attempts(killer, 0) == 3


def unwritable(job, report):
    raise OutputError(f"{job.out}: no room; make room")


def test_an_output_error_of_a_worker_ends_the_call_with_its_own_words(tmp_path):
    with pytest.raises(OutputError, match="no room; make room"):
        list(build_all([job(tmp_path, 0, "fine")], ClusterConfig(workers=1), Heard(), unwritable))


def test_workers_of_another_version_are_unfit(tmp_path, monkeypatch):
    expected = Expected.of(job(tmp_path, 0, "fine"))
    assert expected.misfit() is None
    monkeypatch.setattr(ingest.cluster.task, "_versions", lambda: dict.fromkeys(expected.versions, "0.0"))
    assert "has boldstream 0.0, not" in expected.misfit()


@pytest.mark.parametrize("gone", ["out", "."])
def test_workers_that_do_not_see_a_folder_are_unfit(tmp_path, gone):
    expected = Expected.of(job(tmp_path, 0, "fine"))
    there = replace(expected, out=tmp_path / "no") if gone == "out" else replace(expected, base=tmp_path / "no")
    assert f"does not see the folder {tmp_path / 'no'}" in there.misfit()


def test_workers_that_see_another_mask_are_unfit(tmp_path):
    expected = Expected.of(job(tmp_path, 0, "fine"))
    (tmp_path / "out" / "mask.nii.gz").write_bytes(b"another")
    assert "sees another" in expected.misfit()


DRIVER = """
import signal, sys
from pathlib import Path
from cluster_builds import act, job
from ingest.cli import _interruptible, _Interrupted
from ingest.cluster.schedule import build_all
from ingest.cluster.config import ClusterConfig
from test_cluster import Heard

if __name__ == "__main__":
    heard = Heard()
    heard.say = lambda line: None
    folder = Path(sys.argv[1])
    try:
        with _interruptible():
            jobs = [job(folder, k, *["waits"] * 9) for k in range(4)]
            for line in build_all(jobs, ClusterConfig(workers=2), heard, act):
                print(line["name"])
    except _Interrupted:
        sys.exit(130)
"""


@pytest.fixture
def at_work(tmp_path):
    """A process with two workers that build, and the workers."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": str(Path(cluster_builds.__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        start_new_session=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("sub-*"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    yield process, family
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        (signal.SIGINT, True),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_workers_at_work_in_silence(at_work, number, whole_group):
    process, family = at_work
    assert len(family) >= 2
    (os.killpg if whole_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_call(at_work):
    process, family = at_work
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
