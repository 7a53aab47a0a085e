"""What a call adds to a set: the runs that are new, checked, on the set's grid, assigned to shards.

The outcome is one line of the ledger, the plan. The first plan also fixes grid and mask.
"""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ingest import mask as masks
from ingest.check import CheckedRun, check_run
from ingest.config import IngestConfig
from ingest.failures import Failure, RunError
from ingest.grid import canonical_grid, describe, most_frequent, other_grid, same_grid
from ingest.layouts import Scan
from ingest.ledger import PlannedShard, State
from ingest.plan import assign, estimated_bytes, shard_name
from ingest.record import RunRecord
from ingest.sizes import plural
from shards.format import Grid
from shards.mask import mask_to_nifti

HEADER_THREADS = 16
"""Headers are small reads: on a parallel filesystem they wait, not work."""

Say = Callable[[str], None]


def new_runs(found: Scan, state: State) -> list[RunRecord]:
    """Runs that are neither in the set, nor planned, nor on record as failed for what is in the same files."""
    known = set(state.rows) | {run_id for shard in state.pending() for run_id in shard.run_ids}
    unknown = [record for record in found.records if record.run_id not in known]
    return [record for record in unknown if not _failed_before(record, found, state)]


def check_all(records: Sequence[RunRecord], base: Path, config: IngestConfig) -> tuple[list[CheckedRun], list[Failure]]:
    """Read every header, many at a time; runs that pass and failures, both in the order given."""

    def one(record: RunRecord) -> CheckedRun | Failure:
        signature = record.signature(base)
        try:
            return check_run(record, min_frames=config.min_frames, tr_s=config.tr)
        except RunError as error:
            return Failure.of(record.run_id, record.source(base), signature, error)

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        results = list(pool.map(one, records))
    return (
        [result for result in results if isinstance(result, CheckedRun)],
        [result for result in results if isinstance(result, Failure)],
    )


def plan_line(
    config: IngestConfig, recorded: dict[str, Any], found: Scan, new: Sequence[RunRecord], state: State, say: Say
) -> dict[str, Any]:
    """The ledger's line that adds `new` to a set.

    Parameters
    ----------
    recorded
        The settings as the ledger keeps them.
    new
        In order of run_id.
    say
        Called with lines for the user.
    """
    checked, failures = check_all(new, found.base, config)
    _say_other_variants(new, state, say)

    def failed(run: CheckedRun, error: RunError) -> None:
        signature = run.record.signature(found.base)
        failures.append(Failure.of(run.record.run_id, run.record.source(found.base), signature, error))

    line: dict[str, Any] = {"action": "plan", "status": "ok", "config": recorded, "grid": None, "shards": []}
    fit: list[CheckedRun] = []
    if checked:
        grid = state.grid or set_grid(config, checked)
        there, elsewhere = on_grid(checked, grid)
        fit = checked if config.resample != "no" else there
        if fit is checked and elsewhere:
            say(f"{plural(len(elsewhere), 'run')} on another grid: resampled ({config.resample})")
        for run in elsewhere if fit is there else ():
            failed(run, other_grid(canonical_grid(run.header), grid))
        if state.mask is None:
            fit, geometry = _with_mask(config, fit, grid, failed, say)
            line |= geometry
    mask = line.get("mask", state.mask)
    if fit and mask is not None:
        line["shards"] = [asdict(shard) for shard in _shards(config, recorded["name"], found.base, fit, mask, state)]
    line["failures"] = [failure.to_dict() for failure in failures]
    return line


def set_grid(config: IngestConfig, runs: Sequence[CheckedRun]) -> Grid:
    """The grid of a new set: with --resample that of --mask if there is one, else the one most runs have."""
    if config.resample != "no" and config.mask is not None:
        return masks.grid_of_given(config.mask)
    return most_frequent(canonical_grid(run.header) for run in runs)


def on_grid(runs: Sequence[CheckedRun], grid: Grid) -> tuple[list[CheckedRun], list[CheckedRun]]:
    """The runs that lie on a grid, and the others, both in the order given."""
    there: list[CheckedRun] = []
    elsewhere: list[CheckedRun] = []
    for run in runs:
        (there if same_grid(canonical_grid(run.header), grid) else elsewhere).append(run)
    return there, elsewhere


def count_voxels(mask_base64: str) -> int:
    """Voxels of a mask as the ledger keeps it."""
    import nibabel

    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(mask_base64)))
    return int(np.count_nonzero(np.asanyarray(image.dataobj)))


def _say_other_variants(new: Sequence[RunRecord], state: State, say: Say) -> None:
    """Runs that were processed in another way than those of the set: a difference that models would learn."""
    before = Counter(run.get("variant", "") for shard in state.planned.values() for run in shard.runs)
    others = Counter(record.variant for record in new if record.variant not in before)
    if before and others:
        have, come = (", ".join(name or "unnamed" for name in sorted(names)) for names in (before, others))
        say(f"attention: the set's runs are {have}, {plural(others.total(), 'new run')} {come}; --include chooses")


def _failed_before(record: RunRecord, found: Scan, state: State) -> bool:
    failure = state.failures.get(record.run_id)
    if failure is None or failure.stage == "worker":  # what kills a worker may be the worker's own fault
        return False
    return failure.signature == record.signature(found.base)


def _with_mask(
    config: IngestConfig, runs: list[CheckedRun], grid: Grid, failed: masks.Failed, say: Say
) -> tuple[list[CheckedRun], dict[str, Any]]:
    """Choose the set's mask; the runs that are still fit afterwards, and grid and mask for the plan."""
    unreadable: set[str] = set()

    def cannot_be_read(run: CheckedRun, error: RunError) -> None:
        unreadable.add(run.record.run_id)
        failed(run, error)

    mask = _choose_mask(config, runs, grid, cannot_be_read, say)
    readable = [run for run in runs if run.record.run_id not in unreadable]
    if mask is None:
        for run in readable:
            failed(
                run,
                RunError("mask", "no mask can be computed: no voxel varies in time", "give one with --mask", "no-mask"),
            )
        return [], {}
    num_voxels = int(mask.voxels.sum())
    say(f"grid {describe(grid)}; mask of {num_voxels} voxels, {mask.source}")
    data = base64.b64encode(mask_to_nifti(mask.voxels, grid)).decode()
    return readable, {"grid": asdict(grid), "mask": data, "mask_source": mask.source}


def _choose_mask(
    config: IngestConfig, runs: list[CheckedRun], grid: Grid, failed: masks.Failed, say: Say
) -> masks.SetMask | None:
    if config.mask is not None:
        return masks.given_mask(config.mask, grid)
    there, _ = on_grid(runs, grid)
    combined, notes = masks.combined_mask(there, grid)
    for note in notes:
        say(note)
    return combined or masks.computed_mask(there, grid, failed)


def _shards(
    config: IngestConfig, name: str, base: Path, runs: list[CheckedRun], mask: str, state: State
) -> list[PlannedShard]:
    num_voxels = count_voxels(mask)
    sizes = [estimated_bytes(run.header.num_frames, num_voxels, config.dtype) for run in runs]
    shards = []
    for number, cut in enumerate(assign(sizes, config.shard_bytes), start=len(state.planned)):
        records = [run.record for run in runs[cut]]
        dicts, ids = [record.to_dict(base) for record in records], [record.run_id for record in records]
        shards.append(PlannedShard(name=shard_name(name, number), runs=dicts, run_ids=ids))
    return shards
