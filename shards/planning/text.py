"""A prediction in words: the plan of a job, what to change, and the tables of `bench-fmri`, 80 columns wide."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shards.planning import model as throughput
from shards.planning.model import CORES, FILESYSTEM, LINK, Data, Job, Machine, Prediction, Stage

if TYPE_CHECKING:
    from shards.planning.rates import Streamed

WIDTH = 80
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a job asks of its machine, and what it gets, in its first epoch and once the page cache is filled."""

    data: Data
    job: Job
    machine: Machine
    sources: tuple[str, ...]
    """Where figures that were not given come from."""
    steps_per_epoch: int
    needed_bytes_s: float
    """Bytes a second that all ranks would read if the GPUs never waited; 0 without a GPU step."""
    node_needed_bytes_s: float
    """Of them, by a full node."""
    needed_threads: int
    """Threads a rank that keep up with copy and GPU step."""
    loader_bytes: int
    """Memory of one rank's batches."""
    cache_bytes: float
    """Memory of a node left for the page cache."""
    first: Prediction
    """Epoch 1, page cache cold."""
    second: Prediction
    """Epoch 2."""
    advice: tuple[str, ...]


def make_plan(data: Data, job: Job, machine: Machine, sources: Iterable[str] = ()) -> Plan:
    """Predict the first two epochs of a job and what would help it."""
    first = throughput.predict(data, job, machine)
    second = throughput.predict(data, job, machine, epoch=1)
    used = job.ranks * job.batch_size * first.window_bytes
    needed = used / first.consume_s if first.consume_s else 0.0
    return Plan(
        data=data,
        job=job,
        machine=machine,
        sources=tuple(source for source in sources if source),
        steps_per_epoch=throughput.steps_per_epoch(data, job),
        needed_bytes_s=needed,
        node_needed_bytes_s=needed * job.ranks_of_a_node / job.ranks,
        needed_threads=throughput.enough_threads(data, job, machine),
        loader_bytes=throughput.loader_bytes(data, job),
        cache_bytes=throughput.cache_bytes(data, job, machine),
        first=first,
        second=second,
        advice=tuple(_advice(data, job, machine, first)),
    )


def _advice(data: Data, job: Job, machine: Machine, first: Prediction) -> Iterable[str]:
    if not throughput.steps_per_epoch(data, job):
        yield (
            f"{data.windows_per_epoch:,} windows are less than one global batch of {job.ranks * job.batch_size:,}: "
            "lower --batch_size or --ranks"
        )
    if machine.memory and not throughput.cache_bytes(data, job, machine):
        yield "the loaders alone fill --memory_gb: lower --batch_size or --look_ahead"
    if not first.consume_s:
        yield f"a GPU step of {first.data_s:.3g} s or more would not wait; give --step_s for a prediction"
    elif first.wait:
        yield from _cures(data, job, machine, first)
    elif first.bound == throughput.COPY:
        yield "the copy to the GPU takes longer than its step: pin the memory, or read on the GPU's own PCIe root"
    if first.consume_s and not first.wait:
        enough = throughput.enough_threads(data, job, machine)
        yield f"the data keep up; {_count(enough, 'thread')} per rank would do"


def _cures(data: Data, job: Job, machine: Machine, first: Prediction) -> Iterable[str]:
    """What would end the waiting, stage by stage, slowest first."""
    slow = [stage for stage in first.stages[:-2] if stage.seconds > first.consume_s]
    for number, stage in enumerate(sorted(slow, key=lambda stage: -stage.seconds)):
        yield ("and " if number else "") + _cure(data, job, machine, first, stage)


def _cure(data: Data, job: Job, machine: Machine, first: Prediction, stage: Stage) -> str:
    if stage.name == FILESYSTEM:
        fed = math.floor(throughput.fed_ranks(data, job, machine))
        return f"this filesystem feeds {_count(fed, 'rank')} at this step; {_caching(data, job)}"
    if stage.name == LINK:
        fed = math.floor(job.ranks_of_a_node * first.consume_s / stage.seconds)
        return f"a node's link feeds {_count(fed, 'rank')} at this step: use more nodes, or {_caching(data, job)}"
    if stage.name == CORES:
        need = math.ceil(job.ranks_of_a_node * job.batch_size / machine.decode_windows_s / first.consume_s)
        return f"decoding takes {_count(need, 'core')} of a node at this step: fewer ranks a node, or more cores"
    return _more_threads(data, job, machine)


def _more_threads(data: Data, job: Job, machine: Machine) -> str:
    enough = throughput.enough_threads(data, job, machine)
    most = job.look_ahead * job.batch_size
    text = f"{_count(enough, 'thread')} per rank would do ({enough * job.ranks_of_a_node} a node)"
    if enough > most:
        text += f"; with them --look_ahead {math.ceil(enough / job.batch_size)}, for more than {most} find no work"
    return text


def _caching(data: Data, job: Job) -> str:
    share = f", 1/{job.nodes} of it more each epoch" if job.nodes > 1 else ""
    return f"a cache on the nodes' own disks takes repeated reads (up to {size(data.set_bytes)} a node{share})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def plan_lines(plan: Plan) -> list[str]:
    """The table of `bench-fmri plan`."""
    data, job = plan.data, plan.job
    lines = [
        f"{_count(job.ranks, 'rank')} on {_count(job.nodes, 'node')}, {job.batch_size} windows of "
        f"{data.window_frames} frames a rank and step, {_count(job.threads, 'thread')}",
        f"{data.num_voxels:,} voxels, {size(data.set_bytes)} in shards, {data.windows_per_epoch:,} windows an epoch",
        *(f"({source})" for source in plan.sources),
        "",
        *_amounts(plan),
        "",
        *_stage_table(plan),
        "",
        *_results(plan),
        "",
        *(f"-> {text}" for text in plan.advice),
    ]
    return [part for line in lines for part in _wrapped(line)]


def _amounts(plan: Plan) -> list[str]:
    data, job, first = plan.data, plan.job, plan.first
    step = job.ranks * job.batch_size
    counts = (1, step, step * plan.steps_per_epoch, 3600 * first.windows_s)
    rows = [f"{'':24}{'a window':>14}{'a step':>14}{'an epoch':>14}{'an hour':>14}"]
    for name, each in (("stored", first.window_bytes), ("decoded", float(data.decoded_bytes))):
        rows.append(f"{name:24}" + "".join(f"{size(each * count):>14}" for count in counts))
    return rows


def _stage_table(plan: Plan) -> list[str]:
    first, second = plan.first, plan.second
    rows = [
        f"{'':24}{'epoch 1':>28}{'epoch 2':>28}",
        f"{'stage, as a rank sees it':24}" + f"{'windows/s':>14}{'s a step':>14}" * 2,
    ]
    for cold, warm in zip(first.stages, second.stages, strict=True):
        cells = "".join(f"{_number(value):>14}" for stage in (cold, warm) for value in (stage.windows_s, stage.seconds))
        rows.append(f"{cold.name:24}{cells}")
    return rows


def _results(plan: Plan) -> list[str]:
    pairs = [
        ("bound by", [epoch.bound for epoch in (plan.first, plan.second)]),
        ("data wait of a step", [f"{100 * epoch.wait:.1f} %" for epoch in (plan.first, plan.second)]),
        ("windows/s, all ranks", [_number(epoch.windows_s) for epoch in (plan.first, plan.second)]),
        ("time of an epoch", [duration(epoch.epoch_s) for epoch in (plan.first, plan.second)]),
        ("from the page cache", [f"{100 * epoch.cached:.1f} %" for epoch in (plan.first, plan.second)]),
        (
            "read by all, by a node",
            [_both(epoch.read_bytes_s, epoch.node_read_bytes_s) for epoch in (plan.first, plan.second)],
        ),
    ]
    lines = [f"{name:24}" + "".join(f"{cell:>28}" for cell in cells) for name, cells in pairs]
    if plan.needed_bytes_s:
        lines.append(f"{'at no wait, epoch 1':24}{_both(plan.needed_bytes_s, plan.node_needed_bytes_s):>28}")
    cache = (
        f"page cache of a node {size(plan.cache_bytes)}: {_fit(plan)}"
        if plan.machine.memory
        else "give --memory_gb for the page cache"
    )
    return [*lines, f"memory: loader {size(plan.loader_bytes)} a rank; {cache}"]


def _fit(plan: Plan) -> str:
    share = plan.cache_bytes / plan.data.set_bytes
    if share < 1:
        return f"{100 * share:.2g} % of the set"
    if plan.job.nodes == 1:
        return f"the set fits, epoch 2 finds {100 * plan.second.cached:.0f} % of its bytes there"
    return (
        f"the set fits, but each node reads 1/{plan.job.nodes} of it an epoch: warm after about {plan.job.nodes} epochs"
    )


def stream_lines(results: Sequence[Streamed], flags: Sequence[str]) -> list[str]:
    """The table of `bench-fmri stream`, and the call of `bench-fmri plan` that follows from it."""
    columns = f"{'windows/s':>10}{'read GB/s':>10}{'decoded GB/s':>13}{'wait':>8}{'from disk':>10}"
    lines = [f"{'threads':>7}  {'page cache':10}{columns}"]
    for row in results:
        disk = f"{100 * min(1.0, row.disk_bytes / max(1, row.stored_bytes)):.0f} %"
        rates = f"{row.stored_bytes / row.seconds / 1e9:>10.3f}{row.decoded_bytes / row.seconds / 1e9:>13.3f}"
        state = "warm" if row.warm else "as found"
        lines.append(
            f"{row.threads:>7}  {state:10}{_number(row.windows_s):>10}{rates}{100 * row.wait:>6.1f} %{disk:>10}"
        )
    note = (
        "from disk: share of the bytes that came from a disk of this machine; a network filesystem shows 0. "
        "Both rows of a number of threads take the same windows."
    )
    return [*lines, *_wrapped(note), "", *_wrapped("next: bench-fmri plan " + shlex.join(flags))]


def size(num_bytes: float) -> str:
    """Bytes with a unit, three digits."""
    power = 0
    while num_bytes >= 999.5 and power < len(_UNITS) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, three digits."""
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 120 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"


def _both(all_nodes: float, one: float) -> str:
    return f"{size(all_nodes)}/s, {size(one)}/s"


def _number(value: float) -> str:
    if math.isinf(value):
        return "not limiting"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _wrapped(line: str) -> list[str]:
    """A line of at most 80 columns, or several, of which the later are indented."""
    if len(line) <= WIDTH:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent="   ", break_on_hyphens=False, break_long_words=False)
