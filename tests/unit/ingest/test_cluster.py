"""Shard jobs on worker processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ingest.cluster import build_all


class Killer:
    """A job that takes its worker down, as one that is out of memory does."""

    name = "x-000000.tar"

    @property
    def out(self) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


def test_a_job_that_kills_its_workers_is_reported_and_the_call_ends():
    (line,) = build_all([Killer()], 1, lambda _: None)
    assert (line["status"], line["name"], line["rows"]) == ("error", "x-000000.tar", [])
