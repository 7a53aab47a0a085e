"""Is this machine, and this folder, fit for the work? Probes that take seconds, and what they found.

Used by `ingest-fmri --doctor` and `train.py --preflight`.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.writer import TEMPORARY

Verdict = Literal["ok", "note", "FAIL"]
MAX_SKEW_S = 2.0
"""Clocks further apart than this make the times in logs, and of files, misleading."""
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what
        In words, such as 'free space'.
    found
        With its unit.
    verdict
        'ok'; 'note' where work goes on but something is worth knowing; 'FAIL' where it would not.
    remedy
        What to do, if there is anything.
    """

    what: str
    found: str
    verdict: Verdict = "ok"
    remedy: str = ""

    def line(self, width: int) -> str:
        """One line of a table whose first column is so wide."""
        return f"{self.verdict:4}  {self.what:{width}}  {self.found}{f'; {self.remedy}' if self.remedy else ''}"


def note(what: str, found: str, remedy: str) -> Finding:
    """A finding that is worth knowing if there is something to do about it, and else in order."""
    return Finding(what=what, found=found, verdict="note" if remedy else "ok", remedy=remedy)


def table(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding."""
    listed = list(findings)
    width = max((len(finding.what) for finding in listed), default=0)
    return [finding.line(width) for finding in listed]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write there."""
    stat = os.statvfs(existing(folder))
    return stat.f_bavail * stat.f_frsize


def write_rate(folder: Path, num_bytes: int = 256 * _BLOCK) -> float:
    """Bytes per second of one writer until they are on disk (fsync); the file is removed.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    block = os.urandom(_BLOCK)  # a file system that compresses must not be flattered
    with tempfile.NamedTemporaryFile(dir=existing(folder), prefix=TEMPORARY) as file:
        began = time.perf_counter()
        for _ in range(max(1, num_bytes // _BLOCK)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return max(1, num_bytes // _BLOCK) * _BLOCK / (time.perf_counter() - began)


def read_rate(path: Path, num_bytes: int = 256 * _BLOCK) -> float:
    """Bytes per second of one reader from the start of a file; what is in memory already is read from there."""
    began, total = time.perf_counter(), 0
    with path.open("rb", buffering=0) as file:
        while total < num_bytes and (data := file.read(_BLOCK)):
            total += len(data)
    return total / max(time.perf_counter() - began, 1e-9)


def clock_skew_s(folder: Path) -> float:
    """Seconds that the file system's clock is ahead of this machine's.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=existing(folder), prefix=TEMPORARY) as file:
        before = time.time()
        file.write(b"tick")
        file.flush()
        os.fsync(file.fileno())
        found, after = Path(file.name).stat().st_mtime, time.time()
    return 0.0 if before - 0.01 <= found <= after + 0.01 else found - (before + after) / 2


def links_work(folder: Path) -> bool:
    """Whether the file system has hard links."""
    with tempfile.TemporaryDirectory(dir=existing(folder), prefix=TEMPORARY) as name:
        (Path(name) / "a").touch()
        try:
            os.link(Path(name) / "a", Path(name) / "b")
        except OSError:
            return False
    return True


def open_files_limit() -> int:
    """Files that this process may be allowed to open (the hard limit)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the share that its control group has."""
    cores = len(os.sched_getaffinity(0))
    quota = _control_group("cpu.max")
    if quota and quota.split()[0] != "max":
        allowed, period = (int(word) for word in quota.split()[:2])
        cores = min(cores, max(1, allowed // period))
    return cores


def usable_memory_bytes() -> int:
    """Memory that this process may use: what the machine has available, and what its control group leaves."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = _control_group("memory.max"), _control_group("memory.current")
    if limit and limit.isdigit() and used:
        available = min(available, int(limit) - int(used))
    return available


def _control_group(name: str) -> str | None:
    """Content of a file of this process's control group (version 2), or None."""
    try:
        group = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        return (Path("/sys/fs/cgroup") / group.strip().lstrip("/") / name).read_text().strip()
    except (OSError, StopIteration):
        return None
