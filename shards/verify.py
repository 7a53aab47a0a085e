"""Whether a shard set is what it says: every hash, size, member, row and checksum of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shards.chunks import codec_summary
from shards.errors import CorruptShardError, FormatVersionError, StorageError, UsageError
from shards.format import MANIFEST, MASK, PARTICIPANTS, RUNS, Manifest, RunEntry, ShardInfo, xxh3
from shards.mask import read_mask
from shards.runs_table import runs_from_tsv
from shards.shard_check import Problems, ShardCheck
from shards.storage import Storage, open_storage
from shards.strict import load_json, shown
from shards.tables import check_runs, participants_from_tsv

_KEYS = {"format", "version", "set_hash", "manifest_hash", *Manifest.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is not as it should be."""

    file: str
    """Name within the set."""
    run_id: str | None
    message: str
    """One line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a verification looked at, and what it found."""

    num_files: int
    num_bytes: int
    findings: tuple[Finding, ...]
    """In order of file; at most 20 of a file, and one that says how many more there are."""


def ignore(num_bytes: int) -> None:
    """Take no notice of progress."""


def verify_set(
    location: str | Path,
    *,
    threads: int = os.cpu_count() or 1,
    decode: bool = False,
    progress: Callable[[int], None] = ignore,
) -> Verification:
    """Check everything that a shard set promises, in one sequential pass over each shard.

    That is: the manifest's own hashes, each table's and the mask's hash and content, each shard's size and hash, its
    tar structure, each run's JSON and place against `runs.tsv`, its statistics, its chunk index and the checksum of
    every chunk. Texts of the manifest that version 1 has no hash of (`mask_source`, `cleaning`, `software`) can only
    be vouched for where the manifest has a `manifest_hash`.

    Parameters
    ----------
    location
        Folder or URL of the set.
    threads
        How many shards are read at once; each takes a few MB, with `decode` one chunk more.
    decode
        Also decompress every chunk: limits of the values, zeros behind the last frame and in constant voxels.
    progress
        Called with a number of bytes whenever so many more were read, from any of the threads.

    Raises
    ------
    UsageError
        There is no shard set at `location`.
    FormatVersionError
        It is of an unknown version.
    StorageError
        The manifest cannot be read.
    """
    storage = open_storage(location)
    try:
        return _verify(storage, threads, decode, progress)
    finally:
        storage.close()


def _verify(storage: Storage, threads: int, decode: bool, progress: Callable[[int], None]) -> Verification:
    problems = Problems(MANIFEST)
    text, manifest = _manifest(storage, problems)
    if manifest is None:
        return Verification(num_files=1, num_bytes=len(text), findings=_findings([problems]))
    every = [problems]
    num_bytes = len(text)
    entries: tuple[RunEntry, ...] | None = None
    for name in manifest.tables:
        problems = Problems(name)
        every.append(problems)
        data = _table(storage, manifest, problems)
        if data is None:
            continue
        num_bytes += len(data)
        progress(len(data))
        entries = _content(name, data, manifest, problems) or entries
    storage.expect({shard.name: shard.num_bytes for shard in manifest.shards})
    checks = _shard_checks(storage, manifest, entries, decode, progress)
    _run(checks, threads)
    every += [check.problems for check in checks]
    num_bytes += sum(check.num_bytes for check in checks)
    return Verification(num_files=len(every), num_bytes=num_bytes, findings=_findings(every))


def _manifest(storage: Storage, problems: Problems) -> tuple[bytes, Manifest | None]:
    try:
        text = storage.read_file(MANIFEST)
    except FileNotFoundError:
        raise UsageError(
            f"{storage.location}: no {MANIFEST} there, so no finished shard set; give the folder that ingest-fmri "
            "wrote (--out)"
        ) from None
    except CorruptShardError as error:
        problems.add(str(error))
        return b"", None
    try:
        manifest = Manifest.from_json(text, MANIFEST)
    except FormatVersionError:
        raise
    except CorruptShardError as error:
        problems.add(str(error))
        return text, None
    unknown = sorted(load_json(text, len(text)).keys() - _KEYS)
    if unknown:
        problems.add(f"unknown keys {shown(unknown)}: damaged, or of a newer boldstream")
    if manifest.codec != codec_summary():
        problems.add(f"codec is {shown(manifest.codec)}, version 1 has {codec_summary()}")
    return text, manifest


def _table(storage: Storage, manifest: Manifest, problems: Problems) -> bytes | None:
    try:
        data = storage.read_file(problems.file)
    except FileNotFoundError:
        problems.add("no such file, the manifest lists it; restore it")
        return None
    except (StorageError, CorruptShardError) as error:
        problems.add(str(error))
        return None
    if xxh3(data) != manifest.tables[problems.file]:
        problems.add(f"its hash is {xxh3(data)}, the manifest says {manifest.tables[problems.file]}; restore the file")
    return data


def _content(name: str, data: bytes, manifest: Manifest, problems: Problems) -> tuple[RunEntry, ...] | None:
    """Check the content of a table; returns the runs if it is `runs.tsv` and can be read."""
    entries = None
    try:
        if name == RUNS:
            entries = runs_from_tsv(data, name)
            check_runs(entries, manifest, name)
        elif name == MASK:
            read_mask(data, manifest.grid, manifest.num_voxels, manifest.mask_hash, name)
        elif name == PARTICIPANTS:
            participants_from_tsv(data, name)
    except CorruptShardError as error:
        problems.add(str(error))
    return entries


def _shard_checks(
    storage: Storage,
    manifest: Manifest,
    entries: tuple[RunEntry, ...] | None,
    decode: bool,
    progress: Callable[[int], None],
) -> list[ShardCheck]:
    runs: dict[str, dict[str, RunEntry]] = {shard.name: {} for shard in manifest.shards}
    for entry in entries or ():
        runs.get(entry.shard, {})[entry.run_id] = entry

    def check(shard: ShardInfo) -> ShardCheck:
        expected = None if entries is None else runs[shard.name]
        return ShardCheck(storage, manifest, shard, expected, decode=decode, progress=progress)

    return [check(shard) for shard in manifest.shards]


def _run(checks: list[ShardCheck], threads: int) -> None:
    """Run the checks side by side; an interruption or a bug in one ends the others at their next piece."""
    stop = threading.Event()
    if threads < 2 or len(checks) < 2:
        for check in checks:
            check.run(stop)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        futures = [pool.submit(check.run, stop) for check in checks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _findings(every: list[Problems]) -> tuple[Finding, ...]:
    return tuple(
        Finding(file=problems.file, run_id=run_id, message=message)
        for problems in every
        for run_id, message in problems.listed()
    )
