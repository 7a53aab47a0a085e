"""Workers to build on: processes of this machine, or those of a Dask scheduler that runs already."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing.resource_tracker
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ingest.cluster.reach import CONNECT_S, chk_scheduler, no_scheduler
from ingest.cluster.task import Expected, UnfitWorkerError, examine
from ingest.sizes import plural
from shards.errors import UsageError

Say = Callable[[str], None]

CLOSE_S = 10.0
SAY_EVERY_S = 60.0
"""A wait is explained that often."""
_LOGGERS = ("distributed", "dask_jobqueue", "tornado", "bokeh", "asyncio")
_MEMORY = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause", "terminate")}
SETTINGS: dict[str, Any] = _MEMORY | {
    "distributed.scheduler.allowed-failures": 0,  # each death is told at once; who tries again is decided here
    "distributed.scheduler.work-stealing": False,  # no worker has more than one task
    "distributed.scheduler.worker-ttl": "15 minutes",
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    "distributed.deploy.lost-worker-timeout": "120s",  # a nanny on slow disks needs as long to start the next worker
    "distributed.admin.log-length": 100,
}
"""Dask's configuration: the workers' memory is ours to watch, nothing spills and nothing pauses."""


@dataclass(kw_only=True)
class Pool:
    """Connected workers."""

    client: Any
    """`distributed.Client`."""
    shares_memory: bool
    """All workers run on this machine: one may have died because of the others."""
    max_deaths: int = 3
    """So many workers that died of the same run are no accident (preemption, time over, a node that failed)."""
    tells_restarts: bool = False
    """A task that begins anew has lost its worker: the scheduler itself tries again."""

    def num_threads(self) -> int:
        """Tasks that can run at this moment."""
        return sum(self.client.nthreads().values())

    def tend(self) -> None:
        """Called about once a second; raises a `BoldstreamError` if no worker will ever come."""

    def worker_died(self) -> None:
        """Called when one died that had a task."""


@contextmanager
def local_pool(workers: int, say: Say) -> Iterator[Pool]:
    """That many processes, with one thread each; they are gone when the block ends."""
    import dask
    from distributed import Client, LocalCluster

    silence()
    with tempfile.TemporaryDirectory(prefix="ingest-fmri-") as scratch, dask.config.set(SETTINGS):
        cluster = None
        try:
            try:
                with signals_deferred():
                    cluster = LocalCluster(
                        n_workers=workers,
                        threads_per_worker=1,
                        processes=True,
                        memory_limit=0,
                        dashboard_address="127.0.0.1:0",  # any free port
                        local_directory=scratch,
                        silence_logs=logging.CRITICAL,
                    )
            except (OSError, RuntimeError) as error:
                raise UsageError(f"--workers {workers}: they do not start ({_reason(error)}); try fewer") from None
            with Client(cluster, set_as_default=False) as client:
                say(dashboard(cluster.dashboard_link, cluster.scheduler_address))
                yield Pool(client=client, shares_memory=True, max_deaths=2)
        finally:
            if cluster is not None:
                with suppress(TimeoutError):
                    cluster.close(timeout=CLOSE_S)


@contextmanager
def remote_pool(address: str, expected: Expected, say: Say) -> Iterator[Pool]:
    """The workers of the scheduler at `address`, each examined.

    Raises
    ------
    UsageError
        The scheduler does not answer.
    UnfitWorkerError
        A worker does not see the paths, has other versions, or more than one thread.
    """
    import dask
    from distributed import Client

    chk_scheduler(address)  # Dask waits for ever if a server is silent
    silence()
    with dask.config.set(SETTINGS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other versions: `examine` has its own words for them
                client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TypeError, ValueError, ImportError) as error:  # TypeError: TLS without certificates
            raise no_scheduler(address, _reason(error)) from None
        try:
            _chk_workers(client, address, expected)
            workers = plural(len(client.nthreads()), "worker")
            say(f"scheduler {address} with {workers}, dashboard {client.dashboard_link}")
            yield RemotePool(client=client, shares_memory=False, tells_restarts=True, address=address, say=say)
        finally:
            client.close(timeout=CLOSE_S)


@dataclass(kw_only=True)
class RemotePool(Pool):
    """The workers of somebody's scheduler; they may come and go."""

    address: str
    say: Say
    said_s: float = field(default_factory=lambda: time.monotonic() - SAY_EVERY_S)

    def tend(self) -> None:
        """Say once a minute that there is no worker."""
        now = time.monotonic()
        if now - self.said_s >= SAY_EVERY_S and not self.client.nthreads():
            self.said_s = now
            self.say(
                f"{self.address} has no worker: waiting; start some with `dask worker {self.address} --nthreads 1`"
            )


def _chk_workers(client: Any, address: str, expected: Expected) -> None:
    for worker, threads in client.nthreads().items():
        if threads > 1:
            raise UnfitWorkerError(
                f"worker {worker} has {threads} threads; a shard needs a process of its own: start workers with "
                f"`dask worker {address} --nthreads 1 --nworkers {threads}`"
            )
    for worker, misfit in client.run(examine, expected, on_error="return").items():
        if isinstance(misfit, BaseException):
            misfit = f"cannot examine itself ({_reason(misfit)}); give it the same environment as here"
        if misfit is not None:
            raise UnfitWorkerError(f"worker {worker} on {misfit}")


def dashboard(link: str, address: str) -> str:
    """One line on where to watch."""
    if link and importlib.util.find_spec("bokeh"):
        return f"dashboard {link}"
    return f"scheduler {address} (its dashboard needs the package bokeh)"


def silence() -> None:
    """Dask's own log lines say nothing that a user could act on; its threads go on with them to the very end."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Ctrl-C reaches the whole process group, but this process alone ends the workers, in order and in silence.

    SIGINT and SIGTERM wait until the block ends. Threads and processes begun in it inherit the mask: they
    never see them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    multiprocessing.resource_tracker.ensure_running()  # it unblocks the signals of the thread that starts it
    arrived: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for seen in arrived:  # another thread had not blocked it
            signal.raise_signal(seen)


def _reason(error: BaseException) -> str:
    """The first line of an error, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
