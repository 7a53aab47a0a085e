"""`--dry-run`: what a call would do, from headers alone; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingest.additions import Say, check_all, count_voxels
from ingest.config import IngestConfig
from ingest.grid import canonical_grid, describe, most_frequent
from ingest.layouts import Scan
from ingest.ledger import State
from ingest.plan import estimated_bytes
from ingest.record import RunRecord
from ingest.sizes import format_size
from ingest.summary import Summary

_PART_IN_MASK = 0.25
"""Of the grid, assumed where no mask is known yet."""
_PROCESS_BYTES = 200_000_000
"""Of a worker before it reads anything: Python, numpy, numba."""


def forecast(config: IngestConfig, found: Scan, new: Sequence[RunRecord], state: State, say: Say) -> Summary:
    """Check the new runs' headers and estimate output and memory."""
    checked, failures = check_all(new, found.base, config)
    summary = Summary(num_found=len(found.records), dry_run=True, failures=failures)
    summary.num_not_needed = len(found.records) - len(new)
    summary.num_added, summary.num_failed = len(checked), len(failures)
    summary.num_bytes_in = sum(run.header.num_file_bytes for run in checked)
    if not checked:
        return summary
    grid = state.grid or most_frequent(canonical_grid(run.header) for run in checked)
    num_voxels = count_voxels(state.mask) if state.mask else round(_PART_IN_MASK * int(np.prod(grid.shape)))
    frames = [run.header.num_frames for run in checked]
    summary.num_bytes_out = sum(estimated_bytes(count, num_voxels, config.dtype) for count in frames)
    value_bytes = max(run.header.dtype.itemsize for run in checked) + np.dtype(config.dtype).itemsize
    memory = format_size(max(frames) * num_voxels * value_bytes + _PROCESS_BYTES)
    say(f"grid {describe(grid)}; about {num_voxels} voxels in the mask; about {memory} of memory a worker")
    return summary
