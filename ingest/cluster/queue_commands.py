"""The commands of Slurm and PBS: what jobs are doing, and how they are cancelled."""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence

from shards.errors import UsageError

ANSWER_S = 30.0
"""Patience with a queue that is busy."""
_PBS_STATES = {"Q": "queued", "R": "running", "H": "held", "W": "waiting", "T": "moving", "S": "suspended"}
"""Letters of jobs that are still to end."""


class Queue(ABC):
    """A job queue, through its commands."""

    submit: str
    show: str
    cancel: str

    def chk_available(self, flag: str) -> None:
        """Raise `UsageError` if this machine cannot submit jobs."""
        missing = [command for command in (self.submit, self.show, self.cancel) if shutil.which(command) is None]
        if missing:
            raise UsageError(
                f"{flag}: no command {missing[0]} here; call it on a machine that may submit jobs, such as a login node"
            )

    @abstractmethod
    def states(self, name: str, job_ids: Sequence[str]) -> dict[str, str] | None:
        """State in words of each job that waits or runs, by job id; None if the queue does not answer."""

    def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs; those that ended already do no harm."""
        if job_ids:
            _answer([self.cancel, *job_ids])


class Slurm(Queue):
    """Slurm: `squeue` lists what waits and runs."""

    submit, show, cancel = "sbatch", "squeue", "scancel"

    def states(self, name: str, job_ids: Sequence[str]) -> dict[str, str] | None:
        done = _answer([self.show, "--noheader", f"--name={name}", "--format=%A|%T|%r"])
        if done is None or done.returncode:
            return None
        rows = [line.strip().split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
        return {
            job_id: state if state != "PENDING" else f"PENDING ({reason})"
            for job_id, state, reason in rows
            if state != "COMPLETING"
        }


class Pbs(Queue):
    """PBS Pro, OpenPBS, Torque: `qstat` of the jobs, one row each."""

    submit, show, cancel = "qsub", "qstat", "qdel"

    def states(self, name: str, job_ids: Sequence[str]) -> dict[str, str] | None:
        if not job_ids:
            return {}
        done = _answer([self.show, *job_ids])
        if done is None or (done.returncode and not done.stdout and "unknown" not in done.stderr.lower()):
            return None  # jobs that ended are "Unknown Job Id"
        rows = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
        states = {row[0].split(".")[0]: row[-2] for row in rows if len(row) > 2}
        return {job_id: _PBS_STATES[letter] for job_id, letter in states.items() if letter in _PBS_STATES}


def queue_of(cluster: str) -> Queue:
    """The queue that `--cluster` names."""
    return Slurm() if cluster == "slurm" else Pbs()


def _answer(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
