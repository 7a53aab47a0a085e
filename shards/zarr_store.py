"""A shard set as a read-only Zarr v3 hierarchy: keys map to byte ranges of the tars.

    <run_id>              array (time, voxel) of stored values
    runs/<run_id>         group that xarray opens as a Dataset:
        bold              the same array
        mean, std, scale  (voxel,) statistics of the run
        time              (time,) seconds from the first frame
        i, j, k           (voxel,) position on the grid
        x, y, z           (voxel,) millimetres, by the grid's affine

Zarr's own codecs do the decoding; `zarr`, `dask.array` and `xarray` read it without this
project's reader. Time and positions are computed from the manifest, `runs.tsv` and the mask;
everything else lies in the tars.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from shards.chunks import index_bytes, parse_index, zarr_metadata
from shards.reader import ShardSet

if TYPE_CHECKING:
    from shards.storage.cache import CacheConfig

METADATA = "zarr.json"
GROUP = "runs"
"""Holds a group for each run. A run of that very name would have its array, and there would be no groups."""
BOLD = "bold"
_VECTORS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mean": ("voxel", "float32", {"long_name": "temporal mean"}),
    "std": ("voxel", "float32", {"long_name": "temporal SD (ddof 0), 0 where the voxel is constant"}),
    "scale": ("voxel", "float32", {"long_name": "signal per unit of bold"}),
    "time": ("time", "float64", {"long_name": "time from the first frame", "units": "s"}),
    **{
        name: ("voxel", "int32", {"long_name": f"position on the grid, axis {axis}"}) for axis, name in enumerate("ijk")
    },
    **{name: ("voxel", "float32", {"long_name": f"{name} of the voxel's centre", "units": "mm"}) for name in "xyz"},
}
"""Dimension, dtype and attributes of the one-dimensional arrays of a run's group."""


class ShardSetStore(Store):
    """Keys of a Zarr hierarchy, read from a shard set (see the module's first lines).

    Damaged bytes raise, also where zarr would take them for a chunk that was never written.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, shard_set: ShardSet) -> None:
        super().__init__(read_only=True)
        self._set = shard_set
        self._number = {entry.run_id: number for number, entry in enumerate(shard_set.runs)}
        self._sound: set[int] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardSetStore) and other._set.location == self._set.location

    def __hash__(self) -> int:
        return hash(self._set.location)

    def __str__(self) -> str:
        return self._set.location

    def __reduce__(self) -> tuple[type[ShardSetStore], tuple[ShardSet]]:
        return ShardSetStore, (self._set,)

    def __dask_tokenize__(self) -> tuple[str, str]:
        """Identity for dask, which else would pickle the store."""
        return self._set.location, self._set.manifest.set_hash

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a key, or None where there is none; a range beyond the end is cut."""
        data = await asyncio.to_thread(self._read, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several ranges, in order."""
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return (key == METADATA or "/" in key) and key in self._keys_near(key)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a shard set is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: a shard set is read-only."""
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in self._keys_near(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with `prefix`."""
        for key in self._keys_near(prefix):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below `prefix`."""
        folder = prefix.rstrip("/")
        folder += "/" if folder else ""
        if folder in ("", f"{GROUP}/"):
            for name in self._folders(folder):
                yield name
            return
        below = (key.removeprefix(folder) for key in self._keys_near(folder) if key.startswith(folder))
        for name in dict.fromkeys(rest.split("/")[0] for rest in below):
            yield name

    @property
    def _grouped(self) -> bool:
        return GROUP not in self._number

    def _folders(self, folder: str) -> Iterator[str]:
        """Names in the root, or in `runs`."""
        if folder and not self._grouped:
            yield from (METADATA, "c")
            return
        yield METADATA
        if not folder and self._grouped:
            yield GROUP
        yield from self._number

    def _keys_near(self, prefix: str) -> Iterator[str]:
        """Every key, but only those of one run where the prefix holds its whole name."""
        parts = prefix.split("/")
        if parts[0] == GROUP and self._grouped:
            parts = parts[1:]
        named = [parts[0]] if parts and parts[0] in self._number else []
        yield METADATA
        if self._grouped:
            yield f"{GROUP}/{METADATA}"
        for run_id in named if len(parts) > 1 else self._number:
            yield from self._keys_of(run_id)

    def _keys_of(self, run_id: str) -> Iterator[str]:
        yield f"{run_id}/{METADATA}"
        yield f"{run_id}/c/0/0"
        if self._grouped:
            group = f"{GROUP}/{run_id}"
            yield f"{group}/{METADATA}"
            yield f"{group}/{BOLD}/{METADATA}"
            yield f"{group}/{BOLD}/c/0/0"
            for name in _VECTORS:
                yield f"{group}/{name}/{METADATA}"
                yield f"{group}/{name}/c/0"

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes | None:
        if key == METADATA:
            return _cut(_json(self._root()), byte_range)
        if key == f"{GROUP}/{METADATA}" and self._grouped:
            return _cut(_json(_group({})), byte_range)
        head, _, rest = key.partition("/")
        if head in self._number:
            return self._read_bold(self._number[head], rest, {}, byte_range)
        run_id, _, rest = rest.partition("/")
        if head != GROUP or run_id not in self._number:
            return None
        run = self._number[run_id]
        if rest == METADATA:
            return _cut(_json(self._run_group(run)), byte_range)
        array, _, name = rest.partition("/")
        if array == BOLD:
            return self._read_bold(run, name, {"coordinates": "i j k x y z"}, byte_range)
        return self._read_vector(run, array, name, byte_range)

    def _read_bold(
        self, run: int, name: str, attributes: dict[str, str], byte_range: ByteRequest | None
    ) -> bytes | None:
        entry, manifest = self._set.runs[run], self._set.manifest
        if name == METADATA:
            known = {"run_id": entry.run_id, "tr_s": entry.tr_s} | attributes
            return _cut(_json(zarr_metadata(entry.num_frames, manifest.num_voxels, manifest.dtype, known)), byte_range)
        if name != "c/0/0":
            return None
        self._check_index(run)
        start, stop = _bounds(entry.bold_bytes, byte_range)
        return bytes(self._set.read_stored(run, start, stop - start))

    def _check_index(self, run: int) -> None:
        """Zarr reads a chunk that the index declares absent as zeros; no chunk of a shard set is absent."""
        if run in self._sound:
            return
        entry = self._set.runs[run]
        size = index_bytes(entry.num_frames, self._set.num_voxels, self._set.dtype.itemsize)
        table = self._set.read_stored(run, max(0, entry.bold_bytes - size), min(size, entry.bold_bytes))
        parse_index(bytes(table), entry.bold_bytes, f"{self._set.location}/{entry.shard} ({entry.run_id})")
        self._sound.add(run)

    def _read_vector(self, run: int, array: str, name: str, byte_range: ByteRequest | None) -> bytes | None:
        if array not in _VECTORS or name not in (METADATA, "c/0"):
            return None
        dimension, dtype, attributes = _VECTORS[array]
        if name == "c/0":
            return _cut(self._vector(run, array).astype(np.dtype(dtype).newbyteorder("<")).tobytes(), byte_range)
        size = self._set.num_voxels if dimension == "voxel" else self._set.runs[run].num_frames
        return _cut(_json(_vector_metadata(size, dimension, dtype, attributes)), byte_range)

    def _vector(self, run: int, array: str) -> NDArray[Any]:
        if array == "time":
            entry = self._set.runs[run]
            return np.arange(entry.num_frames) * entry.tr_s
        if array in self._positions:
            return self._positions[array]
        values: NDArray[np.float32] = getattr(self._set.statistics(run), array)
        return values

    @cached_property
    def _positions(self) -> dict[str, NDArray[Any]]:
        """Grid indices and millimetres of each voxel, (voxel,) each."""
        indices = np.argwhere(self._set.mask)
        affine = np.asarray(self._set.grid.affine)
        millimetres = indices @ affine[:3, :3].T + affine[:3, 3]
        return dict(zip("ijk", indices.T, strict=True)) | dict(zip("xyz", millimetres.T, strict=True))

    def _root(self) -> dict[str, Any]:
        manifest = self._set.manifest
        grid = {"shape": manifest.grid.shape, "affine": manifest.grid.affine}
        return _group({"set_hash": manifest.set_hash, "grid": grid, "num_voxels": manifest.num_voxels})

    def _run_group(self, run: int) -> dict[str, Any]:
        entry = self._set.runs[run]
        names = ("run_id", "subject", "session", "task", "run", "tr_s")
        signal = "bold" if self._set.manifest.dtype == "float32" else "mean + scale * bold"
        labels = {name: value for name in names if (value := getattr(entry, name)) != ""}
        return _group(labels | {"signal": signal})


def open_zarr(location: str | Path, cache: CacheConfig | None = None) -> zarr.Group:
    """Open a shard set as a read-only `zarr.Group`.

    It holds a (time, voxel) array per run and, in the group `runs`, a group per run for
    `xarray.open_zarr(group.store, group="runs/<run_id>")`. Values are the stored ones; the signal is
    `mean + scale * bold` with the run's statistics, the residual `bold / 16` for an int8 voxel that is not wide.

    Parameters
    ----------
    location, cache
        As of `shards.reader.ShardSet`.
    """
    return zarr.open_group(ShardSetStore(ShardSet(location, cache)), mode="r", zarr_format=3)


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _vector_metadata(size: int, dimension: str, dtype: str, attributes: dict[str, str]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": attributes,
        "dimension_names": [dimension],
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _bounds(size: int, byte_range: ByteRequest | None) -> tuple[int, int]:
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            return min(start, size), max(min(start, size), min(end, size))
        case OffsetByteRequest(offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
        case _:
            raise TypeError(f"byte range {byte_range!r}")


def _cut(data: bytes, byte_range: ByteRequest | None) -> bytes:
    start, stop = _bounds(len(data), byte_range)
    return data[start:stop]
