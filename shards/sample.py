"""The head of a run in its shard: its JSON and its three statistics, which stand before `.bold`.

Functions raise `ValueError` with one line; callers say where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.chunks import zarr_metadata
from shards.format import Manifest, RunEntry, xxh3
from shards.strict import is_a, item, load_json, number, shown
from shards.tar import SUFFIXES

MAX_JSON_BYTES = 16 * 1024 * 1024
STATISTICS_HASH = "statistics_xxh3"
"""Optional key of a run's JSON: hash of the data of `.mean.f32`, `.std.f32` and `.scale.f32`, one after the other."""

_ALWAYS = ("run_id", "tr_s", "num_frames", "lossless")
_WHERE_THERE = ("subject", "session", "task", "run", "source")
Float32 = NDArray[np.float32]


def parse_meta(data: bytes) -> dict[str, Any]:
    """Read a run's JSON."""
    try:
        return load_json(data, MAX_JSON_BYTES)
    except ValueError as error:
        raise ValueError(f".json is not what a writer makes: {error}") from None


def parse_statistics(
    meta: Mapping[str, Any], parts: Sequence[bytes], num_voxels: int
) -> tuple[Float32, Float32, Float32]:
    """Read mean, std and scale, (voxel,) float32 each.

    Parameters
    ----------
    meta
        The run's JSON, which may hold their hash.
    parts
        The data of `.mean.f32`, `.std.f32` and `.scale.f32`.

    Raises
    ------
    ValueError
        Of another size, not finite, negative where that cannot be, or not those that `statistics_xxh3` tells of.
    """
    for suffix, part in zip(SUFFIXES[1:], parts, strict=False):
        if len(part) != 4 * num_voxels:
            raise ValueError(f".{suffix} has {len(part)} bytes, expected 4 for each of {num_voxels} voxels")
    mean, std, scale = (np.frombuffer(part, "<f4") for part in parts)
    if not all(np.isfinite(array).all() for array in (mean, std, scale)) or std.min() < 0 or scale.min() < 0:
        raise ValueError("statistics are damaged: not finite, or an SD or scale below 0")
    if STATISTICS_HASH in meta and meta[STATISTICS_HASH] != xxh3(b"".join(parts)):
        raise ValueError(f"statistics are damaged: not those of the {STATISTICS_HASH} in .json")
    return mean, std, scale


def check_meta(meta: Mapping[str, Any], entry: RunEntry, manifest: Manifest) -> None:
    """Check that a run's JSON tells the same as its row of `runs.tsv`, the manifest, and FORMAT.md section 5."""
    known = dict(meta)
    dtype, num_voxels = manifest.dtype, manifest.num_voxels
    names = [*_ALWAYS, *(name for name in _WHERE_THERE if name in known)]
    expected = {name: getattr(entry, name) for name in names}
    expected |= {"num_voxels": num_voxels, "dtype": dtype}
    expected |= {name: getattr(entry, name) if entry.lossless else None for name in ("grid_slope", "grid_inter")}
    for name, value in expected.items():
        found = item(known, name)
        if isinstance(value, float):
            found = number(found, name)
        if type(found) is not type(value) or found != value:
            raise ValueError(f"{name} is {shown(found)} in .json, expected {shown(value)}")
    zarr = is_a(item(known, "zarr"), dict, "zarr")
    attributes = is_a(item(zarr, "attributes"), dict, "attributes")
    if zarr != zarr_metadata(entry.num_frames, num_voxels, dtype, attributes):
        raise ValueError("the zarr metadata in .json are not those of its frames, voxels and dtype")
