"""A shard set as a read-only Zarr v3 group: keys map to byte ranges of the tars.

Zarr's own codecs do the decoding; `zarr`, `dask.array` and `xarray` read it without this
project's reader.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from shards.chunks import zarr_metadata
from shards.reader import ShardSet

METADATA = "zarr.json"
CHUNK = "c/0/0"


class ShardSetStore(Store):
    """Maps `<run_id>/zarr.json` and `<run_id>/c/0/0` to a shard set.

    The metadata come from the manifest and `runs.tsv`; the one chunk of each array is the `.bold`
    member, of which zarr reads the index and the inner chunks it needs.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, shard_set: ShardSet) -> None:
        super().__init__(read_only=True)
        self._set = shard_set
        self._number = {entry.run_id: number for number, entry in enumerate(shard_set.runs)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardSetStore) and other._set.folder == self._set.folder

    def __hash__(self) -> int:
        return hash(self._set.folder)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a key, or None where there is none."""
        folder, _, name = key.rpartition("/")
        if name == METADATA and (folder == "" or folder in self._number):
            return prototype.buffer.from_bytes(_cut(self._metadata(folder), byte_range))
        run_id, _, chunk = key.partition("/")
        if chunk != CHUNK or run_id not in self._number:
            return None
        number = self._number[run_id]
        start, stop = _bounds(self._set.runs[number].bold_bytes, byte_range)
        return prototype.buffer.from_bytes(self._set.read_stored(number, start, stop - start))

    def _metadata(self, run_id: str) -> bytes:
        manifest = self._set.manifest
        if run_id == "":
            grid = {"shape": manifest.grid.shape, "affine": manifest.grid.affine}
            attributes = {"set_hash": manifest.set_hash, "grid": grid, "num_voxels": manifest.num_voxels}
            return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}).encode()
        entry = self._set.runs[self._number[run_id]]
        attributes = {"run_id": run_id, "tr_s": entry.tr_s}
        return json.dumps(zarr_metadata(entry.num_frames, manifest.num_voxels, manifest.dtype, attributes)).encode()

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several ranges, in order."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        run_id, _, name = key.partition("/")
        return key == METADATA or (run_id in self._number and name in (METADATA, CHUNK))

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a shard set is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: a shard set is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        yield METADATA
        for run_id in self._number:
            yield f"{run_id}/{METADATA}"
            yield f"{run_id}/{CHUNK}"

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below `prefix`."""
        prefix = prefix.rstrip("/")
        seen = set()
        async for key in self.list_prefix(prefix and prefix + "/"):
            name = key.removeprefix(prefix and prefix + "/").split("/")[0]
            if name not in seen:
                seen.add(name)
                yield name


def open_zarr(folder: str | Path) -> zarr.Group:
    """Open a shard set as a read-only `zarr.Group` with one (time, voxel) array per run.

    Values are the stored ones; the signal is `mean + scale * q` with the run's statistics
    (`ShardSet.statistics`), the residual `q / 16` for an int8 voxel that is not wide.
    """
    return zarr.open_group(ShardSetStore(ShardSet(folder)), mode="r", zarr_format=3)


def _bounds(size: int, byte_range: ByteRequest | None) -> tuple[int, int]:
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            return start, min(end, size)
        case OffsetByteRequest(offset):
            return offset, size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
        case _:
            raise TypeError(f"byte range {byte_range!r}")


def _cut(data: bytes, byte_range: ByteRequest | None) -> bytes:
    start, stop = _bounds(len(data), byte_range)
    return data[start:stop]
