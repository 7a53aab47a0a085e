"""Writing shard sets: deterministic tars, atomic files.

Whatever is written goes to a temporary name in the same folder, is fsynced, renamed, and the
folder is fsynced: after a crash a file is either complete or absent.
"""

from __future__ import annotations

import json
import os
import platform
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from shards.affine import WIDE, gain_of, list_wide
from shards.chunks import encode_chunks, object_bytes_bound, zarr_metadata
from shards.errors import OutputError, UsageError
from shards.format import BLOCK, MANIFEST, MAX_RUN_ID, Manifest, ShardInfo, valid_run_id, xxh3
from shards.room import Room
from shards.values import Encoded

_room = Room(2**40)  # a worker writes run after run
TEMPORARY = ".partial-"
"""Prefix of the temporary files of this writer; one that outlives its process may be removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRun:
    """One run, ready to be stored."""

    run_id: str
    meta: dict[str, Any]
    """JSON-able: subject, session, task, run, tr_s, source, ..."""
    encoded: Encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run lies in its shard; bytes, as in `runs.tsv`."""

    offset: int
    num_bytes: int
    bold_offset: int
    bold_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """A finished shard."""

    info: ShardInfo
    places: dict[str, Place]


def write_shard(path: Path, runs: Iterable[EncodedRun]) -> WrittenShard:
    """Write one shard; the same runs give the same bytes.

    Parameters
    ----------
    path
        Target, `*.tar`. It appears only when complete.
    runs
        In order of `run_id`; consumed one at a time, so a generator keeps one run in memory.

    Raises
    ------
    UsageError
        A `run_id` is not valid, not in order, or comes twice.
    OutputError
        The folder cannot be written (no room, no permission).
    """
    places: dict[str, Place] = {}
    last = ""
    with atomic_file(path) as file:
        tar = _Tar(file)
        for run in runs:
            if not valid_run_id(run.run_id) or run.run_id <= last:
                raise UsageError(
                    f"run id {run.run_id!r} after {last!r} in {path.name}: allowed are letters, digits, - and _, at "
                    f"most {MAX_RUN_ID} characters, in ascending order; rename the run"
                )
            last = run.run_id
            places[last] = _write_run(tar, run)
        tar.write(bytes(2 * BLOCK))
        info = ShardInfo(name=path.name, num_bytes=tar.position, xxh3=tar.digest.hexdigest(), num_runs=len(places))
    return WrittenShard(info=info, places=places)


def _write_run(tar: _Tar, run: EncodedRun) -> Place:
    encoded = run.encoded
    num_frames, num_voxels = encoded.q.shape
    dtype = str(encoded.q.dtype)
    attributes = {"run_id": run.run_id, "tr_s": run.meta["tr_s"]}
    statistics = {name: getattr(encoded, name).astype("<f4").tobytes() for name in ("mean", "std", "scale")}
    header = {
        "run_id": run.run_id,
        **run.meta,
        "num_frames": num_frames,
        "num_voxels": num_voxels,
        "dtype": dtype,
        "lossless": encoded.lossless,
        "grid_slope": encoded.grid_slope if encoded.lossless else None,
        "grid_inter": encoded.grid_inter if encoded.lossless else None,
        "statistics_xxh3": xxh3(b"".join(statistics.values())),
        "zarr": zarr_metadata(num_frames, num_voxels, dtype, attributes),
    }
    if encoded.num_wide_voxels:
        wide = list_wide(gain_of(encoded.mean, encoded.std, encoded.scale, dtype), num_voxels)
        header |= {} if wide is None else {WIDE: wide}
    start = tar.position
    tar.member(f"{run.run_id}.json", json.dumps(header, sort_keys=True, allow_nan=False).encode() + b"\n")
    for name, data in statistics.items():
        tar.member(f"{run.run_id}.{name}.f32", data)
    bold = encode_chunks(encoded.q, _room.take(object_bytes_bound(num_frames, num_voxels, encoded.q.itemsize)))
    bold_offset = tar.member(f"{run.run_id}.bold", bold)
    return Place(offset=start, num_bytes=tar.position - start, bold_offset=bold_offset, bold_bytes=len(bold))


class _Tar:
    """A ustar stream whose bytes depend on names and contents alone."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.digest = xxhash.xxh3_128()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.position += len(data)

    def member(self, name: str, data: bytes | memoryview) -> int:
        """Append one file; returns the offset of its data."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self.write(info.tobuf(tarfile.USTAR_FORMAT))
        start = self.position
        self.write(data)
        self.write(bytes(-len(data) % BLOCK))
        return start


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name `path`, durably, when the block ends without an error."""
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{path.name}"
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: {error.strerror or error}; make room or choose another output folder") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file so that it is either whole or absent, also after a power cut."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_new(path: Path, data: str) -> None:
    """Write a small file durably unless there is one of that name; of several writers at once exactly one succeeds.

    Raises
    ------
    OutputError
        The folder cannot be written, or its file system knows no hard links.
    """
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{platform.node()}-{path.name}"
    try:
        with temporary.open("wb") as file:
            file.write(data.encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; make room or choose another output folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Publish a shard set: after this it exists for readers."""
    write_atomic(folder / MANIFEST, manifest.to_json())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
