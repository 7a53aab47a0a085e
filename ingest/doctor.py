"""`ingest-fmri --doctor`: is everything there that an ingest with these flags needs? Takes seconds, leaves nothing."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from ingest.cluster.queue_commands import queue_of
from ingest.config import IngestConfig
from ingest.sizes import format_size
from shards import fitness
from shards.errors import EXIT_OK, EXIT_OUTPUT, UsageError
from shards.fitness import Finding

PACKAGES = ("boldstream", "numpy", "numba", "numcodecs", "zlib-ng", "nibabel", "nilearn", "zarr", "dask")
SLOW_WRITE = SLOW_READ = 100e6
"""Bytes per second below which a disk, and not the processor, sets the pace."""
LOOKED_AT = 200
"""Images of which the largest is read."""
LEAST_ROOM = 10 * 1000**3
LEAST_MEMORY_A_WORKER = 2_500_000_000
"""Of a run of HCP's size (1,200 frames of 228,483 voxels)."""


def doctor(config: IngestConfig) -> int:
    """Print what was found; the exit code: 0, 2 if the source or a command is missing, 5 if --out cannot be used."""
    findings = [*_software(), *_machine(config), *_output(config.out), *_source(config.src), *_queue(config)]
    for line in fitness.table(findings):
        print(line)
    failed = [finding for finding in findings if finding.verdict == "FAIL"]
    if not failed:
        print("fit for ingest")
        return EXIT_OK
    print(f"not fit for ingest: {', '.join(finding.what for finding in failed)}", file=sys.stderr)
    return EXIT_OUTPUT if any(finding.what.startswith("--out") for finding in failed) else UsageError.exit_code


def _software() -> Iterator[Finding]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(what=name, found="not installed", verdict="FAIL", remedy="pip install it")
    yield Finding(what="software", found=f"Python {sys.version.split()[0]}, {', '.join(found)}")


def _machine(config: IngestConfig) -> Iterator[Finding]:
    cores, memory, files = fitness.usable_cores(), fitness.usable_memory_bytes(), fitness.open_files_limit()
    yield Finding(what="host", found=socket.gethostname())
    yield Finding(what="cores for this process", found=str(cores))
    workers = config.cluster.workers or cores
    short = config.cluster.cluster == "local" and memory < workers * LEAST_MEMORY_A_WORKER
    fewer = f"for runs of HCP's size take --workers {max(1, memory // LEAST_MEMORY_A_WORKER)}"
    yield fitness.note("memory", f"{format_size(memory)} usable", fewer if short else "")
    yield fitness.note("open files", f"up to {files}", "ask for more with ulimit -n 4096" if files < 1024 else "")


def _output(out: Path) -> Iterator[Finding]:
    place = fitness.existing(out)
    try:
        rate, skew, links = fitness.write_rate(place), fitness.clock_skew_s(place), fitness.links_work(place)
    except OSError as error:
        remedy = "change its permissions, make room, or choose another folder"
        yield Finding(what="--out", found=f"{place}: {error.strerror}", verdict="FAIL", remedy=remedy)
        return
    free = fitness.free_bytes(place)
    more = "the dry run says how much is needed (--dry-run)"
    yield fitness.note("--out: room", f"{format_size(free)} free", more if free < LEAST_ROOM else "")
    slow = "one worker makes about as much; more will wait for the disk"
    yield fitness.note("--out: writing", f"{format_size(rate)}/s to disk", slow if rate < SLOW_WRITE else "")
    without = "" if links else "--part will not work there, --cluster does"
    yield fitness.note("--out: hard links", "yes" if links else "no", without)
    apart = "times of files mislead; set the clocks" if abs(skew) > fitness.MAX_SKEW_S else ""
    yield fitness.note("--out: clock", f"{skew:+.1f} s from this machine's", apart)


def _source(src: Path) -> Iterator[Finding]:
    if src.is_file():
        yield Finding(what="--src", found="a table; --dry-run looks at its runs")
        return
    images = list(islice((path for path in src.rglob("*.nii*") if path.is_file()), LOOKED_AT))
    if not images:
        found = "no NIfTI in it" if src.exists() else "no such file or folder"
        yield Finding(what="--src", found=f"{src}: {found}", verdict="FAIL", remedy="check the path")
        return
    image = max(images, key=lambda path: path.stat().st_size)  # a small file says nothing of a rate
    try:
        rate = fitness.read_rate(image)
    except OSError as error:
        yield Finding(what="--src", found=f"{image}: {error.strerror}", verdict="FAIL", remedy="change its permissions")
        return
    slow = "the disk, not the processor, will set the pace" if rate < SLOW_READ else ""
    yield fitness.note("--src: reading", f"{format_size(rate)}/s ({image.relative_to(src)})", slow)


def _queue(config: IngestConfig) -> Iterator[Finding]:
    kind = config.cluster.cluster
    if kind != "local":
        try:
            queue_of(kind).chk_available(f"--cluster {kind}")
        except UsageError as error:
            yield Finding(what="queue", found=str(error), verdict="FAIL")
        else:
            yield Finding(what="queue", found=f"the commands of {kind} are there")
        return
    seen = [name for name, command in (("slurm", "sbatch"), ("pbs", "qsub")) if shutil.which(command)]
    if seen:
        yield Finding(what="queue", found=f"{' and '.join(seen)} here", remedy=f"--cluster {seen[0]} would use it")
