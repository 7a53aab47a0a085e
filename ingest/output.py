"""The output folder: what ingest owns there, and the tables and the manifest that it writes last."""

from __future__ import annotations

import base64
import importlib.metadata
import logging
import os
import platform
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ingest.cleaning.config import CleaningConfig
from ingest.failures import FAILURES, failures_to_tsv
from ingest.ledger import LEDGER, State, is_ledger, replay
from ingest.parts import PLAN, files_of_parts, in_parts
from ingest.report.file import REPORT
from shards.errors import OutputError, ShardError, UsageError
from shards.format import (
    MANIFEST,
    MASK,
    PARTICIPANTS,
    RUNS,
    Manifest,
    mask_identity,
    xxh3,
)
from shards.publish import describe
from shards.runs_table import runs_to_tsv
from shards.writer import TEMPORARY, write_atomic

_log = logging.getLogger(__name__)

TABLES = (MANIFEST, MASK, RUNS, PARTICIPANTS, FAILURES, LEDGER, REPORT)
_SOFTWARE = ("boldstream", "numpy", "nibabel", "nilearn", "numba", "numcodecs", "zlib-ng", "zarr")
_TEMPORARY = re.compile(re.escape(TEMPORARY) + r"(\d+)-.+")


def prepare(out: Path, *, overwrite: bool) -> list[str]:
    """Make the folder ready: create it, refuse foreign files of our names, remove an old set if asked to.

    Returns
    -------
    list of str
        Notes, one line each.

    Raises
    ------
    OutputError
        The folder cannot be made or written, or holds a file of one of our names that is not ours.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be made ({error.strerror}); choose another folder") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"--out {out}: not writable; change its permissions or choose another folder")
    notes = []
    if is_ours(out):
        if overwrite:
            notes.append(f"--overwrite: removed {_remove_set(out)} files of the old set in {out}")
        elif (out / MANIFEST).exists() and not (out / LEDGER).exists():
            raise OutputError(
                f"{out}: a shard set without its {LEDGER}, so it cannot be continued; restore the ledger, choose "
                "another --out, or start anew with --overwrite"
            )
    else:
        chk_foreign(out, TABLES)
    others = sorted(path.name for path in out.iterdir() if path.suffix == ".py")
    if others:
        notes.append(f"{out}/ also holds Python files ({others[0]}, ...): they are not ours and stay untouched")
    return notes


def remove_stale(out: Path) -> list[str]:
    """Remove temporary files whose writer is dead; to be called by the holder of the ledger.

    Returns
    -------
    list of str
        Notes, one line each.
    """
    removed = []
    for path in sorted(out.glob(f"{TEMPORARY}*")):
        match = _TEMPORARY.fullmatch(path.name)
        if match and path.is_file() and not _alive(int(match[1])):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return [f"removed {len(removed)} unfinished files of an interrupted call ({removed[0]})"] if removed else []


def is_ours(out: Path) -> bool:
    """Whether the folder holds a shard set, finished or not."""
    if is_ledger(out / LEDGER) or in_parts(out):
        return True
    try:
        Manifest.from_json((out / MANIFEST).read_bytes(), str(out / MANIFEST))
    except (OSError, ShardError):
        return False
    return True


def chk_foreign(out: Path, names: tuple[str, ...] | list[str]) -> None:
    """Refuse to overwrite files that ingest did not write; raises `OutputError`."""
    present = [name for name in names if (out / name).exists()]
    if present:
        raise OutputError(
            f"--out {out}: {', '.join(present[:3])} there was not written by ingest-fmri and is not overwritten; "
            "choose another folder or move it away"
        )


def finish(out: Path, state: State, participants: bytes | None) -> list[str]:
    """Bring tables and manifest up to the ledger; a file that already says so is not touched.

    Parameters
    ----------
    participants
        Content of participants.tsv as given, or None to keep the one of the set.

    Returns
    -------
    list of str
        Names of the files written, in order; the manifest is the last. A set without a single run
        gets failures.tsv and no manifest.
    """
    written = []
    failures = failures_to_tsv(state.failures.values()) if state.failures else None
    written += _put(out / FAILURES, None if failures is None else failures.encode())
    if not state.rows or state.grid is None:
        return written
    contents = {MASK: mask_bytes(state), RUNS: runs_to_tsv(state.rows.values()).encode()}
    kept = out / PARTICIPANTS
    if participants is not None or kept.exists():
        contents[PARTICIPANTS] = participants if participants is not None else kept.read_bytes()
    manifest = _manifest(state, {name: xxh3(data) for name, data in contents.items()}).to_json()
    for name, data in contents.items():
        written += _put(out / name, data)
    return written + _put(out / MANIFEST, manifest.encode())


def mask_bytes(state: State) -> bytes:
    """The bytes of mask.nii.gz as the ledger has them."""
    return base64.b64decode(state.mask or "")


def read_participants(src: Path, given: Path | None) -> tuple[bytes | None, Path | None]:
    """The participants table: --participants, else that of the source, or of the dataset that it derives from.

    Raises
    ------
    UsageError
        The table has no participant_id column.
    """
    folders = [src, *([src.parent.parent] if src.parent.name == "derivatives" else [])]
    candidates = [given] if given is not None else [folder / PARTICIPANTS for folder in folders]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        return None, next((candidate for candidate in candidates if candidate.is_symlink()), None)
    content = path.read_bytes()
    try:
        lines = [line.split("\t") for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error}); save it as tab-separated UTF-8") from None
    columns = lines[0] if lines else []
    if "participant_id" not in columns:
        raise UsageError(
            f"{path}: no participant_id column (columns: {', '.join(columns[:6])}); give a BIDS participants.tsv"
        )
    _chk_rows(path, lines)
    return content, path


def _chk_rows(path: Path, lines: list[list[str]]) -> None:
    """As many cells in every line as in the first, and each column and subject once."""
    columns, seen = lines[0], set()
    if len(set(columns)) < len(columns):
        raise UsageError(f"{path}: a column is there twice; correct the table")
    for number, line in enumerate(lines[1:], start=2):
        if line == [""]:
            continue
        if len(line) != len(columns):
            raise UsageError(f"{path}, line {number}: {len(line)} cells, the header has {len(columns)}; correct it")
        who = line[columns.index("participant_id")]
        if who in seen:
            raise UsageError(f"{path}, line {number}: {who} is there twice; keep one row a subject")
        seen.add(who)


def subjects_without_row(subjects: set[str], participants: bytes) -> list[str]:
    """Subjects of the set that the participants table does not have, sorted."""
    lines = [line.rstrip("\r").split("\t") for line in participants.decode("utf-8-sig").split("\n") if line.strip()]
    column = lines[0].index("participant_id")
    there = {line[column].removeprefix("sub-") for line in lines[1:] if len(line) > column}
    return sorted(subjects - there)


def _manifest(state: State, tables: dict[str, str]) -> Manifest:
    import gzip

    import nibabel

    grid = state.grid
    assert grid is not None  # `finish` has looked
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(mask_bytes(state)))
    mask = np.asanyarray(image.dataobj) != 0
    config = state.config or {}
    return describe(
        state.rows.values(),
        name=config["name"],
        dtype=config["dtype"],
        grid=grid,
        num_voxels=int(mask.sum()),
        mask_hash=mask_identity(mask, grid),
        mask_source=state.mask_source,
        cleaning=cleaning_of(config),
        config=config,
        shards=state.infos(),
        tables=tables,
        software=_software(),
    )


def cleaning_of(config: dict[str, Any]) -> dict[str, Any]:
    """The cleaning flags among a set's settings."""
    return {field.name: config[field.name] for field in fields(CleaningConfig) if field.name in config}


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a distribution"
    return versions


def _put(path: Path, content: bytes | None) -> list[str]:
    """Write, replace or remove one file if that changes anything."""
    there = path.read_bytes() if path.exists() else None
    if there == content:
        return []
    if content is None:
        path.unlink()
    else:
        write_atomic(path, content)
    return [path.name]


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that is dead but not yet collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def _remove_set(out: Path) -> int:
    """Remove the files that a ledger or a manifest lists, and the tables; returns how many."""
    names = set(TABLES) | {path.name for path in files_of_parts(out)}
    try:
        names |= set(replay(out / PLAN, replay(out / LEDGER)[0])[0].planned)
    except OutputError:
        _log.warning("the old ledger is damaged: shards that only it lists stay in %s", out)
    try:
        manifest = Manifest.from_json((out / MANIFEST).read_bytes(), str(out / MANIFEST))
        names |= {shard.name for shard in manifest.shards}
    except (OSError, ShardError):
        pass  # not finished, or damaged: the ledger is what we have
    last = (LEDGER, PLAN)  # as long as one of them is there, the folder is ours
    present = [out / name for name in sorted(names, key=lambda name: (name in last, name)) if (out / name).exists()]
    for path in present:
        path.unlink()
    return len(present)
