"""A run of a shard set back to NIfTI, frame by frame: memory does not grow with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shards.errors import OutputError, UsageError
from shards.format import MASK
from shards.reader import ShardSet
from shards.values import origin_of
from shards.writer import atomic_file

if TYPE_CHECKING:
    import nibabel

What = Literal["signal", "residual", "mean", "std", "tsnr"]
SERIES = ("signal", "residual")
"""What has a time axis; the rest is one volume."""
_BLOCK_BYTES = 16_000_000
"""Of float32 in the mask, read at once."""
_GZIP_LEVEL = 1
"""As nibabel's: higher levels take several times as long for a few percent."""
_NIFTI1_MOST = 32767
"""Voxels or frames along an axis; longer ones need NIfTI-2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Volumes:
    """How values become numbers of the file: value = slope * number + inter."""

    dtype: Literal["<f4", "<i2"] = "<f4"
    slope: float = 1.0
    inter: float = 0.0
    outside: int = 0
    """The number that stands for 0, outside the mask."""
    origin: NDArray[np.int64] | None = None
    """(voxel,), what to add to the stored integers."""


def export_run(
    shard_set: ShardSet,
    run: int,
    path: Path,
    *,
    what: What = "signal",
    start: int = 0,
    num_frames: int | None = None,
    overwrite: bool = False,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write a run, or an image of it, as NIfTI on the set's grid.

    The axes are those of the set (RAS+), whatever the source's were; outside the mask all is 0. A
    lossless run's signal is written as the source's own integers where int16 and the header's
    scaling hold them exactly, else, as everything, as float32.

    Parameters
    ----------
    shard_set, run
        The set and the run's number.
    path
        `*.nii` or `*.nii.gz`; it appears only when complete. The same run gives the same bytes.
    what
        `signal` in the source's units and `residual` in SDs, (x, y, z, time); `mean`, `std` and
        `tsnr` (mean / SD, 0 where the voxel is constant) of the whole run, (x, y, z).
    start, num_frames
        Frames of a series; all from `start` on if `num_frames` is None.
    overwrite
        Replace a file that is there.
    advance
        Called with the number of frames just written.

    Raises
    ------
    UsageError
        The name is not one of NIfTI, or the frames are not inside the run.
    OutputError
        The file exists, or cannot be written.
    ShardError
        The run's bytes are damaged or cannot be read.
    """
    _check_name(shard_set, path, overwrite)
    frames = _frames(shard_set, run, what, start, num_frames)
    numbers = _numbers(shard_set, run, what, frames)
    header = _header(shard_set, run, what, frames, numbers)
    with atomic_file(path) as file, _compressed(file, path.name.endswith(".gz")) as stream:
        header.write_to(stream)
        _write_volumes(stream, shard_set.mask, _values(shard_set, run, what, frames, numbers), numbers, advance)


def _check_name(shard_set: ShardSet, path: Path, overwrite: bool) -> None:
    if not path.name.endswith((".nii", ".nii.gz")) or path.name in (".nii", ".nii.gz"):
        raise UsageError(f"{path}: not a name for NIfTI; let it end in .nii.gz or .nii")
    if path.is_dir():
        raise OutputError(f"{path}: a folder; give the name of a file")
    if path.exists() and path.resolve() == Path(shard_set.location, MASK).resolve():
        raise OutputError(f"{path}: the mask of the shard set itself; choose another name")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputError(f"{path}: exists; choose another name, or replace it with --overwrite")


def _frames(shard_set: ShardSet, run: int, what: What, start: int, num_frames: int | None) -> range:
    entry = shard_set.runs[run]
    if what not in get_args(What):
        raise UsageError(f"{what!r} cannot be exported; there are {', '.join(get_args(What))}")
    stop = entry.num_frames if num_frames is None else start + num_frames
    if not 0 <= start < stop <= entry.num_frames:
        raise UsageError(f"{entry.run_id}: frames {start} to {stop} asked for, the run has {entry.num_frames}")
    if what not in SERIES and (start, stop) != (0, entry.num_frames):
        raise UsageError(f"{what} is an image of the whole run; leave out --start and --frames")
    return range(start, stop)


def _numbers(shard_set: ShardSet, run: int, what: What, frames: range) -> _Volumes:
    """The source's own integers if int16 and a float32 scaling hold them, and 0, exactly."""
    entry = shard_set.runs[run]
    slope, inter = entry.grid_slope, entry.grid_inter
    if what != "signal" or not entry.lossless or not slope > 0:
        return _Volumes()
    outside = -inter / slope
    if float(np.float32(slope)) != slope or float(np.float32(inter)) != inter or outside != np.rint(outside):
        return _Volumes()
    origin = origin_of(shard_set.statistics(run).mean, slope, inter)
    extremes = [outside]
    for block in _blocks(shard_set, frames):
        integers = shard_set.read_window(run, block.start, len(block)) + origin
        extremes += [int(integers.min()), int(integers.max())]
    allowed = np.iinfo(np.int16)
    if min(extremes) < allowed.min or max(extremes) > allowed.max:
        return _Volumes()
    return _Volumes(dtype="<i2", slope=slope, inter=inter, outside=int(outside), origin=origin)


def _header(shard_set: ShardSet, run: int, what: What, frames: range, numbers: _Volumes) -> nibabel.Nifti1Header:
    import nibabel

    entry, grid = shard_set.runs[run], shard_set.grid
    shape = (*grid.shape, len(frames)) if what in SERIES else grid.shape
    header = nibabel.Nifti1Header() if max(shape) <= _NIFTI1_MOST else nibabel.Nifti2Header()
    header.set_data_dtype(numbers.dtype)
    header.set_data_shape(shape)
    header.set_zooms((*grid.voxel_mm, entry.tr_s)[: len(shape)])
    header.set_xyzt_units("mm", "sec")
    header.set_sform(np.asarray(grid.affine), code="aligned")
    header.set_slope_inter(numbers.slope, numbers.inter)
    header["descrip"] = f"boldstream {what}"
    if what in SERIES:
        header["toffset"] = frames.start * entry.tr_s
    return header


def _blocks(shard_set: ShardSet, frames: range) -> Iterator[range]:
    step = max(1, _BLOCK_BYTES // (4 * shard_set.num_voxels))
    for begin in range(0, len(frames), step):
        yield frames[begin : begin + step]


def _values(
    shard_set: ShardSet, run: int, what: What, frames: range, numbers: _Volumes
) -> Iterator[NDArray[np.float32] | NDArray[np.int64]]:
    """(time, voxel) blocks of what is to be written."""
    if what not in SERIES:
        stats = shard_set.statistics(run)
        tsnr = np.divide(stats.mean, stats.std, out=np.zeros_like(stats.mean), where=stats.std > 0)
        yield {"mean": stats.mean, "std": stats.std, "tsnr": tsnr}[what][None]
        return
    for block in _blocks(shard_set, frames):
        if numbers.origin is not None:
            yield shard_set.read_window(run, block.start, len(block)) + numbers.origin
        elif what == "signal":
            yield shard_set.read_signal(run, block.start, len(block))
        else:
            yield shard_set.residual(run, block.start, len(block))


def _write_volumes(
    stream: BinaryIO,
    mask: NDArray[np.bool_],
    blocks: Iterator[NDArray[np.float32] | NDArray[np.int64]],
    numbers: _Volumes,
    advance: Callable[[int], None] | None,
) -> None:
    """NIfTI runs through x fastest: a volume is the (z, y, x) array in C order."""
    volume = np.full(mask.shape[::-1], numbers.outside, numbers.dtype)
    places = np.ravel_multi_index(np.nonzero(mask)[::-1], volume.shape)
    flat = volume.reshape(-1)
    for block in blocks:
        for frame in block:
            flat[places] = frame
            stream.write(volume.data)
        if advance is not None:
            advance(len(block))


def _compressed(file: BinaryIO, gzipped: bool) -> AbstractContextManager[BinaryIO]:
    """A stream into `file`; a gzip header with neither name nor time, so that bytes depend on values alone."""
    if not gzipped:
        return nullcontext(file)
    from zlib_ng import gzip_ng

    stream: AbstractContextManager[BinaryIO] = gzip_ng.GzipNGFile(
        filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0
    )
    return stream
