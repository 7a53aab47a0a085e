"""`--dry-run`: what a call would do, from headers alone; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingest.additions import Say, check_all, count_voxels, set_grid
from ingest.check import CheckedRun
from ingest.config import IngestConfig
from ingest.grid import describe
from ingest.layouts import Scan
from ingest.ledger import State
from ingest.nifti import Header
from ingest.plan import estimated_bytes
from ingest.record import RunRecord
from ingest.sizes import format_duration, format_size
from ingest.summary import Summary

_PART_IN_MASK = 0.25
"""Of the grid, assumed where no mask is known yet."""
_PROCESS_BYTES = 200_000_000
"""Of a worker before it reads anything: Python, numpy, numba."""
_GZIP_BYTES_PER_S = 250e6
_PLAIN_BYTES_PER_S = 1e9
_VALUES_PER_S = 175e6
"""Of one core of the machine in the README's table: compressed bytes inflated, plain bytes read, and values in the
mask encoded and stored."""


def forecast(config: IngestConfig, found: Scan, new: Sequence[RunRecord], state: State, say: Say) -> Summary:
    """Check the new runs' headers and estimate output and memory."""
    checked, failures = check_all(new, found.base, config)
    summary = Summary(num_found=len(found.records), dry_run=True, failures=failures)
    summary.num_not_needed = len(found.records) - len(new)
    summary.num_added, summary.num_failed = len(checked), len(failures)
    summary.num_bytes_in = sum(run.header.num_file_bytes for run in checked)
    if not checked:
        return summary
    grid = state.grid or set_grid(config, checked)
    num_voxels = count_voxels(state.mask) if state.mask else round(_PART_IN_MASK * int(np.prod(grid.shape)))
    sizes = [estimated_bytes(run.header.num_frames, num_voxels, config.dtype) for run in checked]
    summary.num_bytes_out = sum(sizes)
    say(f"grid {describe(grid)}; about {num_voxels} voxels in the mask")
    seconds = sum(_seconds(run.header, num_voxels) for run in checked)
    more = ", cleaning and resampling not counted" if config.cleaning.active or config.resample != "no" else ""
    say(
        f"estimate: {format_duration(seconds)} of one core's time (storage may be slower{more}), "
        f"{format_size(_memory(config, checked, num_voxels))} of memory a worker"
    )
    return summary


def _seconds(header: Header, num_voxels: int) -> float:
    rate = _GZIP_BYTES_PER_S if header.compressed else _PLAIN_BYTES_PER_S
    return header.num_file_bytes / rate + header.num_frames * num_voxels / _VALUES_PER_S


def _memory(config: IngestConfig, runs: Sequence[CheckedRun], num_voxels: int) -> int:
    """Bytes of a worker: the largest run as read, as float32 if it is cleaned, and as stored."""
    read = max(run.header.dtype.itemsize for run in runs)
    cleaned = 4 if config.cleaning.active else 0
    values = max(run.header.num_frames for run in runs) * num_voxels
    return values * (read + cleaned + np.dtype(config.dtype).itemsize) + _PROCESS_BYTES
