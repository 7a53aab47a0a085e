"""Where a training job is bound: rates of every stage between the filesystem and the GPU.

Pure arithmetic, no input or output. Every rank runs `threads` threads; each takes a window, reads its bytes, decodes
them, and takes the next. Three kinds of limits bound the windows per second of one rank:

    shared      bandwidth / (bytes of a window x ranks that share it)     the filesystem; the link of a node
    own cycle   threads / (decode + requests x latency + bytes / fastest single read)
    cores       cores of a node / ranks on it / decode

which are the asymptotic bounds of a closed queueing network (Denning and Buzen, ACM Computing Surveys 10(3), 1978):
exact for one thread and for many, too high by up to a third where two stages are equal. The data side runs at the
smallest of them. Bounded look-ahead evens out jitter and no more, so on average a rank waits
max(0, data time - (copy + GPU step)) in each step, and at most `look_ahead` x batch threads have work meanwhile.

A rank reads the index and, where the run needs them, the statistics of a run with its first window of the run, and
keeps them: of n windows of a rank from R runs that is R (exp(-e n/R) - exp(-(e + 1) n/R)) times in epoch e = 0, 1, ...

A share of the bytes comes from the page cache. Window starts are drawn anew each epoch: of n nodes, each reads a frame
in one epoch with probability 1 - (1 - (1 - u)/n)(1 - u/n) for a place u in [0, 1) within its part of the run
(`shards.order.training_windows`), so after one epoch a single node holds 5/6 of what it will ask for, and one of n
nodes about 1/n; the share is never above memory / bytes of the set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COMPUTE = "GPU step"
COPY = "copy to the GPU"
FILESYSTEM = "filesystem, all ranks"
LINK = "filesystem, one node"
THREADS = "threads: read, decode"
CORES = "cores: decode"


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What is streamed; a window as the loader sees it."""

    num_runs: int
    windows_per_epoch: int
    window_frames: int
    num_voxels: int
    itemsize: int
    frame_bytes: float
    """Bytes of a window's compressed frames."""
    wide_runs: float
    """Share of the runs whose statistics are needed."""
    set_bytes: float
    """Bytes of all shards."""

    @property
    def decoded_bytes(self) -> int:
        """Bytes of a decoded window."""
        return self.window_frames * self.num_voxels * self.itemsize

    @property
    def statistics_bytes(self) -> int:
        """Bytes of the mean, SD and scale of a run."""
        return 3 * 4 * self.num_voxels

    @property
    def batch_bytes(self) -> int:
        """Bytes of a window in a batch: decoded frames, and float32 gain (dtype float32: and shift) per voxel."""
        return self.decoded_bytes + 4 * self.num_voxels * (2 if self.itemsize == 4 else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """How the ranks run; a step is one batch of every rank."""

    ranks: int
    ranks_per_node: int
    batch_size: int
    threads: int
    look_ahead: int
    step_s: float
    """Seconds the GPU needs for a step; 0 shows what the data side alone would do."""

    @property
    def nodes(self) -> int:
        """Nodes, the last of which may be partly filled."""
        return math.ceil(self.ranks / self.ranks_per_node)

    @property
    def ranks_of_a_node(self) -> int:
        """Ranks that share the fullest node."""
        return min(self.ranks, self.ranks_per_node)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Rates of the machine in bytes and seconds; infinite where a limit is not known."""

    decode_windows_s: float
    """Windows a second that one thread reads from the page cache and decodes."""
    bandwidth: float = math.inf
    """Bytes a second of the filesystem, all nodes together."""
    node_bandwidth: float = math.inf
    """Bytes a second that one node gets from it."""
    stream_bandwidth: float = math.inf
    """Bytes a second that one reader gets, others idle."""
    latency_s: float = 0.0
    """Seconds before the first byte of a read."""
    cores_per_node: float = math.inf
    memory: float = 0.0
    """Bytes of a node that page cache and loaders may fill."""
    copy_bandwidth: float = math.inf
    """Bytes a second from pinned host memory to a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One limit, as one rank sees it."""

    name: str
    windows_s: float
    """Windows a second of one rank if nothing else were slower."""
    seconds: float
    """Seconds of a step at this rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One epoch."""

    window_bytes: float
    """Bytes that a window takes on average, from the filesystem or the page cache."""
    cached: float
    """Share of the bytes that come from the page cache."""
    stages: tuple[Stage, ...]
    bound: str
    """The stage that sets the pace."""
    data_s: float
    """Seconds in which the data side prepares a step."""
    consume_s: float
    """Seconds of copy and GPU step."""
    step_s: float
    """Seconds of a step in all: the larger of the two."""
    wait: float
    """Share of a step in which the GPU waits for data."""
    windows_s: float
    """Of all ranks."""
    epoch_s: float
    read_bytes_s: float
    """Bytes a second that all ranks read from the filesystem."""
    node_read_bytes_s: float
    """Of them, by one node."""


def predict(data: Data, job: Job, machine: Machine, epoch: int = 0) -> Prediction:
    """Predict pace, bound and waiting of an epoch, the first of which is 0.

    Examples
    --------
    >>> data = Data(num_runs=10, windows_per_epoch=600, window_frames=20, num_voxels=1000, itemsize=1, frame_bytes=2e4,
    ...             wide_runs=0, set_bytes=1e7)
    >>> job = Job(ranks=1, ranks_per_node=1, batch_size=4, threads=1, look_ahead=2, step_s=0.03)
    >>> prediction = predict(data, job, Machine(decode_windows_s=100))
    >>> prediction.bound, round(prediction.wait, 2), round(prediction.windows_s)
    ('threads: read, decode', 0.25, 100)
    """
    cached = cached_share(data, job, machine, epoch)
    read_bytes = (1 - cached) * window_bytes(data, job, epoch)
    rates = {
        FILESYSTEM: _over(machine.bandwidth, read_bytes * job.ranks),
        LINK: _over(machine.node_bandwidth, read_bytes * job.ranks_of_a_node),
        THREADS: useful_threads(job) / thread_s(data, job, machine, epoch),
        CORES: machine.cores_per_node / job.ranks_of_a_node * machine.decode_windows_s,
        COPY: _over(machine.copy_bandwidth, data.batch_bytes),
        COMPUTE: _over(job.batch_size, job.step_s),
    }
    stages = [Stage(name=name, windows_s=rate, seconds=_over(job.batch_size, rate)) for name, rate in rates.items()]
    feeding = max(stages[:-2], key=lambda stage: stage.seconds)
    consume_s = sum(stage.seconds for stage in stages[-2:])
    using = max(stages[-2:], key=lambda stage: stage.seconds)
    step_s = max(feeding.seconds, consume_s)
    windows_s = job.ranks * job.batch_size / step_s
    return Prediction(
        window_bytes=window_bytes(data, job, epoch),
        cached=cached,
        stages=tuple(stages),
        bound=feeding.name if feeding.seconds > consume_s else using.name,
        data_s=feeding.seconds,
        consume_s=consume_s,
        step_s=step_s,
        wait=max(0.0, feeding.seconds - consume_s) / step_s,
        windows_s=windows_s,
        epoch_s=steps_per_epoch(data, job) * step_s,
        read_bytes_s=windows_s * read_bytes,
        node_read_bytes_s=windows_s * read_bytes * job.ranks_of_a_node / job.ranks,
    )


def steps_per_epoch(data: Data, job: Job) -> int:
    """Whole steps of an epoch; an incomplete last batch is left out."""
    return data.windows_per_epoch // (job.ranks * job.batch_size)


def useful_threads(job: Job) -> int:
    """Threads of a rank that have a window to work on while the GPU computes."""
    return min(job.threads, job.look_ahead * job.batch_size)


def first_windows(data: Data, job: Job, epoch: int = 0) -> float:
    """Share of a rank's windows that are its first of their run."""
    each = data.windows_per_epoch / job.ranks / data.num_runs
    return (math.exp(-epoch * each) - math.exp(-(epoch + 1) * each)) / each if each else 1.0


def window_bytes(data: Data, job: Job, epoch: int = 0) -> float:
    """Bytes that a window takes on average: its frames, and a share of the statistics."""
    return data.frame_bytes + first_windows(data, job, epoch) * data.wide_runs * data.statistics_bytes


def thread_s(data: Data, job: Job, machine: Machine, epoch: int = 0) -> float:
    """Seconds in which one thread alone reads and decodes a window."""
    fastest = min(machine.stream_bandwidth, machine.node_bandwidth, machine.bandwidth)
    requests = 1 + first_windows(data, job, epoch) * (1 + data.wide_runs)
    read_s = requests * machine.latency_s + window_bytes(data, job, epoch) / fastest
    return 1 / machine.decode_windows_s + (1 - cached_share(data, job, machine, epoch)) * read_s


def enough_threads(data: Data, job: Job, machine: Machine) -> int:
    """Threads a rank that keep up with copy and GPU step in the first epoch, as far as threads decide that."""
    consume_s = data.batch_bytes * job.batch_size / machine.copy_bandwidth + job.step_s
    return math.ceil(job.batch_size * thread_s(data, job, machine) / consume_s - 1e-9) if consume_s else job.threads


def loader_bytes(data: Data, job: Job) -> int:
    """Bytes of the batches that one rank holds: the one in use, those ahead, and the one asked for."""
    return (job.look_ahead + 2) * job.batch_size * data.batch_bytes


def cache_bytes(data: Data, job: Job, machine: Machine) -> float:
    """Bytes of a node's memory that are left for its page cache."""
    return max(0.0, machine.memory - job.ranks_of_a_node * loader_bytes(data, job))


def cached_share(data: Data, job: Job, machine: Machine, epoch: int) -> float:
    """Share of an epoch's bytes (0 is the first) that the reading node still holds from earlier epochs.

    A set that is larger than the cache is found in it in proportion: the reads are random.
    """
    steps = 1000
    never_read = 0.0
    for k in range(steps):
        u = (k + 0.5) / steps
        never_read += ((1 - (1 - u) / job.nodes) * (1 - u / job.nodes)) ** epoch / steps
    return max(0.0, min(1 - never_read, cache_bytes(data, job, machine) / data.set_bytes))


def fed_ranks(data: Data, job: Job, machine: Machine) -> float:
    """Ranks that the filesystem as a whole feeds in the first epoch at the pace of copy and GPU step."""
    consume_s = predict(data, job, machine).consume_s
    return _over(machine.bandwidth * consume_s, window_bytes(data, job) * job.batch_size)


def _over(amount: float, rate: float) -> float:
    """A quotient that is infinite where there is nothing to divide by, and 0 where the divisor has no bound."""
    if math.isinf(rate):
        return 0.0
    return amount / rate if rate else math.inf
