"""Compare a shard set with nibabel's reading of its sources, voxel by voxel.

    python scripts/compare_with_nibabel.py --src DIR --shards DIR

Exit code 7 if any run differs by more than the error that it records.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel
import numpy as np

from shards.errors import EXIT_OK, EXIT_VERIFICATION, BoldstreamError
from shards.reader import ShardSet


def main() -> int:
    """Compare every run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, required=True, help="the folder given to ingest-fmri")
    parser.add_argument("--shards", type=Path, required=True, help="the shard set made of it")
    options = parser.parse_args()
    try:
        with ShardSet(options.shards) as shard_set:
            agree = [compare(shard_set, number, options.src) for number in range(len(shard_set.runs))]
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_OK if all(agree) else EXIT_VERIFICATION


def compare(shard_set: ShardSet, number: int, src: Path) -> bool:
    """Print one line about a run; whether it is within its recorded error."""
    entry = shard_set.runs[number]
    image = nibabel.as_closest_canonical(nibabel.load(src / entry.source))
    source = np.asarray(image.dataobj)[shard_set.mask].T.astype(np.float64)
    stored = shard_set.read_run(number)
    error = np.abs(stored - source).max()
    allowed = entry.error_max + 2 * float(np.spacing(np.float32(np.abs(source).max())))
    verdict = "ok" if error <= allowed else "DIFFERS"
    kind = "lossless" if entry.lossless else f"{100 * entry.error_rms_rel:.2f} % of the temporal SD rms"
    print(
        f"{verdict}: {entry.run_id}: {entry.num_frames} frames x {shard_set.num_voxels} voxels, largest error "
        f"{error:.4g}, recorded {entry.error_max:.4g} ({kind})"
    )
    return bool(error <= allowed)


if __name__ == "__main__":
    sys.exit(main())
