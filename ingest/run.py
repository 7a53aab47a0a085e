"""One call of `ingest-fmri` from top to bottom: scan, plan, build, publish."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from contextlib import closing
from pathlib import Path
from typing import Any

from ingest.additions import Say, new_runs, plan_line
from ingest.build import ShardJob
from ingest.cluster.reach import chk_reachable
from ingest.cluster.schedule import build_all
from ingest.config import IngestConfig, clean_name, compare
from ingest.failures import Failure
from ingest.forecast import forecast
from ingest.layouts import Scan, Selection, scan
from ingest.ledger import LEDGER, Ledger, PlannedShard, State, replay
from ingest.output import (
    chk_foreign,
    finish,
    is_ours,
    mask_bytes,
    prepare,
    read_participants,
    remove_stale,
    subjects_without_row,
)
from ingest.parts import Part, files_of_parts, follow_plan, in_parts, merge_parts, open_ledger
from ingest.progress import Progress, show_progress
from ingest.report.file import bring_report_up_to_date
from ingest.sizes import format_size, plural
from ingest.summary import Summary
from shards.errors import OutputError
from shards.format import MASK, xxh3
from shards.writer import write_atomic


def ingest(config: IngestConfig, say: Say, command: str = "") -> Summary:
    """Bring a shard set up to its source.

    Parameters
    ----------
    say
        Called with lines for the user: what was recognised, chosen and left out.
    command
        This call as it was typed, for the report.

    Raises
    ------
    BoldstreamError
        Nothing more can be done; the state on disk is consistent, the next call goes on.
    """
    started = time.monotonic()
    _chk_parts(config)
    if not config.dry_run:
        chk_reachable(config.cluster)
    before = _state_there(config)
    found = _scan(config, before)
    for note in found.notes:
        say(note)
    part = None if config.part is None else Part.parse(config.part)
    if part is not None:
        summary = _build_part(config, part, found, say)
    elif config.dry_run:
        _settings(config, found, before)
        summary = forecast(config, found, new_runs(found, before), before, say)
    else:
        participants, path = read_participants(found.base, config.participants)
        for note in prepare(config.out, overwrite=config.overwrite):
            say(note)
        with closing(Ledger(config.out / LEDGER)) as ledger:
            for note in remove_stale(config.out):
                say(note)
            summary = _bring_up_to_date(config, found, ledger, participants, say)
            if summary.num_added:
                _say_notes(ledger.state, participants, path, say)
            summary.written += bring_report_up_to_date(config.out, ledger.state, summary, command)
    summary.seconds = time.monotonic() - started
    return summary


def _state_there(config: IngestConfig) -> State:
    """What the output folder holds already; nothing if it is to be overwritten."""
    if config.overwrite or not is_ours(config.out):
        return State()
    return replay(config.out / LEDGER)[0]


def _scan(config: IngestConfig, before: State) -> Scan:
    """The runs wanted, in the layout asked for or in that of the set that is there."""
    selection = Selection(
        include=config.include,
        exclude=config.exclude,
        subjects=config.participant_label,
        tasks=config.task,
        space=config.space,
    )
    if config.layout == "auto" and before.config is not None:
        return scan(config.src, config.out, before.config["layout"], selection, f"that of the set in {config.out}")
    return scan(config.src, config.out, config.layout, selection)


def _bring_up_to_date(
    config: IngestConfig, found: Scan, ledger: Ledger, participants: bytes | None, say: Say
) -> Summary:
    state = ledger.state
    recorded = _settings(config, found, state)
    _forget_missing_shards(config.out, state, say)
    _say_changed_sources(found, state, say)
    summary = Summary(num_found=len(found.records))
    summary.num_not_needed = sum(record.run_id in state.rows for record in found.records)
    if in_parts(config.out):
        _merge(config, recorded, ledger, summary, say)
    new = [] if config.merge else new_runs(found, state)
    if new:
        line = plan_line(config, recorded, found, new, state, say)
        chk_foreign(config.out, [shard["name"] for shard in line["shards"]])
        ledger.append(line)
        summary.failures += map(Failure.from_dict, line["failures"])
    if state.pending() and not config.merge and not _stopped(config, summary):
        _build(config, found, ledger, state.pending(), summary, say)
    summary.written = finish(config.out, state, participants)
    for path in files_of_parts(config.out):
        path.unlink()
    summary.num_failed = len(state.failures)
    summary.num_runs, summary.num_shards = len(state.rows), len(state.infos())
    return summary


def _settings(config: IngestConfig, found: Scan, state: State) -> dict[str, Any]:
    """The settings of this call, refused if the set was made with others.

    As long as nothing was ingested, other settings are no difference: what failed is tried again.
    """
    mask = None if config.mask is None else xxh3(config.mask.read_bytes())
    source = config.src.resolve()
    default = clean_name(source.stem if source.is_file() else source.name)
    before = state.config or {}
    now = config.recorded(found.layout, mask, config.name or before.get("name", default))
    if state.planned:
        compare(before, now, config.out)
    elif before != now:
        state.failures.clear()
    return now


def _say_changed_sources(found: Scan, state: State, say: Say) -> None:
    """Runs of the set whose files have another size or date now; the set keeps what it has."""
    changed = []
    for record in found.records:
        row, then = state.rows.get(record.run_id), state.signatures.get(record.run_id)
        if row is None:
            continue
        size = _size(record.bold)
        if size not in (0, row.source_bytes) or (size and then is not None and then != record.signature(found.base)):
            changed.append(row.source)
    if changed:
        say(
            f"{plural(len(changed), 'source')} written to since ingested ({changed[0]}): the set keeps the old "
            "content; for the new one start anew with --overwrite"
        )


def _forget_missing_shards(out: Path, state: State, say: Say, names: Set[str] | None = None) -> None:
    """A finished shard (of `names`) that is gone or cut is built again, from the runs that it had."""
    for name, info in list(state.done.items()):
        path = out / name
        if info is None or (names is not None and name not in names):
            continue
        if path.is_file() and path.stat().st_size == info.num_bytes:
            continue
        say(f"{name} is missing or not as long as recorded: building it again")
        del state.done[name]
        planned = state.planned[name]
        kept = [k for k, run_id in enumerate(planned.run_ids) if state.rows[run_id].shard == name]
        planned.run_ids, planned.runs = [planned.run_ids[k] for k in kept], [planned.runs[k] for k in kept]


def _chk_parts(config: IngestConfig) -> None:
    """Refuse to go past parts that wait to be merged, and to merge what is not there."""
    if config.part is not None or config.dry_run or config.overwrite:
        return
    if in_parts(config.out) and not config.merge:
        raise OutputError(
            f"--out {config.out}: built in parts that are not merged yet; finish them with --part, then --merge, or "
            "start anew with --overwrite"
        )
    if config.merge and not is_ours(config.out):
        raise OutputError(f"--merge: no parts in {config.out}; build them with --part 1/N ... --part N/N")


def _build_part(config: IngestConfig, part: Part, found: Scan, say: Say) -> Summary:
    """Build this part's share of what is pending, on record in the part's own ledger."""
    out = config.out
    for note in prepare(out, overwrite=False):
        say(note)
    state = replay(out / LEDGER)[0]
    recorded = _settings(config, found, state)

    def plan() -> dict[str, Any]:
        line = plan_line(config, recorded, found, new_runs(found, state), state, say)
        chk_foreign(out, [shard["name"] for shard in line["shards"]])
        return line

    follow_plan(out, part, state, recorded, plan)
    share = part.share(state.pending())
    own = {run_id for shard in share for run_id in shard.run_ids}
    summary = Summary(num_found=len(found.records))
    with closing(open_ledger(out, part, state)) as ledger:
        summary.num_not_needed = len(own & state.rows.keys())
        _forget_missing_shards(out, state, say, {shard.name for shard in share})
        pending = [shard for shard in share if shard.name not in state.done]
        if pending:
            _build(config, found, ledger, pending, summary, say)
    summary.num_failed = len(own & state.failures.keys())
    summary.num_runs, summary.num_shards = len(own & state.rows.keys()), len(share)
    return summary


def _merge(config: IngestConfig, recorded: dict[str, Any], ledger: Ledger, summary: Summary, say: Say) -> None:
    """Take what the parts built into the set."""
    lines = merge_parts(config.out, ledger, recorded)
    shards = [line for line in lines if line["action"] == "shard"]
    for line in lines:
        summary.failures += map(Failure.from_dict, line["failures"])
    for line in shards:
        _count(line, summary)
    say(f"merged {plural(len(shards), 'shard')} of {plural(len(files_of_parts(config.out)) - 1, 'part')}")


def _build(
    config: IngestConfig, found: Scan, ledger: Ledger, pending: Sequence[PlannedShard], summary: Summary, say: Say
) -> None:
    """Build pending shards and record each."""
    state = ledger.state
    mask_file = config.out / MASK
    if not mask_file.exists() or mask_file.read_bytes() != mask_bytes(state):
        write_atomic(mask_file, mask_bytes(state))
    jobs = [_job(config, found.base, shard, state) for shard in pending]
    num_runs = sum(len(job.runs) for job in jobs)
    num_bytes = sum(_size(job.base / run["bold"]) for job in jobs for run in job.runs)
    summary.workers = how = config.cluster.describe(len(jobs))
    say(f"{plural(num_runs, 'run')} ({format_size(num_bytes)}) into {plural(len(jobs), 'shard')} with {how}")
    began = time.monotonic()
    with show_progress(num_runs, num_bytes) as progress, closing(build_all(jobs, config.cluster, progress)) as lines:
        for line in lines:
            _take(line, ledger, summary, progress)
            summary.build_seconds = time.monotonic() - began
            if _stopped(config, summary):
                return


def _stopped(config: IngestConfig, summary: Summary) -> bool:
    return config.on_failure == "stop" and bool(summary.failures)


def _take(line: dict[str, Any], ledger: Ledger, summary: Summary, progress: Progress) -> None:
    """Record a finished shard."""
    ledger.append(line)
    summary.failures += map(Failure.from_dict, line["failures"])
    _count(line, summary)
    if line["status"] == "error":
        summary.num_dead_shards += 1
        progress.say(f"{line['name']} was given up: its workers died outside its runs; run the same command again")


def _count(line: dict[str, Any], summary: Summary) -> None:
    """Add up what a shard took and gave."""
    summary.num_bytes_in += line.get("resources", {}).get("num_bytes_in", 0)
    summary.num_added += len(line["rows"])
    if line["info"] is not None:
        summary.num_bytes_out += line["info"]["num_bytes"]


def _job(config: IngestConfig, base: Path, shard: PlannedShard, state: State) -> ShardJob:
    if state.grid is None:
        raise OutputError(f"{config.out / LEDGER} plans shards but no grid; restore it, or start anew with --overwrite")
    return ShardJob(
        out=config.out.absolute(),  # not resolved: other nodes may reach a shared folder by other links
        name=shard.name,
        base=base.absolute(),
        runs=shard.runs,
        grid=state.grid,
        dtype=config.dtype,
        min_frames=config.min_frames,
        tr_s=config.tr,
        resample=config.resample,
        cleaning=config.cleaning,
    )


def _say_notes(state: State, participants: bytes | None, path: Path | None, say: Say) -> None:
    if participants is None and path is not None:
        say(f"{path} is a broken link (with DataLad: not fetched yet): no participants")
    if participants is not None:
        without = subjects_without_row({row.subject for row in state.rows.values()}, participants)
        missing = f"; {len(without)} subjects have no row in it: {', '.join(without[:3])}" if without else ""
        say(f"participants from {path}{missing}{', ...' if len(without) > 3 else ''}")
    seen: dict[str, str] = {}
    twins = []
    for _, row in sorted(state.rows.items()):
        other = seen.setdefault(row.source_xxh3, row.source)
        if other != row.source:
            twins.append(f"{row.source} and {other}")
    if twins:
        say(f"same content twice: {twins[0]}{f', and {len(twins) - 1} more' if len(twins) > 1 else ''}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
