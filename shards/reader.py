"""Reading shard sets: any window of any run with one contiguous read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards import chunks, values
from shards.affine import LISTED_BELOW, WIDE, Gain, Intensity, even_gain, gain_of, intensity_of, read_wide
from shards.decoding import decode_window
from shards.errors import CorruptShardError, UsageError
from shards.format import (
    BLOCK,
    MANIFEST,
    MASK,
    PARTICIPANTS,
    RUNS,
    Grid,
    Manifest,
    frames_per_chunk,
    xxh3,
)
from shards.mask import read_mask
from shards.recent import Recent
from shards.room import Room
from shards.runs_table import runs_from_tsv
from shards.sample import parse_meta, parse_statistics
from shards.storage import Storage, open_storage
from shards.tables import check_runs, participants_from_tsv

if TYPE_CHECKING:
    import pandas

    from shards.storage.cache import CacheConfig

MISSING = frozenset({"", "n/a", "N/A", "NA", "nan", "NaN"})
_KEPT_BYTES = 256 * 1024**2  # of chunk indices: about 50,000 runs of 1,200 frames; of gains and of intensities as well
_ENTRY_BYTES = 200  # what a kept value costs beside its own bytes
_stored, _frames = Room(64 * 1024**2), Room(64 * 1024**2)  # windows; a whole run comes and goes


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatistics:
    """Per-voxel statistics of a run, (voxel,) float32 each."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    scale: NDArray[np.float32]


class ShardSet:
    """A shard set opened for reading; safe to use from several threads.

    Parameters
    ----------
    location
        The folder that holds `manifest.json`, or its URL (`https://...`, `s3://...`: whatever fsspec knows).
    cache
        Keep what was read on this machine; for slow or remote storage.

    Attributes
    ----------
    location : str
    storage : Storage
    manifest : Manifest
    runs : tuple of RunEntry
        In order of `run_id`; a run's position is its number in all other methods.
    mask : ndarray of bool, (x, y, z)

    Raises
    ------
    UsageError
        There is no shard set at `location`.
    ShardError
        There is one, but of an unknown version or damaged.
    """

    def __init__(self, location: str | Path, cache: CacheConfig | None = None) -> None:
        storage = open_storage(location, cache)
        self._arguments: tuple[Any, ...] = (str(location), cache)
        manifest = _read_manifest(storage)
        storage.expect({shard.name: shard.num_bytes for shard in manifest.shards})
        self._assemble(storage, manifest)
        self.runs = runs_from_tsv(self._table(RUNS), self._path(RUNS))
        self.mask = read_mask(
            self._table(MASK), manifest.grid, manifest.num_voxels, manifest.mask_hash, self._path(MASK)
        )
        check_runs(self.runs, manifest, self._path(RUNS))

    def _assemble(self, storage: Storage, manifest: Manifest) -> None:
        self.storage, self.manifest, self.location = storage, manifest, storage.location
        self.num_voxels = manifest.num_voxels
        self.dtype = np.dtype(manifest.dtype)
        self._bounds: Recent[NDArray] = Recent(_KEPT_BYTES)
        self._gains: Recent[Gain] = Recent(_KEPT_BYTES)
        self._intensities: Recent[Intensity] = Recent(_KEPT_BYTES)
        self._even_gain = even_gain(manifest.dtype)

    @property
    def grid(self) -> Grid:
        """The grid that all runs share."""
        return self.manifest.grid

    def read_window(self, run: int, start: int, num_frames: int, out: NDArray | None = None) -> NDArray:
        """Read consecutive frames of a run as stored.

        Parameters
        ----------
        run, start, num_frames
            The run's number, the first frame, and how many; all must exist.
        out
            Optional C-contiguous (num_frames, voxel) array of the stored dtype to decode into.

        Returns
        -------
        ndarray
            (num_frames, voxel) of the stored dtype.

        Raises
        ------
        UsageError
            The window is not inside the run.
        CorruptShardError
            A checksum or a size does not fit.
        """
        entry = self.runs[run]
        if start < 0 or num_frames < 1 or start + num_frames > entry.num_frames:
            raise UsageError(
                f"{entry.run_id}: frames {start} to {start + num_frames} asked for, the run has {entry.num_frames}"
            )
        out = self._checked(out, num_frames)
        per_chunk = frames_per_chunk(self.num_voxels, self.dtype.itemsize)
        first, last = start // per_chunk, (start + num_frames - 1) // per_chunk
        bounds = self._bounds.get(run, self._read_bounds)[first : last + 2].astype(np.int64)
        stored = _stored.take(int(bounds[-1] - bounds[0]))
        self.storage.read_into(entry.shard, entry.bold_offset + int(bounds[0]), stored.data)
        where = f"{self._path(entry.shard)} ({entry.run_id})"
        num_decoded = (last + 1 - first) * per_chunk
        if num_decoded == num_frames:
            decode_window(stored, bounds - bounds[0], out, where)
            return out
        # chunks of several frames, of which the window does not take all
        room = _frames.take(num_decoded * self.num_voxels * self.dtype.itemsize)
        frames = room.view(self.dtype).reshape(num_decoded, self.num_voxels)
        decode_window(stored, bounds - bounds[0], frames, where)
        out[:] = frames[start - first * per_chunk :][:num_frames]
        return out

    def stored_bytes(self, run: int, num_frames: int) -> int:
        """About how many bytes of the shard so many frames of a run are."""
        entry = self.runs[run]
        return entry.bold_bytes * num_frames // entry.num_frames

    def read_stored(self, run: int, start: int, num_bytes: int) -> bytearray:
        """Bytes of a run's `.bold` member as they lie in the shard, from byte `start` of the member."""
        entry = self.runs[run]
        return self._read(entry.shard, entry.bold_offset + start, num_bytes)

    def statistics(self, run: int) -> RunStatistics:
        """Mean, SD and scale of a run's voxels.

        Raises
        ------
        CorruptShardError
            They differ from what was written; sets made before boldstream stored their hash can only be checked for
            values that cannot be.
        """
        entry = self.runs[run]
        # the JSON, mean, std and scale stand, each behind its header, right before the header of .bold
        data = self._read(entry.shard, entry.offset, entry.bold_offset - entry.offset)
        step = self._statistic_step
        first = len(data) - 3 * step
        parts = [bytes(data[first + k * step :][: 4 * self.num_voxels]) for k in range(3)]
        try:
            meta = parse_meta(bytes(data[BLOCK : first - BLOCK]).rstrip(b"\0"))
            mean, std, scale = parse_statistics(meta, parts, self.num_voxels)
        except ValueError as error:
            raise self._damaged(run, error) from None
        return RunStatistics(mean=mean, std=std, scale=scale)

    def meta(self, run: int) -> dict[str, Any]:
        """What the run's JSON tells: entities, TR, source, quality and more.

        Raises
        ------
        CorruptShardError
            It cannot be read.
        """
        entry = self.runs[run]
        end = entry.bold_offset - 3 * self._statistic_step - BLOCK
        data = self._read(entry.shard, entry.offset + BLOCK, end - entry.offset - BLOCK)
        try:
            return parse_meta(bytes(data).rstrip(b"\0"))
        except ValueError as error:
            raise self._damaged(run, error) from None

    def read_signal(self, run: int, start: int, num_frames: int) -> NDArray[np.float32]:
        """The signal of some frames in the source's units, (time, voxel) float32."""
        entry = self.runs[run]
        stats = self.statistics(run)
        return values.decode(
            self.read_window(run, start, num_frames),
            stats.mean,
            stats.scale,
            lossless=entry.lossless,
            grid_slope=entry.grid_slope,
            grid_inter=entry.grid_inter,
        )

    def read_run(self, run: int) -> NDArray[np.float32]:
        """The whole run's signal, (time, voxel) float32; exact where the run is recorded as lossless."""
        return self.read_signal(run, 0, self.runs[run].num_frames)

    def residual_affine(self, run: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Gain and shift, (voxel,), that turn stored values into residuals (x - mean) / SD."""
        stats = self.statistics(run)
        return values.residual_affine(stats.mean, stats.std, stats.scale, self.manifest.dtype)

    def gain(self, run: int) -> Gain:
        """The same in the form that is cheap to keep; the reader keeps it."""
        return self._gains.get(run, self._read_gain)

    def intensity(self, run: int) -> Intensity:
        """Level and spread, (voxel,), that turn residuals into the run's global z-score; the reader keeps some."""
        return self._intensities.get(run, self._read_intensity)

    def residual(self, run: int, start: int, num_frames: int) -> NDArray[np.float32]:
        """Residuals of some frames, (time, voxel) float32."""
        gain, shift = self.residual_affine(run)
        residual = self.read_window(run, start, num_frames) * gain
        return residual if shift is None else residual + shift

    def unmask(self, flat: NDArray) -> NDArray:
        """(voxel,) to (x, y, z), or (time, voxel) to (x, y, z, time); zero outside the mask."""
        dense = np.zeros((*self.mask.shape, *flat.shape[:-1]), flat.dtype)
        dense[self.mask] = flat.T
        return dense

    @cached_property
    def participants(self) -> pandas.DataFrame | None:
        """`participants.tsv` as given, every column as text, or None if the set has none."""
        columns = self._participants
        if columns is None:
            return None
        import pandas

        return pandas.DataFrame(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `participants.tsv` beside the subject; none if the set has no table."""
        return tuple(name for name in self._participants or () if name != "participant_id")

    def phenotype(self, column: str) -> dict[str, str]:
        """A column of participants.tsv: subject label (without `sub-`) to text, missing values left out.

        Raises
        ------
        UsageError
            There is no table or no such column; the message names those there are.
        """
        table = self._participants
        path = self._path(PARTICIPANTS)
        if table is None:
            raise UsageError(f"{path}: the shard set has no participants table; ingest with --participants FILE")
        if column not in table or column == "participant_id":
            raise UsageError(f"{path}: no column {column!r}; there are: {', '.join(self.columns)}")
        pairs = zip(table["participant_id"], table[column], strict=True)
        return {who.removeprefix("sub-"): value for who, value in pairs if value not in MISSING}

    def close(self) -> None:
        """Close the shards' files."""
        self.storage.close()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    @cached_property
    def _participants(self) -> dict[str, list[str]] | None:
        if PARTICIPANTS not in self.manifest.tables:
            return None
        return participants_from_tsv(self._table(PARTICIPANTS), self._path(PARTICIPANTS))

    @property
    def _statistic_step(self) -> int:
        """Bytes from one statistic to the next: header, data, padding."""
        size = 4 * self.num_voxels
        return BLOCK + size + -size % BLOCK

    def _damaged(self, run: int, error: ValueError) -> CorruptShardError:
        entry = self.runs[run]
        where = f"{self._path(entry.shard)} ({entry.run_id})"
        return CorruptShardError(f"{where}: {error}; restore the shard or ingest again")

    def _path(self, name: str) -> str:
        return f"{self.location}/{name}"

    def _read(self, shard: str, offset: int, num_bytes: int) -> bytearray:
        data = bytearray(num_bytes)
        self.storage.read_into(shard, offset, memoryview(data))
        return data

    def _table(self, name: str) -> bytes:
        path = self._path(name)
        try:
            data = self.storage.read_file(name)
        except FileNotFoundError:
            raise CorruptShardError(f"{path}: no such file; the manifest lists it, restore it") from None
        if xxh3(data) != self.manifest.tables.get(name):
            raise CorruptShardError(
                f"{path}: its checksum differs from the manifest's; run ingest-fmri again if it was interrupted, "
                "else restore the file"
            )
        return data

    def _checked(self, out: NDArray | None, num_frames: int) -> NDArray:
        shape = (num_frames, self.num_voxels)
        if out is None:
            return np.empty(shape, self.dtype)
        if out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise UsageError(f"out: {out.shape} {out.dtype}, must be {shape} {self.dtype} in C order")
        return out

    def _read_bounds(self, run: int) -> tuple[NDArray, int]:
        """Where the chunks of a run begin and the last ends, and the bytes of this table."""
        entry = self.runs[run]
        size = chunks.index_bytes(entry.num_frames, self.num_voxels, self.dtype.itemsize)
        where = f"{self._path(entry.shard)} ({entry.run_id})"
        if size >= entry.bold_bytes:
            raise CorruptShardError(f"{where}: too small for its {entry.num_frames} frames; restore the file")
        table = self.read_stored(run, entry.bold_bytes - size, size)
        bounds = chunks.parse_index(table, entry.bold_bytes, where)
        small = bounds.astype(np.uint32) if entry.bold_bytes < 2**32 else bounds
        return small, small.nbytes + _ENTRY_BYTES

    def _read_gain(self, run: int) -> tuple[Gain, int]:
        dtype, count = self.manifest.dtype, self.runs[run].num_wide_voxels
        if dtype != "float32" and count == 0:
            return self._even_gain, _ENTRY_BYTES
        if count <= LISTED_BELOW * self.num_voxels and WIDE in (meta := self.meta(run)):
            try:
                gain = read_wide(meta[WIDE], count, self.num_voxels, dtype)
            except ValueError as error:
                raise self._damaged(run, error) from None
            return gain, gain.num_bytes + _ENTRY_BYTES
        stats = self.statistics(run)
        gain = gain_of(stats.mean, stats.std, stats.scale, dtype)
        return gain, gain.num_bytes + _ENTRY_BYTES

    def _read_intensity(self, run: int) -> tuple[Intensity, int]:
        stats = self.statistics(run)
        return intensity_of(stats.mean, stats.std), 8 * self.num_voxels + _ENTRY_BYTES


def _read_manifest(storage: Storage) -> Manifest:
    where = f"{storage.location}/{MANIFEST}"
    try:
        text = storage.read_file(MANIFEST)
    except FileNotFoundError:
        raise UsageError(
            f"{storage.location}: no {MANIFEST} there, so no finished shard set; give the folder that --out of "
            "ingest-fmri named, or run ingest-fmri (again)"
        ) from None
    return Manifest.from_json(text, where)
