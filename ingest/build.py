"""Building one shard: a plain function of a job, for any scheduler or none."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.check import CheckedRun, check_run, mean_fd_mm
from ingest.failures import Failure, RunError
from ingest.grid import canonical_grid, chk_grid, stored_positions
from ingest.kernels import EncodedWithError, encode_run
from ingest.ledger import row_to_dict
from ingest.nifti import stream_rows
from ingest.record import RunRecord
from ingest.scratch import Scratch
from shards.format import MASK, Grid, RunEntry
from shards.values import Encoded
from shards.writer import EncodedRun, write_shard

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that is needed to build one shard; the mask is read from the set's folder."""

    out: Path
    name: str
    base: Path
    """The folder that sources are relative to."""
    runs: list[dict[str, Any]]
    """`RunRecord.to_dict` of each run, in order of run_id."""
    grid: Grid
    dtype: str
    min_frames: int
    tr_s: float | None


@dataclass
class _Built:
    """What comes together while the runs of a shard pass through."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    num_bytes_in: int = 0
    scratch: Scratch = field(default_factory=Scratch)


def build_shard(job: ShardJob) -> dict[str, Any]:
    """Read, encode and store the runs of one shard, one at a time.

    Returns
    -------
    dict
        The ledger's line (`action: shard`). A run that fails is in its `failures` and not in the shard;
        if all fail there is no file and `status` is `impossible`.

    Raises
    ------
    OutputError
        The shard cannot be written.
    """
    mask = read_set_mask(job.out / MASK)
    built = _Built()
    encoded = _encoded_runs(job, mask, built)
    first = next(encoded, None)
    written = None
    if first is not None:
        written = write_shard(job.out / job.name, _chain(first, encoded))
        for run_id, place in written.places.items():
            built.rows[run_id].update(asdict(place), shard=job.name)
    rows = [row_to_dict(RunEntry(**row)) for row in built.rows.values()]
    return {
        "action": "shard",
        "status": "impossible" if written is None else "ok",
        "name": job.name,
        "info": None if written is None else asdict(written.info),
        "rows": rows,
        "failures": [failure.to_dict() for failure in built.failures],
        "num_bytes_in": built.num_bytes_in,
    }


def read_set_mask(path: Path) -> NDArray[np.bool_]:
    """The mask of a set, (x, y, z)."""
    import nibabel

    return np.ascontiguousarray(np.asanyarray(nibabel.load(path).dataobj) != 0)


def _chain(first: EncodedRun, rest: Iterator[EncodedRun]) -> Iterator[EncodedRun]:
    yield first
    del first  # it must not outlive its turn: memory is that of one run
    yield from rest


def _encoded_runs(job: ShardJob, mask: NDArray[np.bool_], built: _Built) -> Iterator[EncodedRun]:
    for values in job.runs:
        record = RunRecord.from_dict(values, job.base)
        signature = record.signature(job.base)
        try:
            yield _encode(record, job, mask, built)
        except RunError as error:
            failure = Failure.of(record.run_id, record.source(job.base), signature, error)
            built.failures.append(failure)
        except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
            # a defect of ours, or not enough memory, must not take the other runs down
            _log.debug("%s", traceback.format_exc())
            last = traceback.extract_tb(error.__traceback__)[-1]
            known = RunError(
                "internal",
                f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})",
                "please report it with the header of this file; the other runs are not affected",
            )
            built.failures.append(Failure.of(record.run_id, record.source(job.base), signature, known))


def _encode(record: RunRecord, job: ShardJob, mask: NDArray[np.bool_], built: _Built) -> EncodedRun:
    checked = check_run(record, min_frames=job.min_frames, tr_s=job.tr_s)
    header = checked.header
    chk_grid(canonical_grid(header), job.grid)
    fd_mm = mean_fd_mm(record.confounds, header.num_frames)
    voxels = stored_positions(header)[mask]
    raw = built.scratch.array("raw", (header.num_frames, len(voxels)), header.dtype.newbyteorder("="))
    digest = stream_rows(record.bold, header, voxels, raw)
    result = encode_run(raw, job.dtype, slope=header.slope, inter=header.inter, scratch=built.scratch)
    _chk_values(result.encoded)
    built.rows[record.run_id] = _row(checked, job.base, digest, result, fd_mm)
    built.num_bytes_in += header.num_file_bytes
    meta = {
        "subject": record.subject,
        "session": record.session,
        "task": record.task,
        "run": record.run,
        "entities": dict(record.entities),
        "space": record.space,
        "tr_s": checked.tr_s,
        "source": record.source(job.base),
        "source_xxh3": digest,
    }
    return EncodedRun(run_id=record.run_id, meta=meta, encoded=result.encoded)


def _chk_values(encoded: Encoded) -> None:
    num_bad = int((~np.isfinite(encoded.mean)).sum())
    if num_bad:
        raise RunError(
            "values",
            f"{num_bad} of {len(encoded.mean)} voxels in the mask hold NaN, infinity or more than float32 can",
            "mend the run, or give a --mask without these voxels",
        )
    if not (encoded.std > 0).any():
        raise RunError("constant", "no voxel in the mask varies in time", "check the run; a mask image perhaps?")


def _row(checked: CheckedRun, base: Path, digest: str, result: EncodedWithError, fd_mm: float) -> dict[str, Any]:
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
        "tr_s": checked.tr_s,
        "num_frames": checked.header.num_frames,
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
        "mean_fd_mm": fd_mm,
    }
