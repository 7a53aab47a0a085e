"""Where shards are built: the flags `--workers`, `--cluster`, `--cluster-options` and `--scheduler`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ingest.sizes import parse_size, plural
from shards.errors import UsageError

WALLTIME_S = 4 * 3600
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_SHORT_WALLTIME = re.compile(r"(\d+)([mhd])")
_ADDRESS = re.compile(r"(tcp|tls)://[^/:\s]+:\d{1,5}|(tcp|tls)://\[[0-9a-zA-Z:.%]+\]:\d{1,5}")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Which processes build the shards.

    Raises
    ------
    UsageError
        A value is outside what its flag allows, or two flags exclude each other.
    """

    workers: int | None = None
    """Worker processes; default: one for each CPU. With --cluster: how many to ask the queue for.
    0 builds in this process, without Dask."""
    cluster: Literal["local", "slurm", "pbs"] = "local"
    """Where the workers run: on this machine, or as jobs of Slurm or PBS that this command submits and cancels."""
    cluster_options: tuple[str, ...] = ()
    """With --cluster slurm or pbs, key=value for its jobs, such as account=lab queue=long walltime=4:00:00 memory=8GB.
    cores: workers in each job (default 1).
    memory: of the whole job (default: what the largest run needs, times cores).
    Others: interface, local_directory, log_directory, python, resource_spec (pbs), and several times if need be
    job_extra_directives, job_directives_skip, job_script_prologue, as dask-jobqueue knows them."""
    scheduler: str | None = None
    """Address of a running Dask scheduler (tcp://host:port) whose workers see the same paths as this machine."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: allowed is 0 (in this process) or more")
        if self.scheduler is not None:
            self._chk_scheduler(self.scheduler)
        if self.cluster == "local":
            if self.cluster_options:
                raise UsageError(
                    f"--cluster-options {self.cluster_options[0]}: only with --cluster slurm or pbs; leave it out"
                )
            return
        if not self.workers:
            raise UsageError(f"--cluster {self.cluster} needs --workers N, 1 or more: how many workers to ask it for")
        self.job_options()

    def _chk_scheduler(self, address: str) -> None:
        if self.cluster != "local":
            raise UsageError(f"--scheduler and --cluster {self.cluster}: only one of the two")
        if self.workers is not None:
            raise UsageError(f"--workers {self.workers}: the scheduler at {address} has its workers; leave it out")
        if not _ADDRESS.fullmatch(address):
            raise UsageError(f"--scheduler {address}: not an address; write it as tcp://host:8786 (or tls://)")

    @property
    def here(self) -> bool:
        """Whether shards are built in this process, without Dask."""
        return self.workers == 0

    def describe(self, num_jobs: int) -> str:
        """Who builds `num_jobs` shards, for people: `2 workers`, `this process`, `8 workers in slurm jobs`."""
        if self.here:
            return "this process"
        if self.scheduler is not None:
            return f"the workers of {self.scheduler}"
        if self.cluster != "local":
            return f"{plural(self.num_queue_workers, 'worker')} in {self.cluster} jobs"
        return plural(self.num_local_workers(num_jobs), "worker")

    def num_local_workers(self, num_jobs: int) -> int:
        """Processes on this machine: never more than there are shards to build."""
        if self.workers is None:
            from dask.system import CPU_COUNT

            return min(int(CPU_COUNT), num_jobs)
        return min(self.workers, num_jobs)

    @property
    def num_queue_workers(self) -> int:
        """Workers to ask the queue for."""
        return self.workers or 1

    def job_options(self) -> dict[str, Any]:
        """The values of --cluster-options by key, each with the type of its key."""
        return parse_options(self.cluster_options, self.cluster)


def _text(value: str, flag: str) -> str:
    return value


def _cores(value: str, flag: str) -> int:
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 1024:
        raise UsageError(f"{flag} {value!r}: allowed is a whole number, 1 to 1024")
    return int(value)


def parse_walltime(value: str, flag: str) -> int:
    """Seconds of `4:00:00`, `1-12:00:00`, `90m`, `4h` or `2d`.

    Raises
    ------
    UsageError
        The text is none of these, or less than a minute; `flag` is named.
    """
    seconds = 0
    if match := _WALLTIME.fullmatch(value):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    elif match := _SHORT_WALLTIME.fullmatch(value):
        seconds = int(match[1]) * {"m": 60, "h": 3600, "d": 86400}[match[2]]
    if seconds < 60:
        raise UsageError(
            f"{flag} {value!r}: allowed is a minute or more, written as 4:00:00, 1-12:00:00, 90m, 4h or 2d"
        )
    return seconds


_SINGLE: Mapping[str, Callable[[str, str], Any]] = {
    "account": _text,
    "queue": _text,
    "walltime": parse_walltime,
    "cores": _cores,
    "memory": parse_size,
    "interface": _text,
    "local_directory": _text,
    "log_directory": _text,
    "python": _text,
}
_LISTS = ("job_extra_directives", "job_directives_skip", "job_script_prologue")
_PBS = {"resource_spec": _text}


def parse_options(options: tuple[str, ...], cluster: str) -> dict[str, Any]:
    """Values of `key=value` texts; a key that is not given is not in the result, except walltime and cores.

    Raises
    ------
    UsageError
        An unknown key (the allowed ones are listed), a value that its key does not allow, or a key given twice.
    """
    single = {**_SINGLE, **(_PBS if cluster == "pbs" else {})}
    values: dict[str, Any] = {"walltime": WALLTIME_S, "cores": 1}
    seen: set[str] = set()
    for option in options:
        key, equals, text = option.partition("=")
        flag = f"--cluster-options {key}"
        if key not in single and key not in _LISTS:
            allowed = ", ".join(sorted([*single, *_LISTS]))
            raise UsageError(
                f"--cluster-options {option!r}: with --cluster {cluster} allowed are key=value of {allowed}"
            )
        if not equals or not text.strip() or "\n" in text:
            raise UsageError(f"--cluster-options {option!r}: {key} needs a value on one line, as in {key}=...")
        if key in _LISTS:
            values.setdefault(key, []).append(text)
            continue
        if key in seen:
            raise UsageError(f"{flag} is given twice; leave one out")
        seen.add(key)
        values[key] = single[key](text, flag)
    return values


def format_walltime(seconds: int) -> str:
    """`4:00:00` as both Slurm and PBS read it; hours may be more than 24."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
