"""Where this process stands among the others: one start-up for python, deepspeed, torchrun and srun.

DeepSpeed wants five variables whatever the launcher, compiles C++ on CPU that training never uses,
and writes to standard output; all three are settled here, before its import.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from shards.errors import UsageError

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


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
    _launcher_variables()
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


def _launcher_variables() -> None:
    """Set the variables of `LAUNCHER_VARIABLES` from srun's, or for a single process."""
    env = os.environ
    if "RANK" not in env and "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_STEP_NUM_TASKS"], LOCAL_RANK=env["SLURM_LOCALID"])
        env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
        if "MASTER_ADDR" not in env:
            env["MASTER_ADDR"] = _first_host(env["SLURM_STEP_NODELIST"])
    elif "RANK" not in env:
        env.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        env.setdefault("MASTER_ADDR", "127.0.0.1")
        env.setdefault("MASTER_PORT", str(_free_port()))
    missing = [name for name in LAUNCHER_VARIABLES if name not in env]
    if missing:
        raise UsageError(f"RANK is set but {', '.join(missing)} is not; start with deepspeed, torchrun, srun or python")


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
