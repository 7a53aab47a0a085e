"""Where this process stands among the others: one start-up for python, deepspeed, torchrun, srun and mpiexec.

DeepSpeed wants five variables whatever the launcher, compiles C++ on CPU that training never uses,
and writes to standard output; all three are settled here, before its import.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from shards.errors import BoldstreamError, UsageError

Environment = MutableMapping[str, str]
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MPI_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
MPI_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "MPI_LOCALRANKID")
MPI_LOCAL_SIZE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_LOCAL_SIZE", "MPI_LOCALNRANKS")
DEFAULT_PORT = 29500
GRACE_S = 3.0
# how gloo and NCCL say that another rank is gone
LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This process among the ranks of the run."""

    rank: int
    world_size: int
    local_rank: int
    device: Any
    """`torch.device` that the model lives on."""

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes what is written once."""
        return self.rank == 0


def rank_of_launcher() -> int:
    """This process's rank as the launcher tells it, before anything is initialised."""
    return int(_first_set(os.environ, "RANK", *MPI_RANK, "SLURM_PROCID") or 0)


def world_size_of_launcher() -> int:
    """How many ranks the launcher started; 1 without one.

    Raises
    ------
    UsageError
        It set some, but not all, of the variables that ranks find each other by.
    """
    asked = dict(os.environ)  # a copy: who only asks must not make the processes it starts later believe they are ranks
    _launcher_variables(asked)
    return int(asked["WORLD_SIZE"])


class PeerLostError(BoldstreamError):
    """Another rank ended, so this one cannot go on."""


def raise_if_peer_lost(error: RuntimeError) -> None:
    """Raise a `PeerLostError` in place of a collective's failure that only follows another rank's end."""
    found = next((sign for sign in LOST if sign in str(error)), None)
    if found is not None:
        raise PeerLostError(f"another rank has ended ({found}); what it said, or its launcher, tells why") from None


def tell(error: BoldstreamError) -> None:
    """Print an error as one line: rank 0 at once, another rank if it is not ended along with rank 0.

    What is wrong for all ranks is told once that way, and what goes wrong on one alone is not lost.
    """
    rank = rank_of_launcher()
    if rank == 0:
        print(f"error: {error}", file=sys.stderr)
        return
    time.sleep(GRACE_S)
    print(f"error on rank {rank} ({socket.gethostname()}): {error}", file=sys.stderr, flush=True)


def enter(timeout_s: float = 1800.0) -> Place:
    """Join the process group.

    Parameters
    ----------
    timeout_s
        Seconds a collective may wait for the slowest rank.

    Raises
    ------
    UsageError
        A launcher set some, but not all, of the variables that ranks find each other by.
    """
    _launcher_variables(os.environ)
    _threads()
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        import deepspeed.ops

        # used by inference only, but init_distributed would compile it; the table is kept editable for this
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        device = torch.device("cpu")
    else:
        index = local_rank % accelerator.device_count()
        accelerator.set_device(index)
        device = torch.device(accelerator.device_name(), index)
    if not torch.distributed.is_initialized():
        deepspeed.init_distributed(timeout=timedelta(seconds=timeout_s), verbose=False)
        atexit.register(_leave)
    return Place(
        rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]), local_rank=local_rank, device=device
    )


def _leave() -> None:
    """Close the process group; its threads abort the process if they outlive the interpreter."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _launcher_variables(env: Environment) -> None:
    """Set the variables of `LAUNCHER_VARIABLES` from those of srun or mpiexec, or for a single process."""
    if "RANK" not in env and not (_from_open_mpi(env) or _from_srun(env) or _from_pmi(env)):
        env.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", str(_free_port()))
    missing = [name for name in LAUNCHER_VARIABLES if name not in env]
    if missing:
        raise UsageError(
            f"RANK is set but {', '.join(missing)} is not; start with deepspeed, torchrun, srun, mpiexec or python"
        )


def _from_open_mpi(env: Environment) -> bool:
    """Before srun's: mpirun starts its own daemons by srun, and their variables are inherited."""
    if "OMPI_COMM_WORLD_RANK" not in env:
        return False
    _set_from_mpi(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    return True


def _from_srun(env: Environment) -> bool:
    if "SLURM_PROCID" not in env or "SLURM_STEP_NUM_TASKS" not in env:
        return False
    if env.get("PMI_SIZE", env["SLURM_STEP_NUM_TASKS"]) != env["SLURM_STEP_NUM_TASKS"]:
        return False  # mpiexec inside a job: srun started its daemons, not these ranks
    env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_STEP_NUM_TASKS"], LOCAL_RANK=env["SLURM_LOCALID"])
    _meeting_point(env)
    return True


def _from_pmi(env: Environment) -> bool:
    """MPICH, Intel MPI, and HPE's PALS on PBS machines such as Polaris."""
    if "PMI_RANK" not in env or "PMI_SIZE" not in env:
        return False
    _set_from_mpi(env, "PMI_RANK", "PMI_SIZE")
    return True


def _set_from_mpi(env: Environment, rank: str, size: str) -> None:
    local = _first_set(env, *MPI_LOCAL_RANK) or ("0" if env[size] == "1" else None)
    if local is None:
        raise UsageError(f"{rank} is set but none of {', '.join(MPI_LOCAL_RANK)}; export LOCAL_RANK for each process")
    env.update(RANK=env[rank], WORLD_SIZE=env[size], LOCAL_RANK=local)
    per_node = _first_set(env, *MPI_LOCAL_SIZE)
    if per_node is not None:
        env.setdefault("LOCAL_WORLD_SIZE", per_node)
    _meeting_point(env)


def _meeting_point(env: Environment) -> None:
    """Address and port that all ranks of a job agree on without talking to each other."""
    job = "".join(filter(str.isdigit, (_first_set(env, "SLURM_JOB_ID", "PBS_JOBID") or "").split(".")[0]))
    env.setdefault("MASTER_PORT", str(20000 + int(job) % 20000 if job else DEFAULT_PORT))
    if "MASTER_ADDR" in env:
        return
    if env.get("LOCAL_WORLD_SIZE") == env["WORLD_SIZE"]:
        env["MASTER_ADDR"] = "127.0.0.1"
    elif "PBS_NODEFILE" in env:
        env["MASTER_ADDR"] = _first_line(env["PBS_NODEFILE"])
    elif nodelist := _first_set(env, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        env["MASTER_ADDR"] = _first_host(nodelist)
    else:
        raise UsageError(
            "several nodes, and no job that names them; export MASTER_ADDR, the name of the first rank's node"
        )


def _first_set(env: Environment, *names: str) -> str | None:
    return next((env[name] for name in names if name in env), None)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().split()[0]
    except (OSError, IndexError) as error:
        raise UsageError(f"PBS_NODEFILE {path}: {error}; export MASTER_ADDR, the first node's name") from None


def _first_host(nodelist: str) -> str:
    command = ["scontrol", "show", "hostnames", nodelist]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{' '.join(command)}: {error}; export MASTER_ADDR, the first node's name") from None
    return found[0]


def _threads() -> None:
    """Share the cores that this process may use among the ranks of its node, unless told otherwise."""
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", os.environ["WORLD_SIZE"])))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, local)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
