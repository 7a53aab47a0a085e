"""Windows per second of the loader against np.load of the same windows, zstd alone and memcpy.

    python scripts/bench/stream.py [--out FILE.json]

Writes a throw-away shard set of full-size runs (91 x 109 x 91, V = 228,483 voxels in a ball-shaped mask), then
measures every contender in turn, round after round, on the same 20-frame windows at random starts: with a warm
page cache, and, where the name says cold, with the files dropped from it. Figures are medians over the rounds;
the ratio is to np.load of the float32 window.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numcodecs import zstd

from shards.chunks import CRC_BYTES, codec_summary
from shards.format import MASK, RUNS, Grid, Manifest, RunEntry, config_hash, mask_identity, runs_to_tsv, xxh3
from shards.loader import WindowLoader
from shards.reader import ShardSet
from shards.values import encode
from shards.writer import EncodedRun, mask_to_nifti, write_atomic, write_manifest, write_shard

SHAPE, VOXELS, FRAMES, RUN_COUNT, LENGTH = (91, 109, 91), 228_483, 320, 3, 20
WINDOWS = RUN_COUNT * (FRAMES // LENGTH)  # one epoch of the loader


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="boldstream-bench-") as name:
        folder = Path(name)
        write_set(folder)
        rows = measure(folder, options.rounds)
    report = {
        "command": "python scripts/bench/stream.py",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "torch", "numcodecs")},
        "date": time.strftime("%Y-%m-%d"),
        "window": f"{LENGTH} frames x {VOXELS} voxels",
        "rows": rows,
    }
    print_table(rows)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def write_set(folder: Path) -> None:
    """Write runs of noise with the temporal statistics of BOLD, and the same windows as .npy files."""
    mask = ball()
    affine = ((2.0, 0.0, 0.0, -90.0), (0.0, 2.0, 0.0, -126.0), (0.0, 0.0, 2.0, -72.0), (0.0, 0.0, 0.0, 1.0))
    grid = Grid(shape=SHAPE, affine=affine)
    rng = np.random.default_rng(0)
    encoded = encode(rng.standard_normal((FRAMES, VOXELS), dtype="f4"), "int8")
    runs = [EncodedRun(run_id=f"sub-{k}", meta={"tr_s": 0.72}, encoded=encoded) for k in range(RUN_COUNT)]
    written = write_shard(folder / "bench-000000.tar", runs)
    entries = [entry(run, written.places[run.run_id]) for run in runs]
    tables = {RUNS: runs_to_tsv(entries).encode(), MASK: mask_to_nifti(mask, grid)}
    for name, data in tables.items():
        write_atomic(folder / name, data)
    manifest = Manifest(
        name="bench",
        dtype="int8",
        grid=grid,
        num_voxels=VOXELS,
        mask_hash=mask_identity(mask, grid),
        mask_source="bench",
        codec=codec_summary(),
        cleaning={},
        config={},
        config_hash=config_hash({}),
        shards=(written.info,),
        num_runs=RUN_COUNT,
        num_subjects=RUN_COUNT,
        num_frames=RUN_COUNT * FRAMES,
        tables={name: xxh3(data) for name, data in tables.items()},
        software={},
    )
    write_manifest(folder, manifest)


def ball() -> np.ndarray:
    """The `VOXELS` voxels nearest to the centre: the size of the 2 mm MNI brain."""
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    order = np.argsort(sum(axis**2 for axis in axes).ravel(), kind="stable")
    mask = np.zeros(np.prod(SHAPE), bool)
    mask[order[:VOXELS]] = True
    return mask.reshape(SHAPE)


def entry(run: EncodedRun, place: object) -> RunEntry:
    """The run's row of runs.tsv."""
    nothing = {"session": "", "task": "", "run": "", "source": "", "source_xxh3": "", "source_bytes": 0}
    unknown = dict.fromkeys(("error_max", "error_rms", "error_rms_rel", "tsnr_median", "mean_fd_mm"), 0.0)
    names = ("offset", "num_bytes", "bold_offset", "bold_bytes")
    return RunEntry(
        run_id=run.run_id,
        subject=run.run_id.removeprefix("sub-"),
        tr_s=0.72,
        num_frames=FRAMES,
        shard="bench-000000.tar",
        num_wide_voxels=run.encoded.num_wide_voxels,
        lossless=False,
        grid_slope=float("nan"),
        grid_inter=float("nan"),
        **nothing,
        **unknown,
        **{name: getattr(place, name) for name in names},
    )


def measure(folder: Path, rounds: int) -> list[dict[str, object]]:
    """Time every contender in each round; returns a row each."""
    with ShardSet(folder) as shard_set:
        rng = np.random.default_rng(1)
        picks = [(int(rng.integers(RUN_COUNT)), int(rng.integers(FRAMES - LENGTH))) for _ in range(WINDOWS)]
        for k, (run, start) in enumerate(picks):
            window = shard_set.read_window(run, start, LENGTH)
            np.save(folder / f"f4-{k}.npy", (window / 16).astype("f4"))
            np.save(folder / f"i1-{k}.npy", window)
        contenders = {
            "np.load, float32 window": np_load(folder, "f4"),
            "np.load, int8 window": np_load(folder, "i1"),
            "memcpy of the int8 window": memcpy(),
            "zstd alone, 1 thread": bare_zstd(shard_set, picks),
            "ours: read_window, 1 thread": read_windows(shard_set, picks),
            "ours: WindowLoader, 1 thread": loader(shard_set, 1),
            "ours: WindowLoader, 2 threads": loader(shard_set, 2),
            "cold: np.load, float32 window": np_load(folder, "f4"),
            "cold: np.load, int8 window": np_load(folder, "i1"),
            "cold: ours, 2 threads": loader(shard_set, 2),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            for name, run_once in contenders.items():
                if name.startswith("cold"):
                    forget(folder)
                began = time.perf_counter()
                run_once()
                if number:  # the first round warms the page cache and the buffers
                    times[name].append((time.perf_counter() - began) / WINDOWS)
            for path in folder.iterdir():
                path.read_bytes()  # the next round is warm again
    reference = statistics.median(times["np.load, float32 window"])
    rows: list[dict[str, object]] = []
    for name, values in times.items():
        middle = statistics.median(values)
        row = {"what": name, "ms_per_window": round(1e3 * middle, 2), "windows_per_s": round(1 / middle, 1)}
        rows.append(row | {"ratio_to_np_load": round(reference / middle, 2)})
    return rows


def forget(folder: Path) -> None:
    """Drop our own files from this machine's page cache; a host's cache may still hold them."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def np_load(folder: Path, kind: str) -> Callable[[], None]:
    """Load ready-made windows, one file each, as most training code does."""

    def run() -> None:
        for k in range(WINDOWS):
            np.load(folder / f"{kind}-{k}.npy")

    return run


def memcpy() -> Callable[[], None]:
    """Copy an int8 window into a reused buffer."""
    source, target = np.ones((2, LENGTH, VOXELS), "i1")

    def run() -> None:
        for _ in range(WINDOWS):
            np.copyto(target, source)

    return run


def bare_zstd(shard_set: ShardSet, picks: list[tuple[int, int]]) -> Callable[[], None]:
    """Decompress the same chunks from memory into a reused buffer, no checks."""
    stored = []
    for run, start in picks:
        bounds = shard_set._chunk_bounds(run)
        for chunk in range(start, start + LENGTH):
            size = int(bounds[chunk + 1] - bounds[chunk])
            data = shard_set.read_stored(run, int(bounds[chunk]), size)
            stored.append(data[:-CRC_BYTES])
    target = np.empty(VOXELS, "i1")

    def run_once() -> None:
        for data in stored:
            zstd.decompress(data, target)

    return run_once


def read_windows(shard_set: ShardSet, picks: list[tuple[int, int]]) -> Callable[[], None]:
    """Our reader into a reused buffer."""
    target = np.empty((LENGTH, VOXELS), "i1")

    def run_once() -> None:
        for run, start in picks:
            shard_set.read_window(run, start, LENGTH, out=target)

    return run_once


def loader(shard_set: ShardSet, threads: int) -> Callable[[], None]:
    """One epoch of our loader, start-up of its threads included, as training uses it."""
    stream = WindowLoader(shard_set, window=LENGTH, batch_size=4, threads=threads)

    def run_once() -> None:
        for _ in stream:
            pass

    return run_once


def print_table(rows: list[dict[str, object]]) -> None:
    """Print a Markdown table."""
    print(f"window: {LENGTH} frames x {VOXELS} voxels, random start; page cache warm unless cold is said")
    print("| what | ms/window | windows/s | x np.load float32 |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['ms_per_window']} | {row['windows_per_s']} | {row['ratio_to_np_load']} |")


if __name__ == "__main__":
    sys.exit(main())
