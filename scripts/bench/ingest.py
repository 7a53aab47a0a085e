"""MB per second of ingest against bare decompression of the same file.

    python scripts/bench/ingest.py [--full] [--out FILE.json]

Writes one float32 .nii.gz run (61 x 73 x 61 x 200 at 3 mm; --full: 91 x 109 x 91 x 200 at 2 mm) with a quarter
of the grid inside the mask, then measures every contender in turn, round after round, in this one process. MB
are those of the uncompressed data; the ratio is CPU time over that of bare zlib-ng decompression. Medians.
"""

from __future__ import annotations

import argparse
import gzip
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

sys.path[:] = [entry for entry in sys.path if Path(entry) != Path(__file__).parent]  # this file is called ingest too

import nibabel
import numpy as np
from zlib_ng import gzip_ng

from ingest.build import ShardJob, build_shard
from ingest.config import IngestConfig
from ingest.record import RunRecord
from shards.format import MASK, Grid
from shards.values import encode
from shards.writer import EncodedRun, mask_to_nifti, write_atomic, write_shard

FRAMES = 200


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="2 mm grid, 722 MB of float32")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shape = (91, 109, 91) if options.full else (61, 73, 61)
    with tempfile.TemporaryDirectory(prefix="boldstream-bench-") as name:
        rows = measure(Path(name), shape, options.rounds)
    print(f"one run, {shape} x {FRAMES} frames float32, .nii.gz")
    print("| what | wall MB/s | CPU s | x CPU of bare zlib-ng |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['mb_per_s']} | {row['cpu_s']} | {row['ratio']} |")
    report = {
        "command": "python scripts/bench/ingest.py" + (" --full" if options.full else ""),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "zlib-ng", "numba", "numcodecs", "nibabel")},
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(folder: Path, shape: tuple[int, int, int], rounds: int) -> list[dict[str, object]]:
    """Time every contender in each round; returns a row each."""
    mask, path = write_run(folder, shape)
    num_bytes = 4 * FRAMES * int(np.prod(shape))
    contenders: dict[str, Callable[[], object]] = {
        "bare zlib-ng, streamed into one buffer": lambda: inflate(path, gzip_ng.open, num_bytes // FRAMES),
        "bare gzip of the standard library": lambda: inflate(path, gzip.open, num_bytes // FRAMES),
        "nibabel + numpy, the same shard": lambda: with_nibabel(path, mask, folder / "numpy.tar"),
        "ours: ingest.build_shard": our_job(folder, path, mask),
    }
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run_once in contenders.items():
            began, used = time.perf_counter(), time.process_time()
            run_once()
            if number:  # the first round compiles and warms
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    reference = statistics.median(next(iter(cpu.values())))
    rows: list[dict[str, object]] = []
    for name in contenders:
        seconds, used = statistics.median(wall[name]), statistics.median(cpu[name])
        row = {"what": name, "mb_per_s": round(num_bytes / 1e6 / seconds), "cpu_s": round(used, 2)}
        rows.append(row | {"ratio": round(used / reference, 2)})
    return rows


def write_run(folder: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, Path]:
    """Write a run whose bytes compress like a preprocessed one: noise in the mask, zero outside."""
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in shape), indexing="ij")
    radius = sum(axis**2 for axis in axes)
    mask = radius < np.quantile(radius, 0.253)
    rng = np.random.default_rng(0)
    level = 8000 + 2000 * rng.standard_normal(int(mask.sum()), dtype="f4")
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if shape[0] > 80 else np.diag([3.0, 3.0, 3.0, 1.0])
    header = nibabel.Nifti1Image(np.zeros((*shape, 1), "f4"), affine).header
    header.set_data_shape((*shape, FRAMES))
    header["pixdim"][4], header["vox_offset"] = 2.0, 352
    header.set_xyzt_units("mm", "sec")
    path = folder / "sub-01_task-rest_bold.nii.gz"
    with gzip_ng.open(path, "wb", compresslevel=6) as file:
        file.write(header.binaryblock + bytes(4))
        frame = np.zeros(shape, "f4", order="F")
        for _ in range(FRAMES):
            frame[mask] = level * (1 + 0.02 * rng.standard_normal(len(level), dtype="f4"))
            file.write(frame.tobytes(order="F"))
    return mask, path


def inflate(path: Path, opener: Callable, frame_bytes: int) -> None:
    """Decompress into one reused buffer of a frame."""
    buffer = bytearray(frame_bytes)
    with opener(path, "rb") as file:
        while file.readinto(buffer):
            pass


def with_nibabel(path: Path, mask: np.ndarray, target: Path) -> None:
    """The obvious way to the same bytes: nibabel, boolean indexing, the numpy definition of the values."""
    data = np.asanyarray(nibabel.load(path).dataobj)
    rows = np.ascontiguousarray(data[mask].T)
    write_shard(target, [EncodedRun(run_id="sub-01", meta={"tr_s": 2.0}, encoded=encode(rows, "int8"))])


def our_job(folder: Path, path: Path, mask: np.ndarray) -> Callable[[], object]:
    """What a Dask worker runs for a shard of this one run."""
    affine = nibabel.load(path).affine
    grid = Grid(shape=mask.shape, affine=tuple(tuple(float(x) for x in row) for row in affine))
    write_atomic(folder / MASK, mask_to_nifti(mask, grid))
    record = RunRecord(subject="01", task="rest", bold=path)
    job = ShardJob(
        out=folder,
        name="bench-000000.tar",
        base=folder,
        runs=[record.to_dict(folder)],
        grid=grid,
        dtype="int8",
        min_frames=IngestConfig.min_frames,
        tr_s=None,
    )
    return lambda: build_shard(job)


if __name__ == "__main__":
    sys.exit(main())
