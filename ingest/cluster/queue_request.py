"""What each job asks the queue for, and how it starts its workers: arguments for dask-jobqueue."""

from __future__ import annotations

import math
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.build import ShardJob, read_set_mask
from ingest.cluster.config import ClusterConfig, format_walltime
from ingest.failures import RunError
from ingest.nifti import read_header
from shards.errors import UsageError
from shards.format import MASK

LOGS = ".worker-logs"
"""Folder in --out for what the jobs print; removed unless a worker died."""
DEATH_TIMEOUT_S = 300
"""A worker that cannot reach the scheduler for so long ends its job."""
_BASE_BYTES = 1_000_000_000
"""Of a worker beside its run: Python, libraries, buffers."""

_ENVIRONMENT = (
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT=60s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=120s",
    "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED=error",
)


def job_arguments(config: ClusterConfig, jobs: Sequence[ShardJob]) -> dict[str, Any]:
    """Arguments for dask-jobqueue: --cluster-options, and defaults for what they leave open."""
    options = config.job_options()
    cores, walltime_s = options.pop("cores"), options.pop("walltime")
    memory = options.pop("memory", None) or cores * worker_memory_bytes(jobs)
    logs = options.setdefault("log_directory", str(jobs[0].out / LOGS))
    if "%" in logs or len(logs.split()) != 1:
        raise UsageError(
            f"--cluster {config.cluster}: the jobs' log folder {logs!r} has a space or % in it; choose another with "
            "--cluster-options log_directory=..."
        )
    for key, path in (("local_directory", None), ("python", sys.executable)):
        if options.setdefault(key, path) is not None:
            options[key] = shlex.quote(options[key])
    prologue = [f"export {variable}" for variable in _ENVIRONMENT] + options.pop("job_script_prologue", [])
    return options | {
        "job_name": f"ingest-{uuid.uuid4().hex[:6]}",  # PBS allows 15 characters
        "cores": cores,
        "processes": cores,
        "memory": f"{memory}B",
        "walltime": format_walltime(walltime_s),
        "death_timeout": DEATH_TIMEOUT_S,
        "job_script_prologue": prologue,
        "worker_extra_args": ["--memory-limit", "0", *_lifetime(walltime_s)],
    }


def _lifetime(walltime_s: int) -> list[str]:
    """A worker leaves in order before its job's time is over; short jobs are not worth it."""
    if walltime_s < 30 * 60:
        return []
    return ["--lifetime", f"{walltime_s - 600}s", "--lifetime-stagger", "300s"]


def worker_memory_bytes(jobs: Sequence[ShardJob]) -> int:
    """What a worker needs for the largest source: three copies of the run in float32, and room for the rest.

    Whole GB; of the largest file only the header is read.
    """
    num_bytes, largest = max(
        (_size(path), path) for job in jobs for path in (job.base / run["bold"] for run in job.runs)
    )
    try:
        num_frames = read_header(largest).num_frames
    except RunError:  # it will be on record as failed
        num_frames = num_bytes // 100_000
    num_voxels = int(read_set_mask(jobs[0].out / MASK).sum())
    return math.ceil((_BASE_BYTES + 3 * 4 * num_frames * num_voxels) / 1e9) * 10**9


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
