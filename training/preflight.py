"""`train.py --preflight`: would a job with these flags, on these nodes, start and be fed? Takes a minute or less.

Every rank looks at its own host; rank 0 compares and prints. What differs between ranks, or fails on one, is told with
the rank and the host; what is the same everywhere is told once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from shards import fitness
from shards.errors import BoldstreamError
from shards.fitness import Finding
from shards.storage.local import raise_open_files_limit
from training.config import ResolvedConfig
from training.describe import num_parameters
from training.engine.collective import gather
from training.engine.environment import Place, enter
from training.inputs import Inputs, make_loader, open_inputs

PATIENCE_S = 300.0
"""For ranks that do not come."""
LOADING_S = 5.0
REDUCED = 16 << 20
"""Numbers in the all-reduce that is timed: 64 MiB."""
BYTES_A_PARAMETER = 16
"""Of a checkpoint: weights, fp32 copy, AdamW's two moments."""


@dataclass(kw_only=True)
class Facts:
    """What one rank found.

    Attributes
    ----------
    rank, host
        Whose they are.
    values
        By what was looked at; text, compared between ranks.
    failures
        The same, for what would stop the job.
    clock_s
        This host's time when all ranks had met.
    """

    rank: int
    host: str
    values: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    clock_s: float = 0.0


def preflight(config: ResolvedConfig) -> int:
    """Look at everything on every rank, print a table on rank 0; 0 if the job would start, else 1.

    Parameters
    ----------
    config
        Resolved flags of the job.
    """
    place = enter(PATIENCE_S)
    facts = Facts(rank=place.rank, host=socket.gethostname())
    inputs = _look_at_host(config, place, facts)
    _reduce(place, facts)
    _load(config, place, inputs, facts)
    lines, fit = told(gather(facts, place))
    if place.is_first:
        print("\n".join(lines), flush=True)
    dist.barrier()  # rank 0 holds the store that the others end with
    return 0 if fit else 1


def _look_at_host(config: ResolvedConfig, place: Place, facts: Facts) -> Inputs | None:
    raise_open_files_limit()
    limit = fitness.open_files_limit()
    facts.values["open files"] = f"up to {limit}"
    facts.values["cores for this rank"] = str(fitness.usable_cores())
    facts.values["device"] = _device(place)
    inputs = _attempt(facts, "shard set", lambda: open_inputs(config))
    if inputs is not None:
        shard_set = inputs.shard_set
        facts.values["shard set"] = (
            f"{len(shard_set.runs)} runs, {shard_set.num_voxels} voxels, hash {shard_set.manifest.set_hash[:12]}, "
            f"split {inputs.split.hash[:12]}"
        )
    _look_at_output(config, inputs, facts)
    return inputs


def _look_at_output(config: ResolvedConfig, inputs: Inputs | None, facts: Facts) -> None:
    out = Path(str(config.out))
    try:
        skew, free = fitness.clock_skew_s(out), fitness.free_bytes(out)
    except OSError as error:
        place = fitness.existing(out)
        facts.failures["--out"] = f"{place}: {error.strerror}; choose a folder that every rank can write"
        return
    needed = 0
    if inputs is not None:
        needed = (config.keep_checkpoints + 2) * BYTES_A_PARAMETER * num_parameters(config, inputs.shard_set)
    text = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for checkpoints"
    (facts.failures if free < needed else facts.values)["--out"] = text
    if abs(skew) > fitness.MAX_SKEW_S:
        facts.failures["clock of --out"] = f"{skew:+.1f} s from the host's; set the clocks"


def _device(place: Place) -> str:
    if place.device.type != "cuda":
        return str(place.device.type)
    about = torch.cuda.get_device_properties(place.device)
    free, total = torch.cuda.mem_get_info(place.device)
    return f"{about.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"


def _reduce(place: Place, facts: Facts) -> None:
    """An all-reduce whose sum is known, timed; and the clocks at one moment."""
    numbers = torch.full((REDUCED,), float(place.rank + 1), device=place.device)
    dist.all_reduce(numbers)  # the first one also connects
    numbers.fill_(place.rank + 1)
    dist.barrier()
    facts.clock_s, began = time.time(), time.perf_counter()
    dist.all_reduce(numbers)
    wanted = place.world_size * (place.world_size + 1) / 2
    right = bool((numbers == wanted).all())
    seconds = time.perf_counter() - began
    name = f"all-reduce over {place.world_size} ranks, {dist.get_backend()}"
    if right:
        facts.values[name] = f"{4 * REDUCED / seconds / 1e9:.1f} GB/s"
    else:
        facts.failures[name] = f"sum of ranks is {numbers[0].item():g}, not {wanted:g}; the network is broken"


def _load(config: ResolvedConfig, place: Place, inputs: Inputs | None, facts: Facts) -> None:
    """All ranks stream at once, as in training, for some seconds."""
    dist.barrier()
    if inputs is None:
        return

    def stream() -> str:
        loader = make_loader(config, place, inputs.shard_set, inputs.train_runs, "train")
        began, windows = time.perf_counter(), 0
        try:
            while time.perf_counter() - began < LOADING_S:
                for batch in islice(loader, 64):
                    windows += len(batch.run)
                    if time.perf_counter() - began >= LOADING_S:
                        break
            seconds = time.perf_counter() - began
        finally:
            loader.close()
        stats = loader.stats
        per_window = stats.num_bytes_stored / max(1, stats.num_windows)
        return f"{windows / seconds:.0f} windows/s, {windows * per_window / seconds / 1e6:.0f} MB/s"

    rate = _attempt(facts, "loader of each rank", stream)
    if rate is not None:
        facts.values["loader of each rank"] = rate


def _attempt(facts: Facts, what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; what it raises for the user becomes a failure of this rank."""
    try:
        return work()
    except BoldstreamError as error:
        facts.failures[what] = str(error)
    except OSError as error:
        facts.failures[what] = f"{error.filename}: {error.strerror}"
    return None


MEASURED = ("all-reduce", "loader", "--out", "device", "cores")
"""Values that may differ between ranks without harm."""


def _differing(everyone: Sequence[Facts]) -> list[str]:
    """What must be the same on all ranks and is not."""
    names = dict.fromkeys(name for facts in everyone for name in facts.values if not name.startswith(MEASURED))
    return [name for name in names if len({facts.values[name] for facts in everyone if name in facts.values}) > 1]


def told(everyone: Sequence[Facts]) -> tuple[list[str], bool]:
    """The table's lines, and whether the job would start.

    Parameters
    ----------
    everyone
        Facts of each rank, in rank order.
    """
    differing = _differing(everyone)
    findings = []
    for name in dict.fromkeys(name for facts in everyone for name in facts.values):
        there = [facts for facts in everyone if name in facts.values]
        findings += _finding(name, there, differs=name in differing)
    skew = max(facts.clock_s for facts in everyone) - min(facts.clock_s for facts in everyone)
    apart = "logs of hosts cannot be compared; set the clocks" if skew > fitness.MAX_SKEW_S else ""
    findings.append(fitness.note("clocks of hosts", f"within {skew:.2f} s", apart))
    for facts in everyone:
        where = f"rank {facts.rank} on {facts.host}"
        for name, text in facts.failures.items():
            findings.append(Finding(what=name, found=f"{where}: {text}", verdict="FAIL"))
    fit = not differing and not any(facts.failures for facts in everyone)
    hosts = len({facts.host for facts in everyone})
    ending = f"{len(everyone)} ranks on {hosts} hosts: " + ("fit for training" if fit else "not fit, see FAIL")
    return [*fitness.table(findings), ending], fit


def _finding(name: str, there: Sequence[Facts], *, differs: bool) -> list[Finding]:
    """One line where all say the same, or may differ (then the extremes), else one for each rank."""
    values = [facts.values[name] for facts in there]
    if len(set(values)) == 1:
        return [Finding(what=name, found=values[0])]
    if not differs:
        ordered = sorted(there, key=lambda facts: _first_number(facts.values[name]))
        ends = [ordered[0], ordered[-1]]
        found = " to ".join(f"{facts.values[name]} (rank {facts.rank} on {facts.host})" for facts in ends)
        return [Finding(what=name, found=found)]
    return [
        Finding(what=name, found=f"rank {facts.rank} on {facts.host}: {facts.values[name]}", verdict="FAIL")
        for facts in there
    ]


def _first_number(text: str) -> float:
    """The number that a value begins with; 0 where it begins with a word."""
    try:
        return float(text.split()[0])
    except ValueError:
        return 0.0
