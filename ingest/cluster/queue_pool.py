"""Workers as jobs of Slurm or PBS, through dask-jobqueue: submitted, waited for, replaced, cancelled."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.build import ShardJob
from ingest.cluster.config import ClusterConfig
from ingest.cluster.pools import CLOSE_S, SAY_EVERY_S, SETTINGS, Pool, Say, dashboard, signals_deferred, silence
from ingest.cluster.queue_commands import Queue, queue_of
from ingest.cluster.queue_request import job_arguments
from ingest.sizes import format_size, plural
from shards.errors import EXIT_SOME_FAILED, BoldstreamError, UsageError

LOOK_EVERY_S = 30.0
"""The queue is asked that often while workers are missing."""
FIRST_LOOK_S = 10.0
MAX_STILLBORN = 2
"""Jobs that end before a worker starts, for each job asked for, once other jobs have shown that it can be done."""
SUBMISSIONS_AT_ONCE = 8


class NoWorkersError(BoldstreamError):
    """The queue's jobs end before a worker starts."""

    exit_code = EXIT_SOME_FAILED


class Submissions:
    """What the queue answered, noted by the jobs themselves."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.refused: list[str] = []
        """Reasons."""
        self.cancelled: set[str] = set()
        self.turns = asyncio.Semaphore(SUBMISSIONS_AT_ONCE)


class _NotedJob:
    """Mixed into dask-jobqueue's job: it keeps to itself that the queue refused one, and forgets nothing of it."""

    submissions: Submissions
    job_id: str | None
    status: Any

    async def start(self) -> None:
        from distributed.core import Status

        async with self.submissions.turns:
            try:
                await super().start()  # type: ignore[misc]
            except (OSError, RuntimeError, ValueError) as error:
                self.submissions.refused.append(_last_line(str(error)))
                self.status = Status.running
        if self.job_id is not None:
            self.submissions.accepted.append(self.job_id)

    async def close(self) -> None:
        from distributed.deploy.spec import ProcessInterface

        if self.job_id not in self.submissions.cancelled:
            await super().close()  # type: ignore[misc]
        await ProcessInterface.close(self)


@contextmanager
def queue_pool(jobs: Sequence[ShardJob], config: ClusterConfig, say: Say) -> Iterator[Pool]:
    """Workers as queue jobs; the jobs are cancelled when the block ends.

    Raises
    ------
    UsageError
        The queue's commands are not here, an option does not fit, or every job is refused.
    NoWorkersError
        Jobs end without a worker (raised by `QueuePool.tend`).
    """
    import dask
    from distributed import Client

    silence()
    queue = queue_of(config.cluster)
    queue.chk_available(f"--cluster {config.cluster}")
    arguments = job_arguments(config, jobs)
    submissions = Submissions()
    cluster = None
    with dask.config.set(SETTINGS), _logs(config, arguments) as kept:
        try:
            with signals_deferred():
                cluster = _cluster(config, arguments, submissions)
            with Client(cluster, set_as_default=False) as client:
                pool = QueuePool(
                    client=client,
                    shares_memory=False,
                    cluster=cluster,
                    queue=queue,
                    arguments=arguments,
                    submissions=submissions,
                    num_workers=config.num_queue_workers,
                    say=say,
                    kept=kept,
                )
                pool.begin()
                yield pool
        finally:
            _close(queue, cluster, submissions)


@dataclass(kw_only=True)
class QueuePool(Pool):
    """Workers in queue jobs, looked after."""

    cluster: Any
    """`SLURMCluster` or `PBSCluster`."""
    queue: Queue
    arguments: dict[str, Any]
    submissions: Submissions
    num_workers: int
    say: Say
    kept: list[str]
    num_jobs: int = 0
    wanted: int = 0
    """Jobs to keep; less than `num_jobs` once some were refused or came to nothing."""
    _ever: set[str] = field(default_factory=set)
    """Ids of jobs whose worker was here."""
    _stillborn: int = 0
    _num_refused: int = 0
    _looked_s: float = 0.0
    _said_s: float = 0.0
    _said: str = ""

    def begin(self) -> None:
        """Submit the jobs, without waiting for them."""
        self.num_jobs = self.wanted = math.ceil(self.num_workers / self.arguments["processes"])
        memory = format_size(int(self.arguments["memory"][:-1]))
        where = dashboard(self.cluster.dashboard_link, self.cluster.scheduler_address)
        self.say(
            f"{plural(self.wanted, 'job')} {self.arguments['job_name']} to {self.queue.submit}, each with {memory} for "
            f"{self.arguments['walltime']} and {plural(self.arguments['processes'], 'worker')}; {where}"
        )
        self._looked_s = time.monotonic() - LOOK_EVERY_S + FIRST_LOOK_S
        self.cluster.scale(jobs=self.wanted)

    def tend(self) -> None:
        """Replace jobs that ended, say what is waited for, give up where no worker will come."""
        self._take_refusals()
        there = self._jobs()
        self._ever |= {job_id for job_id, connected in there.items() if connected}
        now = time.monotonic()
        if sum(there.values()) >= self.wanted or now - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now
        states = self.queue.states(self.arguments["job_name"], list(there))
        if states is None:
            self._say_waiting(f"{self.queue.show} does not answer")
            return
        now_there = self._jobs()
        lost = [job_id for job_id in there if job_id not in states and not now_there.get(job_id, False)]
        if lost:
            self._replace(lost)
        if len(now_there) < self.wanted:
            self.cluster.scale(jobs=self.wanted)
        counts = Counter(states.values())
        shown = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none of them"
        self._say_waiting(f"{self.queue.show} shows {shown}")

    def worker_died(self) -> None:
        """Keep what the jobs print: it may say why."""
        if not self.kept:
            self.kept.append(self.arguments["log_directory"])
            self.say(f"what the jobs print is kept in {self.kept[0]}")

    def _jobs(self) -> dict[str, bool]:
        """Job id to whether one of its workers is connected."""

        async def look() -> dict[str, bool]:
            names = {str(worker.name) for worker in self.cluster.scheduler.workers.values()}
            return {
                job.job_id: any(worker == name or worker.startswith(f"{name}-") for worker in names)
                for name, job in self.cluster.workers.items()
                if job.job_id is not None
            }

        return dict(self.cluster.sync(look))

    def _take_refusals(self) -> None:
        new = len(self.submissions.refused) - self._num_refused
        if not new:
            return
        self._num_refused += new
        reason = self.submissions.refused[-1]
        self.wanted -= new
        if self.wanted <= 0:
            raise UsageError(f"{self.queue.submit} refused the job: {reason}; check --cluster-options")
        self.say(f"{self.queue.submit} refused {plural(new, 'job')} ({reason}); going on with {self.wanted}")
        self._drop(None)

    def _replace(self, lost: Sequence[str]) -> None:
        """Submit anew what ended, as long as that has a prospect: most jobs did start a worker."""
        stillborn = [job_id for job_id in lost if job_id not in self._ever]
        self._stillborn += len(stillborn)
        self._drop(*lost)
        if self._stillborn > (MAX_STILLBORN * self.num_jobs if self._ever else 0):
            self.wanted -= len(stillborn)
            self.worker_died()
        if self.wanted <= 0:
            raise NoWorkersError(self._last_words())
        before = f" ({len(stillborn)} before a worker started)" if stillborn else ""
        self.say(f"{plural(len(lost), 'job')} ended{before}; going on with {self.wanted}")
        self.cluster.scale(jobs=self.wanted)

    def _drop(self, *job_ids: str | None) -> None:
        """Make Dask forget jobs that are no more."""
        names = [name for name, job in list(self.cluster.workers.items()) if job.job_id in job_ids]
        self.cluster.sync(self.cluster.scale_down, names)

    def _last_words(self) -> str:
        logs = Path(self.arguments["log_directory"])
        texts = [path.read_text(errors="replace").strip() for path in sorted(logs.glob("*")) if path.is_file()]
        words = next((f": {_last_line(text)}" for text in texts if text), "")
        return (
            f"{plural(self._stillborn, 'job')} ended before a worker started; what they printed is in {logs}{words}; "
            "check --cluster-options (python, interface, memory, walltime)"
        )

    def _say_waiting(self, what: str) -> None:
        """Once a minute while there is no worker at all, later only what is new."""
        num_there = self.num_threads()
        text = f"{num_there} of {plural(self.num_workers, 'worker')} are connected; {what}"
        if time.monotonic() - self._said_s >= SAY_EVERY_S and (not num_there or text != self._said):
            self._said_s, self._said = time.monotonic(), text
            self.say(text)


def _cluster(config: ClusterConfig, arguments: dict[str, Any], submissions: Submissions) -> Any:
    """A scheduler in this process, and no job yet."""
    cluster_class = _cluster_class(config.cluster)
    job_class = type("NotedJob", (_NotedJob, cluster_class.job_cls), {"submissions": submissions})
    try:
        return cluster_class(
            job_cls=job_class, scheduler_options={"dashboard_address": ":0"}, silence_logs=False, **arguments
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--cluster {config.cluster}: {_last_line(str(error))}; check --cluster-options (interface, log_directory)"
        ) from None


def _cluster_class(name: str) -> Any:
    """The class of dask_jobqueue, whose import would make Ctrl-C end the process without a word, with exit code 0."""
    ours = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue import PBSCluster, SLURMCluster
    finally:
        signal.signal(signal.SIGINT, ours)
    return SLURMCluster if name == "slurm" else PBSCluster


@contextmanager
def _logs(config: ClusterConfig, arguments: dict[str, Any]) -> Iterator[list[str]]:
    """What the jobs print is kept if anybody asks for it."""
    kept: list[str] = []
    own = not any(option.startswith("log_directory=") for option in config.cluster_options)
    if own:
        shutil.rmtree(arguments["log_directory"], ignore_errors=True)
    try:
        yield kept
    finally:
        if own and not kept:
            shutil.rmtree(arguments["log_directory"], ignore_errors=True)


def _close(queue: Queue, cluster: Any, submissions: Submissions) -> None:
    """Cancel all jobs at once, then those that were just being submitted."""
    submissions.cancelled |= set(submissions.accepted)
    queue.cancel_jobs(sorted(submissions.cancelled))
    if cluster is not None:
        with suppress(TimeoutError):
            cluster.close(timeout=CLOSE_S)
    queue.cancel_jobs(sorted(set(submissions.accepted) - submissions.cancelled))


def _last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(\w+: error|Cluster failed to start): ", "", lines[-1]) if lines else "no reason given"
