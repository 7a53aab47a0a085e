"""A set of 40,000 runs in 2,000 shards: opening, order, state, split and memory, and what 1,024 ranks ask for.

    python scripts/bench/scale.py [--runs N] [--shards N] [--out FILE.json]

Writes the tables and the mask of such a set into a temporary folder; its shards are sparse files of the recorded sizes
(no room on disk, no data), since opening reads none of them. Everything is measured in a process of its own, imports
done, so that memory is that of the thing measured; figures are the median of three. `first batch` is on a small set of
full-size frames with data. Memory of several processes is their proportional set size (smaps_rollup).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from shards import order
from shards.format import Grid, RunEntry, ShardInfo, xxh3
from shards.planning.rates import write_synthetic
from shards.publish import publish_set
from shards.reader import ShardSet

SHAPE, VOXELS, FRAMES, LENGTH = (91, 109, 91), 228_483, 1200, 20
RUNS_PER_SUBJECT = 4
ROUNDS = 3
RANKS, RANKS_PER_NODE = 1024, 8
ASSUMED_GB_S = 10
"""Of the filesystem when small files are read by all nodes at once: a tenth of a large one's peak."""


def main() -> None:
    """Measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40_000)
    parser.add_argument("--shards", type=int, default=2_000)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, folder = options.child
        print(json.dumps(CHILDREN[what](Path(folder), options.windows)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="boldstream-scale-") as name:
        figures = measure(Path(name), options.runs, options.shards, options.windows)
    report = {
        "command": "python scripts/bench/scale.py",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "torch", "nibabel", "xxhash")},
        "date": time.strftime("%Y-%m-%d"),
        "figures": figures,
    }
    for what, values in figures.items():
        print(f"{what:26}" + ", ".join(f"{name} {value}" for name, value in values.items()))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(folder: Path, num_runs: int, num_shards: int, num_windows: int) -> dict[str, dict[str, Any]]:
    """Every figure, by what was done."""
    large, small = folder / "large", folder / "small"
    write_sparse(large, num_runs, num_shards)
    write_synthetic(small, num_runs=2, num_frames=100, num_voxels=VOXELS, dtype="int8")
    sizes = {path.name: path.stat().st_size for path in large.iterdir() if path.suffix != ".tar"}
    figures: dict[str, dict[str, Any]] = {
        "set": {"runs": num_runs, "shards": num_shards, "windows": num_runs * (FRAMES // LENGTH), **sizes},
        "opening": typical("open", large),
        "order": typical("order", large, num_windows),
        "loader and its state": typical("state", large),
        "split of 10,000 subjects": typical("split", large),
        "first batch": typical("batch", small),
        f"{RANKS_PER_NODE} ranks of a node": node_memory(large),
    }
    figures[f"{RANKS:,} ranks at once"] = on_paper(sizes, num_runs, num_shards, figures["opening"]["cpu_seconds"])
    return figures


def write_sparse(folder: Path, num_runs: int, num_shards: int) -> None:
    """Write tables, mask and manifest of runs of HCP size, and shards without data."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    per_shard = -(-num_runs // num_shards)
    header, padding = 512, -4 * VOXELS % 512
    step = header + 4 * VOXELS + padding
    entries, shards = [], []
    for number in range(num_shards):
        name, position = f"cohort-{number:06d}.tar", 0
        runs = range(number * per_shard, min(num_runs, (number + 1) * per_shard))
        for run in runs:
            bold_bytes = int(FRAMES * VOXELS / 1.34 * draw.uniform(0.97, 1.03))
            bold_offset = position + 2048 + 3 * step + header
            num_bytes = bold_offset - position + bold_bytes + -bold_bytes % 512
            entries.append(entry(run, name, position, num_bytes, bold_offset, bold_bytes, draw))
            position += num_bytes
        with (folder / name).open("wb") as file:
            file.truncate(position + 1024)
        digest = xxh3(name.encode())
        shards.append(ShardInfo(name=name, num_bytes=position + 1024, xxh3=digest, num_runs=len(runs)))
    publish_set(folder, name="cohort", dtype="int8", mask=ball(), grid=grid(), entries=entries, shards=shards)


def entry(
    run: int, shard: str, offset: int, num_bytes: int, bold_offset: int, bold_bytes: int, draw: random.Random
) -> RunEntry:
    """A row with text and numbers as long as real ones."""
    subject, number = f"NDARINV{run // RUNS_PER_SUBJECT:08d}", run % RUNS_PER_SUBJECT + 1
    run_id = f"sub-{subject}_ses-baselineYear1Arm1_task-rest_run-{number}"
    return RunEntry(
        run_id=run_id,
        subject=subject,
        session="baselineYear1Arm1",
        task="rest",
        run=str(number),
        tr_s=0.8,
        num_frames=FRAMES,
        shard=shard,
        offset=offset,
        num_bytes=num_bytes,
        bold_offset=bold_offset,
        bold_bytes=bold_bytes,
        source=f"sub-{subject}/ses-baselineYear1Arm1/func/{run_id}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        source_bytes=draw.randrange(10**9),
        source_xxh3=f"{draw.getrandbits(128):032x}",
        num_wide_voxels=draw.randrange(5000),
        error_max=draw.random(),
        error_rms=draw.random(),
        error_rms_rel=draw.random(),
        lossless=False,
        grid_slope=float("nan"),
        grid_inter=float("nan"),
        tsnr_median=60 * draw.random(),
        mean_fd_mm=draw.random(),
    )


def grid() -> Grid:
    """The 2 mm MNI grid."""
    affine = ((2.0, 0.0, 0.0, -90.0), (0.0, 2.0, 0.0, -126.0), (0.0, 0.0, 2.0, -72.0), (0.0, 0.0, 0.0, 1.0))
    return Grid(shape=SHAPE, affine=affine)


def ball() -> np.ndarray:
    """The `VOXELS` voxels nearest to the centre."""
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    nearest = np.argsort(sum(axis**2 for axis in axes).ravel(), kind="stable")
    mask = np.zeros(int(np.prod(SHAPE)), bool)
    mask[nearest[:VOXELS]] = True
    return mask.reshape(SHAPE)


def typical(what: str, folder: Path, num_windows: int = 0) -> dict[str, Any]:
    """Median of each figure over several fresh processes."""
    rounds = [json.loads(child(what, folder, num_windows).communicate()[0]) for _ in range(ROUNDS)]
    return {name: round(statistics.median(values[name] for values in rounds), 4) for name in rounds[0]}


def child(what: str, folder: Path, num_windows: int = 0) -> subprocess.Popen[str]:
    """Start one measurement in a process of its own."""
    command = [sys.executable, __file__, "--windows", str(num_windows), "--child", what, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def timed(do: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds, seconds of processor, growth to the peak of resident memory, and the result."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began, busy = resident_mb("VmRSS"), time.perf_counter(), time.process_time()
    result = do()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - busy
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": resident_mb("VmHWM") - before}, result


def resident_mb(what: str) -> float:
    """A line of this process's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e6


def opening(folder: Path, _: int) -> dict[str, float]:
    """Open the set."""
    return timed(lambda: ShardSet(folder))[0]


def ordering(_: Path, num_windows: int) -> dict[str, float]:
    """Make an epoch's order."""
    each = FRAMES // LENGTH
    num_runs = -(-num_windows // each)
    frames, lengths = np.full(num_runs, FRAMES), np.full(num_runs, LENGTH)
    figures, windows = timed(lambda: order.training_windows(frames, lengths, 0, 3))
    kept = sum(array.nbytes for array in (windows.run, windows.start, windows.num_frames))
    return figures | {"windows": len(windows), "kept_mb": kept / 1e6}


def state(folder: Path, _: int) -> dict[str, float]:
    """Make a loader, save its state, and load one of a later epoch, whose order is then made."""
    from shards.loader import WindowLoader

    shard_set = ShardSet(folder)
    frames = [run.num_frames for run in shard_set.runs]
    making, loader = timed(lambda: WindowLoader(shard_set, window=LENGTH, batch_size=1))
    saving, text = timed(lambda: json.dumps(loader.state_dict() | {"epoch": 3, "position": len(frames)}))

    def load() -> order.Windows:
        loader.load_state_dict(json.loads(text))
        return order.training_windows(frames, [LENGTH] * len(frames), 0, 3)

    restoring, _windows = timed(load)
    named = {"make": making, "save": saving, "restore": restoring}
    times = {f"{what}_{name}": figures[name] for what, figures in named.items() for name in ("seconds", "cpu_seconds")}
    return times | {"state_bytes": len(text), "restore_peak_mb": restoring["peak_mb"]}


def split(_: Path, __: int) -> dict[str, float]:
    """Divide 10,000 subjects in 7,000 families and 21 sites."""
    from shards.splits import make_split

    names = [f"NDARINV{number:08d}" for number in range(10_000)]
    groups = {name: f"f{number * 7 // 10}" for number, name in enumerate(names)}
    strata = {name: (f"site{number % 21}",) for number, name in enumerate(names)}
    figures, made = timed(lambda: make_split(names, groups=groups, strata=strata))
    assert len(made.train) + len(made.val) + len(made.test) == len(names)
    return figures


def first_batch(folder: Path, _: int) -> dict[str, float]:
    """Open a set of full-size frames and wait for the first batch, imports done."""
    from shards.loader import WindowLoader

    def start() -> WindowLoader:
        loader = WindowLoader(ShardSet(folder), window=LENGTH, batch_size=8)
        next(iter(loader))
        return loader

    figures, loader = timed(start)
    loader.close()
    return figures


def rank(folder: Path, _: int) -> dict[str, float]:
    """Open the set, say so, and stay until told."""
    before = proportional_mb()
    opened = ShardSet(folder)
    print("open", flush=True)
    sys.stdin.readline()
    after = proportional_mb()
    del opened
    return {"mb": after - before, "all_mb": after}


def node_memory(folder: Path, num_ranks: int = RANKS_PER_NODE) -> dict[str, Any]:
    """Memory of the ranks of a node that hold the same set at the same time."""
    ranks = [child("rank", folder) for _ in range(num_ranks)]
    for process in ranks:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
    said = []
    for process in ranks:  # each measures while all others still hold the set
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        said.append(json.loads(process.stdout.readline()))
    for process in ranks:
        process.communicate()
    return {
        "mb_a_rank": round(statistics.median(values["mb"] for values in said), 1),
        "mb_in_all": round(sum(values["all_mb"] for values in said), 1),
    }


def proportional_mb() -> float:
    """Proportional set size of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def on_paper(sizes: dict[str, int], num_runs: int, num_shards: int, parse_s: float) -> dict[str, Any]:
    """What a job's start asks of the filesystem, and whether one reader that broadcasts would save anything.

    Each rank reads manifest, runs table and mask; the ranks of a node find them in its page cache after the first. A
    shard is opened when a rank first reads from it (and again if more are in use than the process may keep open), so
    these opens are spread over the first epoch: of w windows from s shards, s (1 - exp(-w/s)) a rank.
    """
    each = sum(sizes.values())
    nodes = RANKS // RANKS_PER_NODE
    windows = num_runs * (FRAMES // LENGTH) / RANKS
    saved_s = each * (nodes - 1) / (1e9 * ASSUMED_GB_S)
    return {
        "assumed_gb_s": ASSUMED_GB_S,
        "mb_read_a_rank": round(each / 1e6, 1),
        "gb_read_by_all_ranks": round(each * RANKS / 1e9, 1),
        "gb_from_the_filesystem": round(each * nodes / 1e9, 2),
        "seconds_of_the_filesystem": round(each * nodes / (1e9 * ASSUMED_GB_S), 2),
        "opens_at_start": len(sizes) * RANKS,
        "shard_opens_in_the_first_epoch": round(num_shards * -math.expm1(-windows / num_shards) * RANKS),
        "cpu_seconds_of_opening_a_rank": parse_s,
        "seconds_a_broadcast_saves": round(saved_s, 2),
        "conclusion": (
            f"a broadcast would {'pay' if saved_s > parse_s else 'not pay'}: it saves {saved_s:.2g} s of reading once, "
            f"and none of the {parse_s:.2g} s in which every rank parses"
        ),
    }


CHILDREN: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "open": opening,
    "order": ordering,
    "state": state,
    "split": split,
    "batch": first_batch,
    "rank": rank,
}


if __name__ == "__main__":
    main()
