"""What a GPU does with windows: its input against its memory bandwidth, the wait for the loader, training steps.

    python scripts/bench/device.py [--out FILE.json] [--small] [--only input loader training]

Measures on a GPU (with --small on the CPU too, to see that it runs): the copy of a batch of stored windows; gather,
dequantisation and the intensity channel, eager and by torch.compile, in GB/s of bytes read and written; how long a
consumer waits for the loader when each step takes as long as --step_s says, with --threads threads; and steps of
`train.py`, phases 1 and 2, in bf16, for each preset with its own batch: frames per second, share of the time that it
waits for data, peak memory. The set is thrown away at the end: runs of 91 x 109 x 91, 228,483 voxels, windows of 20
frames.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timed_training import Timed, TrainingError, timed_training

from shards.batch import Batch, empty_batch
from shards.format import Grid
from shards.loader import WindowLoader
from shards.publish import publish_set, run_entry
from shards.reader import ShardSet
from shards.values import encode
from shards.writer import EncodedRun, write_shard
from training.networks.volume import Volume, dense_input

FULL = {"shape": (91, 109, 91), "frames": 200, "runs": 8, "batch": 16, "steps": 60}
SMALL = {"shape": (20, 24, 20), "frames": 60, "runs": 4, "batch": 2, "steps": 4}
LENGTH = 20
TRAININGS = {
    "base": ["--preset", "base"],
    "base --compile": ["--preset", "base", "--compile"],
    "tff": ["--preset", "tff"],
    "hackathon": ["--preset", "hackathon"],
}
SMALL_TRAININGS = {"tiny": ["--preset", "tiny", "--batch_size", "2"]}
PRECISION = Path(__file__).parents[2] / "deepspeed_configs" / "zero1_bf16.json"
WARM_LINES = 3  # of the log; compilation and the choice of algorithms happen before
MEASUREMENTS = ("input", "loader", "training")
AFFINE = ((2.0, 0.0, 0.0, -90.0), (0.0, 2.0, 0.0, -126.0), (0.0, 0.0, 2.0, -72.0), (0.0, 0.0, 0.0, 1.0))


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--small", action="store_true", help="a small set, also without a GPU")
    parser.add_argument("--threads", type=int, default=min(12, os.cpu_count() or 1))
    parser.add_argument("--step_s", type=float, default=0.1, help="emulated time of a training step")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.small:
        parser.error("no GPU here; --small runs on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SMALL if options.small else FULL
    with tempfile.TemporaryDirectory(prefix="boldstream-bench-") as name:
        write_set(Path(name), sizes)
        measured: dict[str, Any] = {}
        with ShardSet(name) as shard_set:
            if "input" in options.only:
                measured["input"] = input_rows(shard_set, sizes["batch"], device)
            if "loader" in options.only:
                measured["loader"] = loader_rows(shard_set, sizes["batch"], device, options.threads, options.step_s)
        if "training" in options.only:
            trainings = SMALL_TRAININGS if options.small else TRAININGS
            measured["training"] = training_rows(Path(name), trainings, sizes["steps"], options.threads)
    report = {
        "command": " ".join(["python", "scripts/bench/device.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "numpy", "numcodecs")},
        "date": time.strftime("%Y-%m-%d"),
        **measured,
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def write_set(folder: Path, sizes: dict[str, Any]) -> None:
    """Runs of noise in an ellipsoid mask of a quarter of the grid."""
    axes = np.meshgrid(*((np.arange(n) - n / 2) / n for n in sizes["shape"]), indexing="ij")
    order = np.argsort(sum(axis**2 for axis in axes).ravel(), kind="stable")
    mask = np.zeros(order.size, bool)
    mask[order[: 228_483 * order.size // (91 * 109 * 91)]] = True
    signal = np.random.default_rng(0).standard_normal((sizes["frames"], int(mask.sum())), dtype="f4")
    signal[9, ::3000] += 20  # some voxels with a wider step
    encoded = encode(signal, "int8")
    meta = {"tr_s": 0.72}
    runs = [
        EncodedRun(run_id=f"sub-{k}", meta=meta | {"subject": str(k)}, encoded=encoded) for k in range(sizes["runs"])
    ]
    written = write_shard(folder / "bench-000000.tar", runs)
    publish_set(
        folder,
        name="bench",
        dtype="int8",
        mask=mask.reshape(sizes["shape"]),
        grid=Grid(shape=sizes["shape"], affine=AFFINE),
        entries=[run_entry(run, "bench-000000.tar", written.places[run.run_id]) for run in runs],
        shards=[written.info],
    )


def input_rows(shard_set: ShardSet, batch_size: int, device: torch.device) -> list[dict[str, Any]]:
    """Copy to the device, and the dense input there in its variants."""
    pinned = device.type == "cuda"
    shape = (batch_size, LENGTH, shard_set.num_voxels)
    batch = empty_batch(*shape, dtype="int8", intensity=True, pinned=pinned)
    batch.q.random_(-40, 40)
    batch.gain.fill_(1 / 16)
    volume = Volume(shard_set.mask).to(device)
    moved = batch.to(device)
    compiled = torch.compile(dense_input)
    copied = torch.empty(2**28 if pinned else 2**22, dtype=torch.int8, device=device)
    rows = [
        row("copy to the device", lambda: batch.to(device), size_of(batch), device),
        row("device memory: clone (read and write)", copied.clone, 2 * copied.nbytes, device),
    ]
    for name, function in (("eager", dense_input), ("compiled", compiled)):
        for channels in (1, 2):
            call = input_call(function, moved, volume, channels)
            rows.append(row(f"input, {channels} channels, bfloat16, {name}", call, traffic(moved, call()), device))
    return rows


def input_call(function: Callable[..., torch.Tensor], batch: Batch, volume: Volume, channels: int) -> Callable[[], Any]:
    """`function` on a batch with one or two channels."""
    extra = (batch.level, batch.spread) if channels == 2 else (None, None)
    return lambda: function(batch.q, batch.gain, batch.shift, *extra, volume.lookup, torch.bfloat16)


def size_of(batch: Batch) -> int:
    """Bytes of a batch's large tensors."""
    return sum(tensor.nbytes for tensor in (batch.q, batch.gain, batch.level, batch.spread) if tensor is not None)


def traffic(batch: Batch, dense: torch.Tensor) -> int:
    """Bytes that cannot be avoided: every stored value and affine once, every input value once."""
    return size_of(batch) + dense.nbytes


def row(what: str, call: Callable[[], Any], num_bytes: int, device: torch.device) -> dict[str, Any]:
    """Median of 20 calls, waited for."""
    times = []
    for _ in range(23):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - began)
    middle = statistics.median(times[3:])
    return {"what": what, "ms": round(1e3 * middle, 3), "gb_per_s": round(num_bytes / middle / 1e9, 1)}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def loader_rows(
    shard_set: ShardSet, batch_size: int, device: torch.device, threads: int, step_s: float
) -> list[dict[str, Any]]:
    """Windows a second without a consumer, and the share of a step that a consumer of `step_s` waits."""
    rows = []
    for pause in (0.0, step_s):
        with WindowLoader(
            shard_set, window=LENGTH, batch_size=batch_size, threads=threads, pin_memory=device.type == "cuda"
        ) as loader:
            next(iter(loader))
            began, wait_s, windows = time.perf_counter(), loader.stats.wait_s, loader.stats.num_windows
            while time.perf_counter() - began < 5:
                for batch in loader:
                    batch.to(device)
                    synchronize(device)
                    time.sleep(pause)
            elapsed = time.perf_counter() - began
            rows.append(
                {
                    "step_s": pause,
                    "threads": threads,
                    "windows_per_s": round((loader.stats.num_windows - windows) / elapsed, 1),
                    "wait": round((loader.stats.wait_s - wait_s) / elapsed, 4),
                }
            )
    return rows


def training_rows(folder: Path, trainings: dict[str, list[str]], steps: int, threads: int) -> list[dict[str, Any]]:
    """Median step of each training in each phase, or why it did not train; at random weights, which costs the same."""
    common = ["--shards", str(folder), "--window", str(LENGTH), "--steps", str(steps), "--threads", str(threads)]
    common += ["--deepspeed_config", str(PRECISION), "--pca_frames", "0", "--val_runs", "1", "--val_every", str(steps)]
    common += ["--log_every", str(max(1, steps // 12)), "--save_every", str(steps + 1)]
    rows = []
    for phase, start in (("1", []), ("2", ["--init", "none"])):
        for what, flags in trainings.items():
            row: dict[str, Any] = {"what": what, "phase": int(phase)}
            out = folder / f"training-{len(rows)}"
            try:
                done = timed_training([*common, "--phase", phase, *start, *flags], out)
            except TrainingError as error:
                row["failed"] = str(error).strip().splitlines()[-1]
            else:
                row |= training_row(done, json.loads((out / "config.json").read_text())["batch_size"])
            shutil.rmtree(out, ignore_errors=True)
            rows.append(row)
    return rows


def training_row(done: Timed, batch_size: int) -> dict[str, Any]:
    """Figures of a training."""
    return {
        "parameters": done.of("start")[0]["parameters"],
        "windows": batch_size,
        "step_ms": round(1e3 * done.median("step_s", skip=WARM_LINES), 2),
        "frames_per_s": round(done.median("frames_per_s", skip=WARM_LINES), 1),
        "data_wait": round(done.median("data_wait", skip=WARM_LINES), 4),
        "memory_gb": round(max(record["memory_gb"] for record in done.of("train")), 2),
    }


if __name__ == "__main__":
    main()
