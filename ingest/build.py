"""Building one shard: a plain function of a job, for any scheduler or none."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ingest.cleaning.config import CleaningConfig
from ingest.failures import Failure, RunError
from ingest.ledger import row_to_dict
from ingest.memory import peak_rss_bytes
from ingest.record import RunRecord, Signature
from ingest.scratch import thread_scratch
from shards.format import MASK, Grid, RunEntry
from shards.writer import EncodedRun, write_shard

if TYPE_CHECKING:
    from ingest.encoding import BuiltRun

_log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]
"""Told of every run that is done: `run_id`, `num_bytes` of its source, `failed`."""


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
    resample: str = "no"
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    without: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """run_id to the failure (`Failure.to_dict`) of runs that are left out unread: they killed their worker."""


@dataclass
class _Built:
    """What comes together while the runs of a shard pass through."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    qc: dict[str, dict[str, Any]] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    num_bytes_in: int = 0

    def take(self, run_id: str, built: BuiltRun) -> EncodedRun:
        self.rows[run_id] = built.row
        self.qc[run_id] = built.qc
        self.num_bytes_in += built.row["source_bytes"]
        return built.encoded


def build_shard(job: ShardJob, report: Report = lambda _: None) -> dict[str, Any]:
    """Read, encode and store the runs of one shard, one at a time.

    Parameters
    ----------
    report
        Called after each run.

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
    began = time.monotonic()
    built = _Built()
    encoded = _encoded_runs(job, built, report)
    first = next(encoded, None)
    written = None
    if first is not None:
        written = write_shard(job.out / job.name, _chain(first, encoded))
        for run_id, place in written.places.items():
            built.rows[run_id].update(asdict(place), shard=job.name)
    return {
        "action": "shard",
        "status": "impossible" if written is None else "ok",
        "name": job.name,
        "info": None if written is None else asdict(written.info),
        "rows": [row_to_dict(RunEntry(**row)) for row in built.rows.values()],
        "failures": built.failures,
        "qc": built.qc,
        "signatures": {run_id: built.signatures[run_id] for run_id in built.rows},
        "resources": {
            "num_bytes_in": built.num_bytes_in,
            "seconds": round(time.monotonic() - began, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        },
    }


def read_set_mask(path: Path) -> NDArray[np.bool_]:
    """The mask of a set, (x, y, z)."""
    import nibabel

    return np.ascontiguousarray(np.asanyarray(nibabel.load(path).dataobj) != 0)


def _chain(first: EncodedRun, rest: Iterator[EncodedRun]) -> Iterator[EncodedRun]:
    yield first
    del first  # it must not outlive its turn: memory is that of one run
    yield from rest


def _encoded_runs(job: ShardJob, built: _Built, report: Report) -> Iterator[EncodedRun]:
    from ingest.encoding import RunSettings, build_run  # compiled kernels: half a second that idle calls need not pay

    settings = RunSettings(
        base=job.base,
        grid=job.grid,
        mask=read_set_mask(job.out / MASK),
        dtype=job.dtype,
        min_frames=job.min_frames,
        tr_s=job.tr_s,
        resample=job.resample,
        cleaning=job.cleaning,
    )
    scratch = thread_scratch()
    for values in job.runs:
        record = RunRecord.from_dict(values, job.base)
        signature = built.signatures[record.run_id] = record.signature(job.base)
        failure = job.without.get(record.run_id)
        try:
            if failure is None:
                yield built.take(record.run_id, build_run(record, settings, scratch))
        except (RunError, ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
            # a defect of ours, or not enough memory, must not take the other runs down
            known = error if isinstance(error, RunError) else _internal(error)
            failure = Failure.of(record.run_id, record.source(job.base), signature, known).to_dict()
        if failure is not None:
            built.failures.append(dict(failure))
        num_bytes = max(0, signature[0][1])
        report({"run_id": record.run_id, "num_bytes": num_bytes, "failed": failure is not None})


def _internal(error: Exception) -> RunError:
    _log.debug("%s", traceback.format_exc())
    last = traceback.extract_tb(error.__traceback__)[-1]
    return RunError(
        "internal",
        f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})",
        "please report it with the header of this file; the other runs are not affected",
    )
