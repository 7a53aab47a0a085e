"""`scripts/slurm/ingest_array.sbatch` and `ingest.sbatch`: the bytes of one process, also when a node goes down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_set_bytes import FLAGS, NUM_SHARDS, contents
from two_nodes import STAND_INS, ended, node_down, node_up, state, submit, text, told, wait_until

Cohort = tuple[Path, dict[str, bytes]]
Note = Callable[[str, str, str], None]
SLOWLY = f"""#!{sys.executable}
import functools, sys
import ingest.run
from cluster_builds import build_slowly
from ingest.cli import main
ingest.run.build_all = functools.partial(ingest.run.build_all, build=build_slowly)
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def slowly(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ingest-fmri` takes a second more for each shard, so that there is a middle of it."""
    (checkout / "bin").mkdir()
    (checkout / "bin" / "ingest-fmri").write_text(SLOWLY)
    (checkout / "bin" / "ingest-fmri").chmod(0o755)
    monkeypatch.setenv("PATH", str(checkout / "bin"), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))


def array(src: Path, tasks: str, *flags: str, parts: int) -> str:
    variables = {"SRC": str(src), "OUT": "shards", "PARTS": str(parts), "FLAGS": " ".join(FLAGS)}
    return submit("ingest_array.sbatch", f"--array={tasks}", "--cpus-per-task=1", *flags, **variables)


def shards_done(part: str) -> int:
    ledger = Path("shards") / f"part-{part}.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return sum(json.loads(line)["action"] == "shard" for line in lines)


def test_an_array_and_its_merge_make_the_same_bytes(cohort: Cohort, checkout: Path) -> None:
    src, wanted = cohort
    parts = array(src, "1-3", parts=3)
    merge = array(src, "0", f"--dependency=afterany:{parts}", parts=3)
    assert ended(merge) == ["COMPLETED"], text(parts) + text(merge)
    assert contents(checkout / "shards") == wanted


@pytest.mark.parametrize("requeue", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_node_goes_down_in_the_middle_of_an_array(
    cohort: Cohort, checkout: Path, slowly: None, requeue: bool, note: Note
) -> None:
    src, wanted = cohort
    more = () if requeue else ("--no-requeue",)
    parts = array(src, "1-2", "--exclusive", *more, parts=2)
    wait_until(lambda: min(shards_done("1-of-2"), shards_done("2-of-2")) > 0)
    node = told("squeue", "-h", "-j", f"{parts}_2", "-o", "%N")
    node_down(node)
    wait_until(lambda: state(f"{parts}_2") != "RUNNING")
    assert shards_done("2-of-2") < NUM_SHARDS // 2
    merge = array(src, "0", f"--dependency=afterany:{parts}", parts=2)
    if requeue:
        assert ended(merge) == ["COMPLETED"], text(parts) + text(merge)
        note(
            "a node down during array ingest",
            "its task is queued again, on the other node",
            "a shard at most, redone",
        )
    else:
        assert ended(merge) == ["FAILED"]
        assert "1 part of 2 not finished (2/2); run --part for each first" in text(merge)
        assert shards_done("1-of-2") == NUM_SHARDS // 2
        node_up(node)
        again = array(src, "2", parts=2)
        merge = array(src, "0", f"--dependency=afterany:{again}", parts=2)
        assert ended(merge) == ["COMPLETED"], text(again) + text(merge)
        note("the same, without requeue", "the merge names the part; submitted again alone", "a shard at most, redone")
    assert contents(checkout / "shards") == wanted


def through_dask(src: Path) -> str:
    variables = {"SRC": str(src), "OUT": "shards", "WORKERS": "2", "MEMORY": "1GB", "FLAGS": " ".join(FLAGS)}
    return submit("ingest.sbatch", "--cpus-per-task=1", **variables)


def test_a_job_that_submits_its_workers_makes_the_same_bytes(cohort: Cohort, checkout: Path) -> None:
    src, wanted = cohort
    job = through_dask(src)
    assert ended(job) == ["COMPLETED"], text(job)
    assert "jobs ingest-" in text(job)
    assert contents(checkout / "shards") == wanted


@pytest.mark.slow
def test_the_job_that_holds_the_scheduler_is_requeued(cohort: Cohort, checkout: Path, slowly: None, note: Note) -> None:
    src, wanted = cohort
    job = through_dask(src)
    ledger = checkout / "shards" / "ledger.jsonl"
    wait_until(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") > 2)
    subprocess.run(["scontrol", "requeue", job], check=True)  # as a preemption without grace does
    assert not (checkout / "shards" / "manifest.json").exists()
    assert ended(job) == ["COMPLETED"], text(job)
    assert contents(checkout / "shards") == wanted
    wait_until(lambda: told("squeue", "-h") == "")  # workers of the scheduler that is gone, too
    note("the job that holds Dask's scheduler is requeued", "goes on; its first workers end", "the shards being built")
