"""Running shard jobs: in this process, or on a local Dask cluster."""

from __future__ import annotations

import importlib.util
import logging
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ingest.build import ShardJob, build_shard

Report = Callable[[str], None]

_MEMORY = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause", "terminate")}
_SETTINGS: dict[str, Any] = _MEMORY | {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.admin.log-length": 100,
}


def build_all(jobs: Sequence[ShardJob], workers: int, report: Report) -> Generator[dict[str, Any], None, None]:
    """Build the shards and yield each one's ledger line as it is finished, in any order.

    Parameters
    ----------
    workers
        Processes; 0 builds here.
    report
        Called with one line for the user (the dashboard's address).

    Raises
    ------
    OutputError
        A shard cannot be written; what was yielded before stays valid.
    """
    if workers == 0:
        for job in jobs:
            yield build_shard(job)
        return
    from distributed import Future, KilledWorker, as_completed

    names: dict[str, ShardJob] = {f"build-{job.name}": job for job in jobs}
    with _local_cluster(min(workers, len(jobs)), report) as client:
        futures: list[Future] = [client.submit(build_shard, job, key=key, pure=False) for key, job in names.items()]
        for future in as_completed(futures):
            try:
                line = future.result()
            except KilledWorker:
                line = _killed(names[future.key])
            future.release()
            yield line


def _killed(job: ShardJob) -> dict[str, Any]:
    """The line of a shard whose worker died twice; it stays pending."""
    return {"action": "shard", "status": "error", "name": job.name, "info": None, "rows": [], "failures": []}


@contextmanager
def _local_cluster(workers: int, report: Report) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    for name in ("distributed", "tornado", "bokeh"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="ingest-fmri-") as scratch, dask.config.set(_SETTINGS):
        with _interrupts_blocked():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=":0",  # any free port
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            )
        client = Client(cluster)
        try:
            if importlib.util.find_spec("bokeh"):
                report(f"dashboard {cluster.dashboard_link}")
            yield client
        finally:
            client.close(timeout=5)
            cluster.close(timeout=5)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches the whole process group, but the parent alone ends the workers, in order and in silence.

    Workers, and the thread that starts them, inherit the blocked signal; here it waits until the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
