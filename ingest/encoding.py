"""One run from its file to what a shard stores: check, read, resample, clean, encode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ingest.check import CheckedRun, check_run
from ingest.cleaning.clean import CleaningConfig, clean_run
from ingest.confounds import framewise_displacement_mm, read_confounds
from ingest.failures import RunError
from ingest.grid import canonical_grid, other_grid, same_grid, stored_positions
from ingest.kernels import EncodedWithError, encode_run
from ingest.nifti import Header, for_each_frame, stream_rows
from ingest.quality import run_quality
from ingest.record import RunRecord
from ingest.resample import Resampler
from ingest.scratch import Scratch
from shards.format import Grid
from shards.values import Encoded
from shards.writer import EncodedRun


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every run of a set is encoded with."""

    base: Path
    """The folder that sources are relative to."""
    grid: Grid
    mask: NDArray[np.bool_]
    """(x, y, z) on the grid."""
    dtype: str
    min_frames: int
    tr_s: float | None
    resample: str
    """`no`, `linear` or `cubic`."""
    cleaning: CleaningConfig


@dataclass(frozen=True, kw_only=True)
class BuiltRun:
    """A run ready for its shard."""

    encoded: EncodedRun
    row: dict[str, Any]
    """Of runs.tsv, without its place in the shard."""
    qc: dict[str, Any]
    """What `ingest.quality.run_quality` says, and `cleaning` if there was any."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The values in the mask, as read."""

    raw_TV: NDArray[Any]
    """In the file's own units: the signal is `slope * raw + inter`."""
    source_xxh3: str
    num_outside: int | None
    """Voxels outside the field of view of a resampled run."""


@np.errstate(all="ignore")  # what overflows is refused by name below, not announced on the terminal
def build_run(record: RunRecord, settings: RunSettings, scratch: Scratch) -> BuiltRun:
    """Read and encode one run.

    Parameters
    ----------
    scratch
        Holds the values of the result; they are lost when it is used again.

    Raises
    ------
    RunError
        The run cannot be ingested, for the reason given.
    """
    checked = check_run(record, min_frames=settings.min_frames, tr_s=settings.tr_s)
    header, tr_s = checked.header, checked.tr_s
    fd_mm_T = _motion(record, header.num_frames)
    rows = _read(record.bold, header, settings, scratch)
    raw_TV, slope, inter = rows.raw_TV, header.slope, header.inter
    notes: dict[str, Any] = {}
    if settings.cleaning.active:
        signal_TV = _signal(raw_TV, slope, inter, scratch)
        cleaned = clean_run(signal_TV, tr_s, record, settings.cleaning, scratch)
        raw_TV, slope, inter, tr_s = cleaned.signal_TV, 1.0, 0.0, cleaned.tr_s
        notes = {"cleaning": cleaned.notes}
        if len(raw_TV) < settings.min_frames:
            raise RunError(
                "clean",
                f"{len(raw_TV)} frames are left, wanted {settings.min_frames} or more",
                "clean less, or lower --min-frames",
                "too-few-frames",
            )
    result = encode_run(raw_TV, settings.dtype, slope=slope, inter=inter, scratch=scratch)
    _chk_values(result)
    qc = run_quality(header, result.encoded, fd_mm_T, rows.num_outside) | notes
    row = _row(checked, settings.base, rows.source_xxh3, result)
    row |= {"tr_s": tr_s, "num_frames": len(raw_TV), "mean_fd_mm": _mean(fd_mm_T)}
    return BuiltRun(encoded=_encoded_run(row, record, qc, result.encoded), row=row, qc=qc)


def _motion(record: RunRecord, num_frames: int) -> NDArray[np.float64] | None:
    """Framewise displacement in mm, (time,); None where the run has no motion estimates."""
    if record.confounds is None:
        return None
    return framewise_displacement_mm(read_confounds(record.confounds, num_frames).columns)


def _read(path: Path, header: Header, settings: RunSettings, scratch: Scratch) -> _Rows:
    num_voxels = int(settings.mask.sum())
    found = canonical_grid(header)
    fits = same_grid(found, settings.grid)
    if not fits and settings.resample == "no":
        raise other_grid(found, settings.grid)
    if fits:
        positions = stored_positions(header)[settings.mask]
        raw_TV = scratch.array("raw", (header.num_frames, num_voxels), header.dtype.newbyteorder("="))
        return _Rows(raw_TV=raw_TV, source_xxh3=stream_rows(path, header, positions, raw_TV), num_outside=None)
    method = cast(Literal["linear", "cubic"], settings.resample)
    resampler = Resampler(header, settings.grid, settings.mask, method)
    taken_TV = scratch.array("raw", (header.num_frames, num_voxels), np.float32)
    digest = for_each_frame(path, header, lambda t, frame: resampler.take(frame, taken_TV[t]))
    return _Rows(raw_TV=taken_TV, source_xxh3=digest, num_outside=resampler.num_outside)


def _signal(raw_TV: NDArray[Any], slope: float, inter: float, scratch: Scratch) -> NDArray[np.float32]:
    """`slope * raw + inter` as float32, in place where that is possible."""
    if raw_TV.dtype == np.float32 and (slope, inter) == (1.0, 0.0):
        return raw_TV
    signal_TV = raw_TV if raw_TV.dtype == np.float32 else scratch.array("signal", raw_TV.shape, np.float32)
    for raw_V, signal_V in zip(raw_TV, signal_TV, strict=True):
        signal_V[:] = raw_V.astype(np.float64) * slope + inter
    return signal_TV


def _chk_values(result: EncodedWithError) -> None:
    encoded = result.encoded
    usable = np.isfinite(encoded.mean) & np.isfinite(encoded.scale)
    usable &= (encoded.scale == 0) | np.isfinite(np.float32(1) / encoded.scale)
    num_bad = int((~usable).sum())
    if num_bad or not math.isfinite(result.error_max):
        raise RunError(
            "values",
            f"{num_bad or 'some'} of {len(usable)} voxels in the mask hold NaN, infinity, or more than float32 can",
            "mend the run, or give a --mask without these voxels",
            "not-finite",
        )
    if not (encoded.std > 0).any():
        raise RunError("constant", "no voxel in the mask varies in time", "check the run; a mask image perhaps?")


def _row(checked: CheckedRun, base: Path, digest: str, result: EncodedWithError) -> dict[str, Any]:
    """A row of runs.tsv; its place in the shard is filled in when the shard is written."""
    record, encoded = checked.record, result.encoded
    varying = encoded.std > 0
    mean, std = encoded.mean[varying].astype(np.float64), encoded.std[varying].astype(np.float64)
    rms_sd = math.sqrt(float((encoded.std.astype(np.float64) ** 2).mean()))
    return {
        "run_id": record.run_id,
        "subject": record.subject,
        "session": record.session,
        "task": record.task,
        "run": record.run,
        "source": record.source(base),
        "source_bytes": checked.header.num_file_bytes,
        "source_xxh3": digest,
        "num_wide_voxels": encoded.num_wide_voxels,
        "error_max": result.error_max,
        "error_rms": result.error_rms,
        "error_rms_rel": result.error_rms / rms_sd,
        "lossless": encoded.lossless,
        "grid_slope": encoded.grid_slope,
        "grid_inter": encoded.grid_inter,
        "tsnr_median": float(np.median(mean / std)),
    }


def _encoded_run(row: dict[str, Any], record: RunRecord, qc: dict[str, Any], encoded: Encoded) -> EncodedRun:
    own = ("subject", "session", "task", "run", "tr_s", "source", "source_xxh3")
    more = {"entities": dict(record.entities), "space": record.space, "variant": record.variant, "qc": qc}
    return EncodedRun(run_id=record.run_id, meta={name: row[name] for name in own} | more, encoded=encoded)


def _mean(values_T: NDArray[np.float64] | None) -> float:
    """Mean of the finite values; nan if there are none."""
    known = np.array([]) if values_T is None else values_T[np.isfinite(values_T)]
    with np.errstate(over="ignore"):
        mean = float(known.mean()) if len(known) else math.nan
    return mean if math.isfinite(mean) else math.nan
