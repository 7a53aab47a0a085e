"""Windows per second: the reader and the loader against bare zstd, memcpy, and what others store and stream.

    python scripts/bench/stream.py [--rounds N] [--only FAMILY ...] [--out FILE.json] [--smoke]

Simulates three runs at 2 mm (91 x 109 x 91, 228,483 voxels in a mask like a brain, 6 bits a voxel-sample), lets every
family under `peers/` store them in its own way, about 6 GB in a temporary folder that is removed, and times all of
them in turn, round after round, in alternating order, on the same 20-frame windows at random starts. A family that is
not installed is named and left out. Every window goes to the same consumer, which reads all its bytes (XXH3-64) and
so finds out whether it is the right one; its time is part of every figure and has a row of its own.

Figures are medians over rounds. CPU time is that of a family's process, its threads and its children. Each family has
a process of its own, in which glibc is told to keep freed memory (MALLOC_MMAP_THRESHOLD_=1G and its kin), since
fresh windows of 35 MB cost more in page faults than in reading; rows that say "default malloc" are without that. The
files are in the page cache; for the tables that say cold they were dropped from it (posix_fadvise), though the host of
a virtual machine may still hold them: the column "from disk" is what this machine asked its device for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from peers import FAMILIES
from peers.report import facts, lines, summary, table
from peers.rounds import Bench
from peers.windows import FULL, SMOKE, Windows, simulate

NEEDED_BYTES = 8_000_000_000


def main() -> int:
    """Run the bench and print its tables; 1 if a contender failed or delivered wrong data."""
    options = parse()
    size = SMOKE if options.smoke else FULL
    free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if not options.smoke and free < NEEDED_BYTES:
        print(f"{free / 1e9:.1f} GB free, {NEEDED_BYTES / 1e9:.0f} needed; give another --folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="boldstream-bench-", dir=options.folder) as name:
        report: dict[str, Any] = facts() | {"command": " ".join(["python", "scripts/bench/stream.py", *sys.argv[1:]])}
        windows = simulate(Path(name) / "windows", size)
        bench = Bench(Path(name), dict.fromkeys(["ours", *options.only]))
        try:
            bench.warm(options.rounds)
            bench.cold(options.cold_rounds)
        finally:
            bench.close()
    report["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    left_out = {row.name: row.note for row in bench.rows if row.note}
    report |= describe(windows, bench.num_bytes) | {"rounds": options.rounds, "cold_rounds": options.cold_rounds}
    for title in ("warm", "cold"):
        report[title] = lines(row for row in bench.rows if row.timed_cold == (title == "cold"))
        print(table(report[title], size, cold=title == "cold"))
    for what, note in left_out.items():
        print(f"- {what}: {note}")
    report |= {"left_out": left_out, "summary": summary(report["warm"])}
    for what, figure in report["summary"].items():
        print(f"- {what}: {figure}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.failed for row in bench.rows))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds with a warm page cache")
    parser.add_argument("--cold-rounds", type=int, default=2, help="timed rounds with a cold one")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, help="these families, besides ours")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny grid, to see that everything runs; figures mean nothing"
    )
    return parser.parse_args()


def describe(windows: Windows, stored: dict[str, int]) -> dict[str, object]:
    """Sizes of what was read."""
    size = windows.size
    samples = size.runs * size.frames * size.voxels
    return {
        "grid": size.grid,
        "voxels": size.voxels,
        "runs": size.runs,
        "frames": size.frames,
        "window_frames": size.length,
        "windows_an_epoch": len(windows.keys),
        "stored_mb": {name: round(count / 1e6, 1) for name, count in stored.items()},
        "bits_per_voxel_sample": round(8 * stored["ours"] / samples, 2) if "ours" in stored else None,
    }


if __name__ == "__main__":
    sys.exit(main())
