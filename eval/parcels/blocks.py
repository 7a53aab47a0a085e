"""Runs as Dask arrays of residuals, block by block of frames, from the set's Zarr view.

A block is decoded, turned into residuals and reduced by one task, so that a thread holds one block, whatever the
length of a run.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.errors import BoldstreamError, CorruptShardError

if TYPE_CHECKING:
    import dask.array
    import zarr

    from shards.reader import ShardSet

BLOCK_BYTES = 16 << 20
"""About the most that a block takes as float32, unless more is asked for."""


class Blocks:
    """The runs of an open shard set as lazy arrays.

    Parameters
    ----------
    shard_set : shards.reader.ShardSet
        Stays open as long as this is used.
    """

    def __init__(self, shard_set: ShardSet) -> None:
        self.shard_set = shard_set

    @cached_property
    def _group(self) -> zarr.Group:
        import zarr

        from shards.zarr_store import ShardSetStore

        return zarr.open_group(ShardSetStore(self.shard_set), mode="r", zarr_format=3)

    def residual(self, run: int, times: int = 1) -> dask.array.Array:
        """Residuals of a run, (T, V) float32, equal to those of the reader.

        Chunks hold all voxels of some frames, about `times` of `BLOCK_BYTES`.
        """
        import dask
        import dask.array

        entry = self.shard_set.runs[run]
        array: Any = self._group[entry.run_id]
        at_once = max(1, times * BLOCK_BYTES // (4 * self.shard_set.num_voxels * array.chunks[0])) * array.chunks[0]
        name = f"{entry.run_id}-{self.shard_set.manifest.set_hash}"
        stored = dask.array.from_zarr(array, chunks=(at_once, -1), name=f"stored-{name}")
        affine = dask.delayed(self.shard_set.residual_affine, pure=False)(run, dask_key_name=f"affine-{name}")
        return stored.map_blocks(_residual, affine=affine, dtype=np.float32, name=f"residual-{name}")


def _residual(stored: npt.NDArray[Any], affine: tuple[Any, Any]) -> npt.NDArray[np.float32]:
    """`gain * q + shift`, as `ShardSet.residual` has it."""
    gain, shift = affine
    residual: npt.NDArray[np.float32] = stored * gain
    return residual if shift is None else residual + shift


def compute(collections: list[Any], threads: int, where: str) -> list[npt.NDArray[Any]]:
    """Values of several lazy arrays, with so many threads of Dask's.

    Raises
    ------
    CorruptShardError
        Zarr finds the bytes of a chunk damaged; `where` names the shard.
    """
    import dask

    try:
        return list(dask.compute(*collections, scheduler="threads", num_workers=threads))
    except BoldstreamError:
        raise
    except (ValueError, RuntimeError) as error:  # what numcodecs raises on damaged zstd frames and wrong crc32c
        raise CorruptShardError(f"{where}: {error}; restore the shard or ingest again") from error
