"""From timings to a table in Markdown and a JSON document."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peers.rounds import Row
from peers.windows import Size

READER, DENSE_READER, LOADER = "ours: read_window", "ours: read_window, dense", "ours: WindowLoader, 2 threads"
REFERENCE = {("int8", 1): READER, ("int8", 2): LOADER, ("dense", 1): DENSE_READER, ("dense", 2): LOADER}
_PACKAGES = ("boldstream", "numpy", "torch", "numcodecs", "zarr", "nibabel", "xxhash", "numba")
_PEERS = ("webdataset", "mosaicml-streaming", "litdata", "tensorstore", "torchvision")
_COLUMNS = ("what", "ms/window", "least", "windows/s", "CPU ms/window", "x our time")
BARE = "bare zstd, numcodecs' library"
_STREAMERS = ("webdataset", "MosaicML", "LitData")
Line = dict[str, object]


def lines(rows: Iterable[Row]) -> list[Line]:
    """One line a contender that was timed, in groups of equal windows and workers, fastest first."""
    timed = [row for row in rows if row.wall_s]
    middles = {(row.delivers, row.workers, row.name): statistics.median(row.wall_s) for row in timed}
    found = []
    for row in sorted(timed, key=lambda row: (row.delivers == "dense", row.workers, statistics.median(row.wall_s))):
        middle = statistics.median(row.wall_s)
        group = row.delivers, row.workers
        ours = middles.get((*group, REFERENCE[group]))
        found.append(
            {
                "what": row.name,
                "delivers": row.delivers,
                "workers": row.workers,
                "ms_per_window": round(1e3 * middle, 3),
                "ms_per_window_least": round(1e3 * min(row.wall_s), 3),
                "windows_per_s": round(1 / middle, 1),
                "cpu_ms_per_window": round(1e3 * statistics.median(row.cpu_s), 2),
                "ratio_to_ours": None if ours is None else round(middle / ours, 2),
                "disk_mb_per_window": round(statistics.median(row.disk_bytes) / 1e6, 2),
            }
        )
    return found


def table(found: list[Line], size: Size, *, cold: bool) -> str:
    """Markdown: a table for each kind of window and number of workers."""
    kinds = {
        "int8": f"int8, {size.length} frames x {size.voxels:,} voxels",
        "dense": f"dense float16, {size.length} x {size.cube}^3",
    }
    parts = []
    for delivers, workers in REFERENCE:
        group = [line for line in found if (line["delivers"], line["workers"]) == (delivers, workers)]
        if group:
            who = "one thread or process" if workers == 1 else "two threads or worker processes"
            columns = (*_COLUMNS, "MB/window from disk") if cold else _COLUMNS
            parts.append(f"**To {kinds[delivers]}; {who}{'; cold page cache' if cold else ''}**\n")
            parts += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            parts += [_cells(line, cold) for line in group] + [""]
    return "\n".join(parts)


def _cells(line: Line, cold: bool) -> str:
    keys = ["what", "ms_per_window", "ms_per_window_least", "windows_per_s", "cpu_ms_per_window", "ratio_to_ours"]
    values = [line[key] for key in keys + ["disk_mb_per_window"] * cold]
    return "| " + " | ".join("" if value is None else str(value) for value in values) + " |"


def summary(found: list[Line]) -> Line:
    """The ratios that the project promises: from medians, and from minima, which other load hurts least."""
    said: Line = {}
    for kind, key in (("", "ms_per_window"), (", least", "ms_per_window_least"), (", CPU time", "cpu_ms_per_window")):
        times = {(line["delivers"], line["workers"], str(line["what"])): float(str(line[key])) for line in found}
        consumer = times.get(("int8", 1, "the consumer alone"), 0.0)
        reader, bare = times.get(("int8", 1, READER)), times.get(("int8", 1, BARE))
        loader = times.get(("dense", 2, LOADER))
        if reader and bare:
            said[f"read_window's share of bare zstd's speed{kind}"] = round((bare - consumer) / (reader - consumer), 3)
        for what, time_ms in times.items():
            if reader and what[2].startswith("tensorstore, our bytes") and what[1] == 1:
                said[f"tensorstore on the same bytes: x read_window's time{kind}"] = round(time_ms / reader, 2)
        if loader and key != "cpu_ms_per_window":
            said[f"dense windows/s, 2 threads{kind}"] = round(1e3 / loader, 1)
            dense = {what: ms for (delivers, workers, what), ms in times.items() if (delivers, workers) == ("dense", 2)}
            for who in (("per-frame .pt",), _STREAMERS):
                rivals = {ms: what for what, ms in dense.items() if what.startswith(who)}
                if rivals:
                    best = min(rivals)
                    said[f"dense, 2 workers{kind}: {rivals[best]}, x our time"] = round(best / loader, 2)
    return said


def facts() -> Line:
    """Where, when and with what."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": {
            "cores": os.cpu_count(),
            "cpu": cpu_model(),
            "memory_gb": round(memory / 1e9, 1),
            "kernel": platform.release(),
            "load_before": round(os.getloadavg()[0], 2),
        },
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in (*_PACKAGES, *_PEERS)},
        "date": time.strftime("%Y-%m-%d"),
    }


def installed(name: str) -> str:
    """A package's version."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
