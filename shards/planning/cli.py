"""`bench-fmri`: where will a training job be bound, and how fast does a shard set stream here?

Exit codes: 0 done; 1 internal error; 2 usage; 7 the shard set is damaged or cannot be read; 130 interrupted.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from shards.errors import EXIT_INTERRUPTED, EXIT_OK, BoldstreamError, UsageError
from shards.flags import read_flags

if TYPE_CHECKING:
    from shards.planning.model import Data, Job, Machine
    from shards.planning.rates import Streamed
    from shards.planning.text import Plan

_DESCRIPTION = """Where a training job will be bound, and how fast a shard set streams on this machine.

examples:
  bench-fmri stream --shards shards/ --threads 1 2 4
  bench-fmri plan --shards shards/ --ranks 64 --ranks_per_node 4 --step_s 0.25 --bandwidth_gb_s 20
  bench-fmri plan --runs 40000 --frames 1200 --voxels 228483 --ranks 1024 --ranks_per_node 4 --step_s 0.25

exit codes: 0 done, 1 internal error, 2 usage, 7 the shard set is damaged or cannot be read, 130 interrupted
"""
_GB = 1e9
_DTYPE = "int8"
_MEASURE_S = 1.0
_COLD = 0.9
"""Share of the warm rate below which a pass as found tells how fast the filesystem is."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Predict where a training job will be bound: filesystem, network, decoding, copy or GPU.

    The data are those of --shards, or --runs, --frames and --voxels. Limits that are not given do not bind.
    """

    shards: str | None = None
    """Shard set to plan for: a folder or a URL."""
    runs: int | None = None
    """Without --shards: number of runs."""
    frames: int | None = None
    """Without --shards: frames of a run."""
    voxels: int | None = None
    """Without --shards: voxels in the mask."""
    dtype: Literal["int8", "int16", "float16", "float32"] | None = None
    """Without --shards: stored type (default: int8)."""
    bytes_per_frame: float | None = None
    """Without --shards: stored bytes of a frame (default: those of noise, compressed here)."""
    wide_runs: float | None = None
    """Without --shards: share of the runs whose statistics a rank reads whole, once, because more than a
    sixteenth of their voxels leaves 8 SD or was kept as the source's integers (default: 0)."""

    window: str = "20"
    """Window length in frames (20), or with --shards in seconds (16s)."""
    batch_size: int = 8
    """Windows per rank and step."""
    ranks: int = 1
    """Ranks (GPUs) of the job."""
    ranks_per_node: int = 4
    """Ranks that share a node."""
    threads: int = 2
    """Threads of each rank's loader."""
    look_ahead: int = 2
    """Batches that the loader prepares in advance."""
    step_s: float = 0.0
    """Seconds that a GPU needs for one batch. From log.jsonl of a run: step_s * (1 - data_wait) / --accumulation; it
    holds the copy, so add --copy_gb_s 0. 0: how fast would the data come."""

    bandwidth_gb_s: float | None = None
    """GB/s that the filesystem gives to all nodes together."""
    node_gb_s: float | None = None
    """GB/s that one node gets from it."""
    stream_gb_s: float | None = None
    """GB/s that one reader gets from it while others are idle."""
    latency_ms: float = 0.0
    """Milliseconds before the first byte of a read: below 1 on a parallel filesystem, 20 to 100 for object stores."""
    decode_windows_s: float | None = None
    """Windows a second that one thread reads from the page cache and decodes (default: measured here, in a second)."""
    cores_per_node: int | None = None
    """Cores of a node that the loaders may use."""
    memory_gb: float = 0.0
    """GB of a node that page cache and loaders may fill."""
    copy_gb_s: float = 25.0
    """GB/s from pinned memory to a GPU (PCIe 4: 25, PCIe 5: 50); 0 leaves the copy out."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def __post_init__(self) -> None:
        if self.shards is None and None in (self.runs, self.frames, self.voxels):
            raise UsageError("give --shards DIR, or all of --runs, --frames and --voxels; see bench-fmri plan --help")
        told = ("runs", "frames", "voxels", "dtype", "bytes_per_frame", "wide_runs")
        given = [f"--{name}" for name in told if getattr(self, name) is not None]
        if self.shards is not None and given:
            raise UsageError(f"{', '.join(given)}: --shards tells this by itself; leave one or the other out")
        _check_positive(self, ("runs", "frames", "voxels", "batch_size", "ranks", "ranks_per_node", "threads"))
        _check_positive(self, ("look_ahead", "bytes_per_frame", "bandwidth_gb_s", "node_gb_s", "stream_gb_s"))
        _check_positive(self, ("decode_windows_s", "cores_per_node"))
        for name in ("step_s", "latency_ms", "memory_gb", "copy_gb_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"--{name} {getattr(self, name)}: a number of at least 0")
        if self.wide_runs is not None and not 0 <= self.wide_runs <= 1:
            raise UsageError(f"--wide_runs {self.wide_runs}: a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Measure the loader on a shard set where it lies: as the page cache is found, and warm."""

    shards: str
    """Shard set: a folder or a URL."""
    window: str = "20"
    """Window length in frames (20) or seconds (16s)."""
    batch_size: int = 8
    """Windows per step."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads to measure, one after another."""
    seconds: float = 5.0
    """Time for each measurement; there are two for each number of threads."""
    step_s: float = 0.0
    """Emulated GPU step: the consumer sleeps that long after each batch."""
    seed: int = 0
    """Another seed reads other windows, which an earlier call has not warmed."""
    json: bool = False
    """Print one JSON object instead of the table."""

    def __post_init__(self) -> None:
        _check_positive(self, ("batch_size", "seconds"))
        if not self.threads or min(self.threads) < 1:
            raise UsageError(f"--threads {' '.join(map(str, self.threads))}: numbers of at least 1")
        if not 0 <= self.step_s < math.inf:
            raise UsageError(f"--step_s {self.step_s}: a number of at least 0")


def _check_positive(config: object, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name} {value}: a number above 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `bench-fmri`; returns the exit code (see the module's first lines)."""
    try:
        config = _parse(argv)
        if isinstance(config, PlanConfig):
            plan(config)
        else:
            stream(config)
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _parse(argv: Sequence[str] | None) -> PlanConfig | StreamConfig:
    import tyro

    commands: dict[str, Callable[..., Any]] = {"plan": PlanConfig, "stream": StreamConfig}
    parse: Callable[[], Any] = partial(
        tyro.extras.subcommand_cli_from_dict,
        commands,
        prog="bench-fmri",
        description=_DESCRIPTION,
        args=list(sys.argv[1:] if argv is None else argv),
        use_underscores=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    config: PlanConfig | StreamConfig = read_flags(parse, "bench-fmri")
    return config


def plan(config: PlanConfig) -> None:
    """Predict, and print the table or the JSON."""
    from shards.planning.text import make_plan, plan_lines

    data, decode_windows_s, sources = _measured(config)
    made = make_plan(data, _job(config), _machine(config, decode_windows_s), sources)
    print(json.dumps(_as_json(made)) if config.json else "\n".join(plan_lines(made)))


def _measured(config: PlanConfig) -> tuple[Data, float, tuple[str, ...]]:
    """The data, a thread's decoding rate, and in words where they come from."""
    from shards.planning.rates import describe_set, measure_synthetic, thread_rate
    from shards.reader import ShardSet

    given = config.decode_windows_s
    if config.shards is not None:
        with ShardSet(config.shards) as shard_set:
            data = describe_set(shard_set, config.window)
            rate = given or thread_rate(shard_set, config.window, _MEASURE_S)
        return data, rate, ("" if given else "decoding: measured here, one thread on windows of this set",)
    frames = _window_frames(config)
    synthetic = None
    if given is None or config.bytes_per_frame is None:
        synthetic = measure_synthetic(int(config.voxels or 0), config.dtype or _DTYPE, frames, _MEASURE_S)
    said = []
    if config.bytes_per_frame is None:
        said.append("bytes of a frame: those of noise, compressed here; real runs differ by a few per cent")
    if given is None:
        said.append("decoding: measured here, one thread on synthetic chunks of this size")
    per_frame = config.bytes_per_frame or (synthetic.bytes_per_frame if synthetic else 0.0)
    return _data(config, frames, per_frame), given or (synthetic.windows_s if synthetic else 0.0), tuple(said)


def _window_frames(config: PlanConfig) -> int:
    if not config.window.isdigit() or not 0 < int(config.window) <= int(config.frames or 0):
        raise UsageError(
            f"--window {config.window}: without --shards a number of frames from 1 to --frames {config.frames}"
        )
    return int(config.window)


def _data(config: PlanConfig, window_frames: int, bytes_per_frame: float) -> Data:
    import numpy as np

    from shards.format import frames_per_chunk
    from shards.planning.model import Data

    runs, frames, voxels = int(config.runs or 0), int(config.frames or 0), int(config.voxels or 0)
    itemsize = np.dtype(config.dtype or _DTYPE).itemsize
    return Data(
        num_runs=runs,
        windows_per_epoch=runs * (frames // window_frames),
        window_frames=window_frames,
        num_voxels=voxels,
        itemsize=itemsize,
        frame_bytes=(window_frames + frames_per_chunk(voxels, itemsize) - 1) * bytes_per_frame,
        wide_runs=1.0 if itemsize == 4 else config.wide_runs or 0.0,
        set_bytes=runs * (frames * bytes_per_frame + 3 * 4 * voxels),
    )


def _job(config: PlanConfig) -> Job:
    from shards.planning.model import Job

    return Job(
        ranks=config.ranks,
        ranks_per_node=config.ranks_per_node,
        batch_size=config.batch_size,
        threads=config.threads,
        look_ahead=config.look_ahead,
        step_s=config.step_s,
    )


def _machine(config: PlanConfig, decode_windows_s: float) -> Machine:
    from shards.planning.model import Machine

    def rate(gb_s: float | None) -> float:
        return gb_s * _GB if gb_s else math.inf

    return Machine(
        decode_windows_s=decode_windows_s,
        bandwidth=rate(config.bandwidth_gb_s),
        node_bandwidth=rate(config.node_gb_s),
        stream_bandwidth=rate(config.stream_gb_s),
        latency_s=config.latency_ms / 1e3,
        cores_per_node=config.cores_per_node or math.inf,
        memory=config.memory_gb * _GB,
        copy_bandwidth=rate(config.copy_gb_s),
    )


def stream(config: StreamConfig) -> None:
    """Measure, and print the table or the JSON, with the flags for `bench-fmri plan`."""
    from shards.planning import rates
    from shards.planning.text import stream_lines
    from shards.reader import ShardSet
    from shards.storage.local import raise_open_files_limit

    raise_open_files_limit()
    results: list[Streamed] = []
    with ShardSet(config.shards) as shard_set:
        for number, threads in enumerate(config.threads):
            results += rates.stream(
                shard_set,
                window=config.window,
                batch_size=config.batch_size,
                threads=threads,
                seconds=config.seconds,
                step_s=config.step_s,
                seed=config.seed * 1000 + number,
            )
    flags = plan_flags(config, results)
    if config.json:
        rows = [asdict(result) | {"windows_s": result.windows_s, "wait": result.wait} for result in results]
        print(json.dumps({"shards": config.shards, "rows": rows, "plan_flags": flags}))
        return
    print("\n".join(stream_lines(results, flags)))


def plan_flags(config: StreamConfig, results: Sequence[Streamed]) -> list[str]:
    """Flags of `bench-fmri plan` that say what was measured.

    A thread's rate is the warm one at the largest number of threads, which knows of shared memory and cores; what a
    window took longer as found is the time to read it. An emulated step hides both, so there are none then.
    """
    found, warm = max(zip(results[::2], results[1::2], strict=True), key=lambda pair: pair[0].threads)
    flags = ["--shards", config.shards, "--window", config.window, "--batch_size", str(config.batch_size)]
    flags += ["--threads", str(warm.threads)]
    if config.step_s:
        return [*flags, "--step_s", f"{config.step_s:g}"]
    flags += ["--decode_windows_s", f"{warm.windows_s / warm.threads:.4g}"]
    if found.windows_s > _COLD * warm.windows_s:
        return flags
    read_s = found.threads / found.windows_s - warm.threads / warm.windows_s
    return [*flags, "--stream_gb_s", f"{found.stored_bytes / found.num_windows / read_s / _GB:.3g}"]


def _as_json(made: Plan) -> dict[str, Any]:
    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and math.isinf(value) else value

    values: dict[str, Any] = finite(asdict(made))
    return values


if __name__ == "__main__":
    sys.exit(main())
