"""Each stage of ingest against its floor: CPU time, ratio to bare libdeflate, MB per second, peak memory.

    python scripts/bench/ingest.py [--full] [--rounds N] [--out FILE.json]

Writes three runs of 61 x 73 x 61 x 200 (--full: 91 x 109 x 91 x 200, as at 2 mm) with a quarter of the grid inside
the mask: float32 that is zero outside (gzip level 6), float32 with a noisy background, as fMRIPrep writes (level 1,
which is nibabel's), and int16 (level 6). Every contender runs in turn, round after round, in this one process,
except for peak memory, which is that of a process of its own. MB are those of the uncompressed data; CPU time is
the median, that of all threads; the ratio is over libdeflate, told to decompress the file's bytes, which are already in
memory, into a buffer that is used again. libdeflate comes from the package `deflate`, else from the system; isal
from the package `isal`; a contender that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import gzip
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if Path(entry) != Path(__file__).parent]  # this file is called ingest too

import nibabel
import numpy as np
import xxhash
from numcodecs import zstd

from ingest.build import ShardJob, build_shard
from ingest.config import IngestConfig
from ingest.grid import stored_positions
from ingest.gunzip import READ_BYTES, Gunzip
from ingest.kernels import encode_run
from ingest.memory import peak_rss_bytes
from ingest.nifti import HashedFile, read_header, stream_rows
from ingest.record import RunRecord
from ingest.scratch import Scratch
from shards.format import MASK, Grid
from shards.mask import mask_to_nifti
from shards.values import Encoded, encode
from shards.writer import EncodedRun, write_atomic, write_shard

FRAMES = 200
KINDS = {"float32, masked": ("f4", 6), "float32, noisy background": ("f4", 1), "int16, masked": ("i2", 6)}
FLOOR = "libdeflate, one call"
WHOLE, NIBABEL = "ours, whole: ingest.build_shard", "nibabel + numpy, the same shard"
Contenders = dict[str, Callable[[], object]]


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="2 mm grid, 722 MB of float32")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-of", nargs=2, metavar=("CONTENDER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        name, folder = options.peak_of
        wholes(Path(folder))[name]()
        print(peak_rss_bytes())
        return
    shape = (91, 109, 91) if options.full else (61, 73, 61)
    tables = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="boldstream-bench-") as name:
            write_run(Path(name), shape, kind)
            tables[kind] = measure(Path(name), options.rounds)
        print_table(f"{kind}, {' x '.join(map(str, shape))} x {FRAMES}", tables[kind])
    if options.out:
        options.out.write_text(json.dumps(facts(options.full) | {"tables": tables}, indent=1) + "\n")


def measure(folder: Path, rounds: int) -> list[dict[str, object]]:
    """Time every contender in each round; returns a row each."""
    contenders = stages(folder) | wholes(folder)
    num_bytes = read_header(run_path(folder)).frame_bytes * FRAMES
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            began, used = time.perf_counter(), time.process_time()
            contenders[name]()
            if number:  # the first round compiles and warms
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    floor = statistics.median(cpu[FLOOR]) if FLOOR in cpu else None
    rows: list[dict[str, object]] = []
    for name in contenders:
        seconds, used = statistics.median(wall[name]), statistics.median(cpu[name])
        row: dict[str, object] = {"what": name, "cpu_s": round(used, 3), "cpu_s_least": round(min(cpu[name]), 3)}
        row |= {"ratio": floor and round(used / floor, 2), "mb_per_s": round(num_bytes / 1e6 / seconds)}
        rows.append(row | {"peak_rss_mb": peak_mb(name, folder) if name in (WHOLE, NIBABEL) else None})
    return rows


def stages(folder: Path) -> Contenders:
    """Everything but the whole; a stage works on what the one before it made."""
    path = run_path(folder)
    header = read_header(path)
    voxels = stored_positions(header)[read_mask(folder)]
    scratch = Scratch()
    raw_TV = scratch.array("raw", (FRAMES, len(voxels)), header.dtype)
    stream_rows(path, header, voxels, raw_TV)
    encoded = encode(raw_TV, "int8")
    zeros, frame = np.zeros(header.frame_bytes, np.uint8), np.empty(header.frame_bytes, np.uint8)
    found: Contenders = {}
    if (one_call := libdeflate(path, header.data_offset + FRAMES * header.frame_bytes)) is not None:
        found[FLOOR] = one_call
    found["zlib-ng, streamed"] = lambda: inflate(path, "zlib_ng.gzip_ng", frame)
    if importlib.util.find_spec("isal"):
        found["isal, streamed"] = lambda: inflate(path, "isal.igzip", frame)
    found["gzip of the standard library"] = lambda: inflate(path, "gzip", frame)
    found["read the file and hash it"] = lambda: read_and_hash(path)
    found["ours: read, hash, gunzip, CRC"] = lambda: gunzip(path, header.frame_bytes)
    found["memcpy of every frame"] = lambda: [np.copyto(frame, zeros) for _ in range(FRAMES)]
    found["ours: read, hash, gunzip, CRC, crop"] = lambda: stream_rows(path, header, voxels, raw_TV)
    found["ours: statistics, quantisation"] = lambda: encode_run(raw_TV, "int8", scratch=scratch)
    found["bare zstd of the quantised frames"] = lambda: compress(encoded.q)
    found["ours: zstd, tar, fsync"] = lambda: write_shard(folder / "stage.tar", [stored(encoded)])
    return found


def wholes(folder: Path) -> Contenders:
    """From the .nii.gz to the shard."""
    return {WHOLE: our_job(folder), NIBABEL: lambda: with_nibabel(folder)}


def write_run(folder: Path, shape: tuple[int, int, int], kind: str) -> None:
    """Write a run whose bytes compress like a preprocessed one, and the set's mask."""
    dtype, level = KINDS[kind]
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in shape), indexing="ij")
    radius = sum(axis**2 for axis in axes)
    mask = radius < np.quantile(radius, 0.253)
    rng = np.random.default_rng(0)
    means = 8000 + 2000 * rng.standard_normal(int(mask.sum()), dtype="f4")
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if shape[0] > 80 else np.diag([3.0, 3.0, 3.0, 1.0])
    header = nibabel.Nifti1Image(np.zeros((*shape, 1), dtype), affine).header
    header.set_data_shape((*shape, FRAMES))
    header["pixdim"][4], header["vox_offset"] = 2.0, 352
    header.set_xyzt_units("mm", "sec")
    with gzip.open(run_path(folder), "wb", compresslevel=level) as file:
        file.write(header.binaryblock + bytes(4))
        frame = np.zeros(shape, dtype, order="F")
        for _ in range(FRAMES):
            if "noisy" in kind:
                frame[:] = np.abs(20 * rng.standard_normal(shape, dtype="f4"))
            frame[mask] = means * (1 + 0.02 * rng.standard_normal(len(means), dtype="f4"))
            file.write(frame.tobytes(order="F"))
    grid = Grid(shape=shape, affine=tuple(tuple(float(x) for x in row) for row in affine))
    write_atomic(folder / MASK, mask_to_nifti(mask, grid))


def run_path(folder: Path) -> Path:
    return folder / "sub-01_task-rest_bold.nii.gz"


def read_mask(folder: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(folder / MASK).dataobj) != 0


def libdeflate(path: Path, num_bytes: int) -> Callable[[], object] | None:
    """libdeflate through ctypes; None where there is none."""
    library = ctypes.util.find_library("deflate")
    if importlib.util.find_spec("deflate"):  # the extension module exports libdeflate's own functions
        library = importlib.import_module("deflate._deflate").__file__
    if library is None:
        print("libdeflate is not here (pip install deflate): no floor, no ratios")
        return None
    functions = ctypes.CDLL(library)
    functions.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
    decompressor = ctypes.c_void_p(functions.libdeflate_alloc_decompressor())
    source, out, made = np.fromfile(path, np.uint8), np.zeros(num_bytes, np.uint8), ctypes.c_size_t()

    def one_call() -> None:
        addresses = [(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.size)) for array in (source, out)]
        assert functions.libdeflate_gzip_decompress(decompressor, *sum(addresses, ()), ctypes.byref(made)) == 0
        assert made.value == num_bytes

    return one_call


def inflate(path: Path, module: str, frame: np.ndarray) -> None:
    """Decompress into one buffer of a frame."""
    with importlib.import_module(module).open(path, "rb") as file:
        while file.readinto(frame):
            pass


def read_and_hash(path: Path) -> None:
    """Read the file in pieces, into one buffer."""
    digest, buffer = xxhash.xxh3_128(), np.empty(READ_BYTES, np.uint8)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])


def gunzip(path: Path, frame_bytes: int) -> None:
    """What `for_each_frame` does for a .nii.gz, with nothing done to the frames."""
    with path.open("rb", buffering=0) as file:
        stream = Gunzip(HashedFile(file), frame_bytes)
        while len(stream.read(frame_bytes)):
            pass


def compress(q: np.ndarray) -> None:
    """Level 1, frame by frame; the results are dropped."""
    for frame in q:
        zstd.compress(frame, 1)


def stored(encoded: Encoded) -> EncodedRun:
    return EncodedRun(run_id="sub-01", meta={"tr_s": 2.0}, encoded=encoded)


def with_nibabel(folder: Path) -> None:
    """The obvious way to the same bytes: nibabel, boolean indexing, the numpy definition of the values."""
    data = np.asanyarray(nibabel.load(run_path(folder)).dataobj)
    rows = np.ascontiguousarray(data[read_mask(folder)].T)
    write_shard(folder / "numpy.tar", [stored(encode(rows, "int8"))])


def our_job(folder: Path) -> Callable[[], object]:
    """What a worker runs for a shard of this one run."""
    affine = nibabel.load(run_path(folder)).affine
    grid = Grid(shape=read_mask(folder).shape, affine=tuple(tuple(float(x) for x in row) for row in affine))
    record = RunRecord(subject="01", task="rest", bold=run_path(folder))
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


def peak_mb(name: str, folder: Path) -> int:
    """Peak memory of a process that does this alone, once."""
    command = [sys.executable, __file__, "--peak-of", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 1e6)


def print_table(title: str, rows: list[dict[str, object]]) -> None:
    """One table in Markdown."""
    print(f"\n{title}\n\n| what | CPU s | x libdeflate | wall MB/s | peak MB |\n|---|---|---|---|---|")
    for row in rows:
        cells = (row["what"], row["cpu_s"], row["ratio"], row["mb_per_s"], row["peak_rss_mb"])
        print("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")


def facts(full: bool) -> dict[str, object]:
    """Where, when and with what."""
    names = ("numpy", "zlib-ng", "isal", "deflate", "numba", "numcodecs", "nibabel")
    installed = {name: version(name) for name in names if importlib.util.find_spec(name.replace("-", "_"))}
    return {
        "command": "python scripts/bench/ingest.py" + (" --full" if full else ""),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "versions": installed,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main())
