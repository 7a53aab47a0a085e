"""Running shard jobs: in this process, on local processes, as jobs of Slurm or PBS, or on a running Dask scheduler.

A worker that dies loses nothing: its shard is built again elsewhere. Workers tell of every run before they
begin the next, so it is known which run one died of; a run that takes worker after worker down is left out, on record.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from ingest.build import ShardJob, build_shard
from ingest.cluster.config import ClusterConfig
from ingest.cluster.pools import Pool, Say, local_pool, remote_pool
from ingest.cluster.task import Build, Expected, Ticket, UnfitWorkerError, build_on_worker
from ingest.failures import Failure, RunError
from ingest.progress import Progress
from ingest.record import RunRecord
from shards.errors import EXIT_SOME_FAILED, BoldstreamError
from shards.writer import TEMPORARY

TICK_S = 1.0
MAX_DEATHS_ELSEWHERE = 3
"""Before the first or after the last run of a shard: no run can be blamed, so the shard is given up."""


class ClusterLostError(BoldstreamError):
    """The scheduler went away in the middle; finished shards are kept."""

    exit_code = EXIT_SOME_FAILED


def build_all(
    jobs: Sequence[ShardJob], config: ClusterConfig, progress: Progress, build: Build = build_shard
) -> Generator[dict[str, Any], None, None]:
    """Build the shards and yield each one's ledger line as it is finished, in any order.

    Parameters
    ----------
    progress
        Advanced once for every run, and told in words of workers that start, die and are waited for.
    build
        Builds one shard; workers import it by name.

    Raises
    ------
    OutputError
        A shard cannot be written; what was yielded before stays valid.
    UsageError
        The cluster asked for cannot be had: no such command or scheduler, refused jobs, unfit workers.
    ClusterLostError
        The scheduler or all its workers went away for good.
    """
    if not jobs:
        return
    tally = _Tally(progress)
    if config.here:
        tally.begin()
        for job in jobs:
            line = build(job, lambda event, job=job: tally.count(job, event))  # type: ignore[misc]
            tally.settle(job, line)
            yield line
        return
    with _pool(jobs, config, progress.say) as pool:
        yield from _Builder(jobs, pool, build, tally).lines()


def _pool(jobs: Sequence[ShardJob], config: ClusterConfig, say: Say) -> AbstractContextManager[Pool]:
    if config.scheduler is not None:
        return remote_pool(config.scheduler, Expected.of(jobs[0]), say)
    if config.cluster == "local":
        return local_pool(config.num_local_workers(len(jobs)), say)
    from ingest.cluster.queue_pool import queue_pool

    return queue_pool(jobs, config, say)


@dataclass
class _Tally:
    """Counts each run once, however often its shard is built."""

    progress: Progress
    begun: bool = False
    counted: set[tuple[str, str]] = field(default_factory=set)

    def begin(self) -> None:
        if not self.begun:
            self.begun = True
            self.progress.begin()

    def count(self, job: ShardJob, event: dict[str, Any]) -> None:
        key = (job.name, event["run_id"])
        if key not in self.counted:
            self.counted.add(key)
            self.progress.advance(runs=1, num_bytes=event["num_bytes"], failures=int(event["failed"]))

    def settle(self, job: ShardJob, line: dict[str, Any]) -> None:
        """A finished shard: runs that no event came of."""
        failed = {failure["run_id"] for failure in line["failures"]}
        done = failed | {row["run_id"] for row in line["rows"]}
        for run_id in sorted(done):
            self.count(job, {"run_id": run_id, "num_bytes": 0, "failed": run_id in failed})


class _Shard:
    """One shard on its way: attempts, and the deaths of workers that had it."""

    def __init__(self, job: ShardJob) -> None:
        self.job = job
        self.attempt = 0
        self.worker: str | None = None
        """In words; None until a worker said that it began."""
        self._passed: set[str] = set()
        self._deaths: Counter[str] = Counter()

    def begins(self, worker: str | None) -> None:
        self.worker, self._passed = worker, set()

    def passes(self, run_id: str) -> None:
        self._passed.add(run_id)

    def dies(self) -> tuple[RunRecord | None, int]:
        """Note a worker's death: the run that it worked on, None if on none, and how often that happened."""
        records = (RunRecord.from_dict(values, self.job.base) for values in self.job.runs)
        on = next((record for record in records if record.run_id not in self._passed), None)
        if self.worker is None or (on is not None and on.run_id in self.job.without):
            on = None
        key = "" if on is None else on.run_id
        self._deaths[key] += 1
        return on, self._deaths[key]

    def leave_out(self, record: RunRecord, error: RunError) -> None:
        base = self.job.base
        failure = Failure.of(record.run_id, record.source(base), record.signature(base), error)
        self.job = replace(self.job, without={**self.job.without, record.run_id: failure.to_dict()})


class _Builder:
    """Hands out shards, never more than there are workers, and takes lines, events and deaths as they come.

    Shards whose worker died come last. Where workers share the machine's memory they are then built one at a
    time, so that a run is not blamed for the memory that others took.
    """

    def __init__(self, jobs: Sequence[ShardJob], pool: Pool, build: Build, tally: _Tally) -> None:
        self.pool, self.build, self.tally = pool, build, tally
        self.say = tally.progress.say
        self.fresh = deque(_Shard(job) for job in jobs)
        self.suspects: deque[_Shard] = deque()
        self.running: dict[str, tuple[_Shard, Any]] = {}
        """Shard and future, by the future's key; a future that nobody holds is cancelled."""
        self.by_name = {shard.job.name: shard for shard in self.fresh}
        self.call = f"ingest-fmri-{uuid.uuid4().hex}"
        self.expected = Expected.of(jobs[0])
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.num_threads = 0

    def lines(self) -> Generator[dict[str, Any], None, None]:
        """Each shard's line of the ledger."""
        client = self.pool.client
        client.subscribe_topic(self.call, lambda event: self.inbox.put(event[1]))
        ticked = 0.0
        while self.fresh or self.suspects or self.running:
            if time.monotonic() - ticked >= TICK_S:
                ticked = time.monotonic()
                self._tick()
            self._hand_out()
            line = self._next_line()
            if line is not None:
                yield line

    def _tick(self) -> None:
        try:
            self.pool.tend()
            self.num_threads = self.pool.num_threads()
        except OSError as error:
            raise _lost(str(error) or type(error).__name__) from None

    def _hand_out(self) -> None:
        for shard in self._ready():
            key = f"{self.call}-{shard.job.name}-{shard.attempt}"
            ticket = Ticket(topic=self.call, attempt=shard.attempt, expected=self.expected)
            future = self.pool.client.submit(build_on_worker, self.build, shard.job, ticket, key=key, pure=False)
            self.running[key] = shard, future
            future.add_done_callback(self.inbox.put)

    def _ready(self) -> Iterator[_Shard]:
        """Shards to begin now."""
        limit = max(1, self.num_threads)  # an adaptive cluster makes workers only for tasks
        while self.fresh and len(self.running) < limit:
            yield self.fresh.popleft()
        if not self.fresh and self.pool.shares_memory:
            limit = 1
        while not self.fresh and self.suspects and len(self.running) < limit:
            yield self.suspects.popleft()

    def _next_line(self) -> dict[str, Any] | None:
        try:
            message = self.inbox.get(timeout=TICK_S)
        except queue.Empty:
            return None
        if not isinstance(message, dict):
            return self._take(message)
        shard = self.by_name[message["shard"]]
        if message["attempt"] == shard.attempt:
            self._note(shard, message)
        return None

    def _note(self, shard: _Shard, event: dict[str, Any]) -> None:
        if "worker" not in event:
            shard.passes(event["run_id"])
            self.tally.count(shard.job, event)
            return
        self.tally.begin()
        if shard.worker is not None and self.pool.tells_restarts:
            shard.dies()
        shard.begins(event["worker"])

    def _take(self, future: Any) -> dict[str, Any] | None:
        """The line of a finished task; None if its worker died and the shard is to be built again."""
        from concurrent.futures import CancelledError

        from distributed import KilledWorker

        shard, _ = self.running.pop(future.key)
        try:
            line: dict[str, Any] | None = future.result()
        except KilledWorker:
            line = self._died(shard)
        except CancelledError:
            raise _lost("the connection broke") from None
        except ImportError as error:
            raise UnfitWorkerError(
                f"a worker cannot import what it needs ({error}); give it this environment"
            ) from None
        finally:
            future.release()
        if line is not None:
            if shard.attempt:
                _remove_partial(shard.job)
            self.tally.settle(shard.job, line)
        return line

    def _died(self, shard: _Shard) -> dict[str, Any] | None:
        self.pool.worker_died()
        worker = shard.worker or "a worker"
        record, times = shard.dies()
        shard.begins(None)
        shard.attempt += 1
        if record is None:
            self.say(f"{worker} died beginning or ending {shard.job.name}")
            if times >= MAX_DEATHS_ELSEWHERE:
                return _given_up(shard.job)
        elif times >= self.pool.max_deaths:
            self.say(f"{worker} died, again while working on {record.run_id}: this run is left out")
            shard.leave_out(record, _death_of(self.pool, times))
        else:
            self.say(f"{worker} died while working on {record.run_id}: {shard.job.name} is built again")
        self.suspects.append(shard)
        return None


def _death_of(pool: Pool, times: int) -> RunError:
    reason = f"{times} worker processes died while working on it"
    memory = "a worker has (for jobs: --cluster-options memory=...)"
    if pool.shares_memory:
        reason += ", the last one with nothing beside it"
        memory = "this machine has"
    return RunError(
        "worker", reason, f"it needs more memory than {memory}, or crashes a library: does nibabel read it?"
    )


def _given_up(job: ShardJob) -> dict[str, Any]:
    """The line of a shard that stays pending."""
    return {"action": "shard", "status": "error", "name": job.name, "info": None, "rows": [], "failures": []}


def _remove_partial(job: ShardJob) -> None:
    """What killed workers left of a shard that is finished now."""
    for path in job.out.glob(f"{TEMPORARY}*-{job.name}"):
        path.unlink(missing_ok=True)


def _lost(reason: str) -> ClusterLostError:
    return ClusterLostError(
        f"the Dask scheduler is gone ({reason}); finished shards are kept, the same command goes on from here"
    )
