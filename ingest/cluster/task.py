"""What runs on a Dask worker: is the worker fit, one shard's build, and a word after each run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ingest.build import Report, ShardJob
from shards.errors import UsageError
from shards.format import MASK, xxh3

Build = Callable[[ShardJob, Report], dict[str, Any]]

_DECIDING = ("boldstream", "numpy", "numba", "numcodecs", "nilearn", "scipy")
"""Distributions that decide which bytes a shard has."""


class UnfitWorkerError(UsageError):
    """A worker does not see the same files, or would not build the same bytes."""


class AbandonedError(RuntimeError):
    """Nobody waits for this shard any more; only Dask ever sees it."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a worker must find, so that it builds the bytes that this process would."""

    versions: dict[str, str]
    out: Path
    base: Path
    mask_xxh3: str | None
    """None: the set has no mask."""

    @classmethod
    def of(cls, job: ShardJob) -> Expected:
        """As this process finds it."""
        return cls(versions=_versions(), out=job.out, base=job.base, mask_xxh3=_mask_xxh3(job.out))

    def misfit(self) -> str | None:
        """What is not as expected where this is called; None if the worker is fit."""
        here = _versions()
        for name, wanted in self.versions.items():
            if here[name] != wanted:
                return f"has {name} {here[name]}, not {wanted}; give it the same environment"
        for flag, folder in (("--out", self.out), ("--src", self.base)):
            if not folder.is_dir():
                return f"does not see the folder {folder} of {flag}; it must be on a filesystem that all machines share"
        if _mask_xxh3(self.out) != self.mask_xxh3:
            return f"sees another {self.out / MASK} than this machine; --out must be on a shared filesystem"
        return None


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What a task is told besides its job."""

    topic: str
    """Dask topic that this call listens to."""
    attempt: int
    expected: Expected


def examine(expected: Expected) -> str | None:
    """`Expected.misfit` with the name of the machine; for `Client.run`."""
    misfit = expected.misfit()
    return None if misfit is None else f"{platform.node()} {misfit}"


def build_on_worker(build: Build, job: ShardJob, ticket: Ticket) -> dict[str, Any]:
    """Build one shard, telling the scheduler of every step before the next begins.

    So if this process dies, whoever listens knows the run that it was working on.

    Raises
    ------
    UnfitWorkerError
        This worker would not build the same bytes.
    OutputError
        The shard cannot be written.
    """
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    key = worker.get_current_task()

    def tell(event: dict[str, Any]) -> None:
        message = {**event, "shard": job.name, "attempt": ticket.attempt}
        sync(worker.loop, worker.scheduler.log_event, topic=ticket.topic, msg=message)

    def report(event: dict[str, Any]) -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise AbandonedError(job.name)
        tell(event)

    misfit = examine(ticket.expected)
    if misfit is not None:
        raise UnfitWorkerError(f"worker {worker.address} on {misfit}")
    tell({"worker": f"process {os.getpid()} on {platform.node()}"})
    return build(job, report)


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in _DECIDING:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "(not installed)"
    return versions


def _mask_xxh3(out: Path) -> str | None:
    try:
        return xxh3((out / MASK).read_bytes())
    except FileNotFoundError:
        return None
