"""`scripts/slurm/eval.sbatch` on two nodes: what a signal ends is queued again, and goes on with the stages left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import write_run
from two_nodes import ask_to_stop, ended, submit, text, told, wait_until

from eval.cli import main
from shards.splits import make_split

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUBJECTS = tuple(f"{k:02d}" for k in range(40))
FLAGS = "--bootstrap 100 --models majority confounds mean_image fc mlp --skip controls embed explain"
Note = Callable[[str, str, str], None]


@pytest.fixture
def study(checkout: Path, make_shard_set: Callable[..., Any]) -> Path:
    """A working directory with a shard set and a finished phase-3 run."""
    rng = np.random.default_rng(5)
    num_voxels = int((np.random.default_rng(11).random((7, 8, 6)) > 0.4).sum())
    signals = {f"sub-{s}_task-rest": (1000 + 20 * rng.standard_normal((30, num_voxels))).astype("f4") for s in SUBJECTS}
    lines = [f"sub-{s}\t{'ab'[k % 2]}" for k, s in enumerate(SUBJECTS)]
    table = "participant_id\tgroup\n" + "\n".join(lines) + "\n"
    make_shard_set(checkout / "shards", signals=signals, participants=table, runs_per_shard=8)
    write_run(checkout / "p3", checkout / "shards", make_split(SUBJECTS, fractions=(0.5, 0.2, 0.3), seed=0))
    return checkout


def tables(report: Path) -> dict[str, bytes]:
    """Outputs of all models, by file."""
    return {str(path.relative_to(report)): path.read_bytes() for path in report.rglob("*.tsv")}


@pytest.mark.parametrize("signal", ["USR1", "TERM"])
def test_an_evaluation_that_is_interrupted_goes_on_where_it_was(signal: str, study: Path, note: Note) -> None:
    arguments = f"report --checkpoint p3 --shards shards --out alone {FLAGS}"
    assert main(arguments.split()) == 0
    job = submit("eval.sbatch", "--nodes=2", "--ntasks-per-node=1", CHECKPOINT="p3", OUT="report", FLAGS=FLAGS)
    predicted = study / "report" / "predictions" / "stage.json"
    wait_until(predicted.exists)
    made = predicted.stat().st_mtime_ns
    ask_to_stop(job, signal)
    assert ended(job, seconds=600) == ["COMPLETED"], text(job)
    assert "Restarts=1" in told("scontrol", "show", "job", job)
    assert (study / "report" / "report.html").exists() and predicted.stat().st_mtime_ns == made
    assert len(tables(study / "report")) == 3 and tables(study / "report") == tables(study / "alone")
    note(f"{signal} to an evaluation on two nodes", "queued again, goes on after the stages done", "the stage at hand")
