"""Stand-ins for `build_shard` that worker processes import, and jobs for them: a run's file name says what happens."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from ingest.build import Report, ShardJob, build_shard
from shards.format import Grid
from shards.writer import TEMPORARY

AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
RUN_BYTES = 1000


def job(folder: Path, number: int, *runs: str) -> ShardJob:
    """A shard whose runs behave as named: `fine`, `kills`, `kills once`, `waits`."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    labels = {"session": "", "task": "", "run": "", "space": "", "tr_s": None, "entities": {}}
    records = [labels | {"subject": f"{number}x{k}", "bold": name} for k, name in enumerate(runs)]
    grid = Grid(shape=(1, 1, 1), affine=AFFINE)
    return ShardJob(
        out=out,
        name=f"x-{number:06d}.tar",
        base=folder,
        runs=records,
        grid=grid,
        dtype="int8",
        min_frames=2,
        tr_s=None,
    )


def act(job: ShardJob, report: Report) -> dict[str, Any]:
    """Do what the runs' names say; each attempt at a run leaves a line in a file of the run's name."""
    rows = []
    for values in job.runs:
        run_id = f"sub-{values['subject']}"
        if run_id not in job.without:
            first = _note(job.base / run_id)
            if values["bold"] == "kills" or (values["bold"] == "kills once" and first):
                (job.out / f"{TEMPORARY}{os.getpid()}-{job.name}").write_bytes(b"half a shard")
                os.kill(os.getpid(), signal.SIGKILL)
            if values["bold"] == "waits":
                time.sleep(1)
            rows.append({"run_id": run_id})
        report({"run_id": run_id, "num_bytes": RUN_BYTES, "failed": run_id in job.without})
    failures = [dict(failure) for failure in job.without.values()]
    return {"action": "shard", "status": "ok", "name": job.name, "info": None, "rows": rows, "failures": failures}


def die_at_once(job: ShardJob, report: Report) -> dict[str, Any]:
    """Take the worker down after the last run, where no run can be blamed."""
    act(job, report)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def attempts(job: ShardJob, run: int) -> int:
    """How often a run was begun."""
    path = job.base / f"sub-{job.runs[run]['subject']}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _note(path: Path) -> bool:
    first = not path.exists()
    with path.open("a") as file:
        file.write("begun\n")
    return first


def build_slowly(job: ShardJob, report: Report) -> dict[str, Any]:
    """The real thing, with a second to interfere."""
    time.sleep(1)
    return build_shard(job, report)
