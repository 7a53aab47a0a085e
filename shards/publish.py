"""From written shards to a finished set: rows of runs.tsv, tables, mask, and the manifest last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.chunks import codec_summary
from shards.format import (
    MASK,
    PARTICIPANTS,
    RUNS,
    Grid,
    Manifest,
    RunEntry,
    ShardInfo,
    config_hash,
    mask_identity,
    xxh3,
)
from shards.mask import mask_to_nifti
from shards.runs_table import runs_to_tsv
from shards.writer import EncodedRun, Place, write_atomic, write_manifest

_UNKNOWN = {"str": "", "int": 0, "float": math.nan, "bool": False}


def run_entry(run: EncodedRun, shard: str, place: Place, **known: Any) -> RunEntry:
    """Return the row of a written run.

    Parameters
    ----------
    run, shard, place
        The run, the name of its shard, and where it lies there.
    known
        Other columns of `RunEntry`, such as `source_bytes` or `error_max`; left out: 0, empty, not known.
    """
    encoded = run.encoded
    own = {
        "run_id": run.run_id,
        "num_frames": len(encoded.q),
        "shard": shard,
        "num_wide_voxels": encoded.num_wide_voxels,
        "lossless": encoded.lossless,
        "grid_slope": encoded.grid_slope,
        "grid_inter": encoded.grid_inter,
    }
    columns: dict[str, Any] = {field.name: _UNKNOWN[str(field.type)] for field in fields(RunEntry)}
    told = {name: run.meta[name] for name in columns if name in run.meta}
    return RunEntry(**(columns | told | own | asdict(place) | known))


def publish_set(
    folder: Path,
    *,
    name: str,
    dtype: str,
    mask: NDArray[np.bool_],
    grid: Grid,
    entries: Iterable[RunEntry],
    shards: Iterable[ShardInfo],
    participants: bytes | None = None,
    mask_source: str = "",
    cleaning: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    software: Mapping[str, str] | None = None,
) -> Manifest:
    """Write tables, mask and manifest of a set whose shards lie in `folder`; after this it exists for readers.

    Parameters
    ----------
    mask
        (x, y, z) on the grid.
    participants
        Content of participants.tsv, if any.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    rows = list(entries)
    tables = {RUNS: runs_to_tsv(rows).encode(), MASK: mask_to_nifti(mask, grid)}
    if participants is not None:
        tables[PARTICIPANTS] = participants
    manifest = describe(
        rows,
        name=name,
        dtype=dtype,
        num_voxels=int(mask.sum()),
        mask_hash=mask_identity(mask, grid),
        grid=grid,
        shards=tuple(shards),
        tables={name: xxh3(data) for name, data in tables.items()},
        mask_source=mask_source,
        cleaning=dict(cleaning or {}),
        config=dict(config or {}),
        software=dict(software or {}),
    )
    for table, data in tables.items():
        write_atomic(folder / table, data)
    write_manifest(folder, manifest)
    return manifest


def describe(rows: Iterable[RunEntry], *, config: dict[str, Any], **known: Any) -> Manifest:
    """Return the manifest of runs: codec, counts and the configuration's hash are filled in, the rest is `known`."""
    rows = list(rows)
    return Manifest(
        codec=codec_summary(),
        config=config,
        config_hash=config_hash(config),
        num_runs=len(rows),
        num_subjects=len({row.subject for row in rows}),
        num_frames=sum(row.num_frames for row in rows),
        **known,
    )
