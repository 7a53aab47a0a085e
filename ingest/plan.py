"""Which run goes into which shard: pure functions of the runs found, never of workers or time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CODED_PART = {"int8": 0.80, "int16": 0.85, "float16": 0.93, "float32": 0.93}
"""Part of the raw bytes that zstd level 1 leaves, measured on BOLD."""
_SAMPLE_BYTES = 16 * 512
"""Tar headers, padding, JSON and index of a run, roughly."""


def estimated_bytes(num_frames: int, num_voxels: int, dtype: str) -> int:
    """Bytes that a run will take in a shard, known before it is read."""
    values = num_frames * num_voxels * np.dtype(dtype).itemsize * _CODED_PART[dtype]
    return int(values) + 3 * 4 * num_voxels + _SAMPLE_BYTES


def assign(sizes: Sequence[int], shard_bytes: int) -> list[slice]:
    """Cut a list of runs into shards, greedily and in order.

    Parameters
    ----------
    sizes
        Estimated bytes of each run, in order of run_id.
    shard_bytes
        A shard that would pass this is closed; a larger run is a shard of its own.

    Returns
    -------
    list of slice
        One for each shard; together they cover the list once.
    """
    cuts: list[slice] = []
    first, total = 0, 0
    for k, size in enumerate(sizes):
        if k > first and total + size > shard_bytes:
            cuts.append(slice(first, k))
            first, total = k, 0
        total += size
    if len(sizes) > first:
        cuts.append(slice(first, len(sizes)))
    return cuts


def shard_name(name: str, number: int) -> str:
    """File name of a shard: `abcd-000012.tar`."""
    return f"{name}-{number:06d}.tar"
