"""The bytes of a checkpoint's files: recorded when it is written, compared before anything of it is read.

Files are shared out over the ranks; each forces its share to disk and hashes it. Names are relative to
the checkpoint's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from shards.errors import CorruptShardError
from training.engine.collective import first_rank_does, gather
from training.engine.environment import Place

FILES = "files.json"
BLOCK = 1 << 22
Record = dict[str, Any]


def files_below(folder: Path) -> list[str]:
    """Names of all files of a folder but `files.json`, sorted."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != FILES)


def seal(folder: Path, names: Sequence[str], place: Place) -> dict[str, Record]:
    """Force files to disk; size and xxh3 of each. Every rank must call it with the same names."""
    own = {name: _record(folder / name, sync=True) for name in names[place.rank :: place.world_size]}
    return {name: record for part in gather(own, place) for name, record in part.items()}


def seal_text(records: dict[str, Record]) -> str:
    """Text of `files.json`."""
    return json.dumps(records, indent=1) + "\n"


def read_seal(folder: Path) -> dict[str, Record]:
    """What `files.json` of a checkpoint says of its files.

    Raises
    ------
    CorruptShardError
        Not there, or not readable as that.
    """
    try:
        values = json.loads((folder / FILES).read_text())
        return {name: {key: record[key] for key in ("num_bytes", "xxh3")} for name, record in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptShardError(f"{folder / FILES}: not readable ({type(error).__name__}: {error})") from None


def check_seal(folder: Path, place: Place) -> None:
    """Compare a checkpoint with its `files.json`; every rank must call it.

    Raises
    ------
    CorruptShardError
        On every rank: a file is missing, was added, or has other bytes.
    """
    records = first_rank_does(lambda: read_seal(folder), place)
    own = sorted(records)[place.rank :: place.world_size]
    problems = [problem for name in own for problem in _problems(folder / name, records[name])]
    found = [problem for part in gather(problems, place) for problem in part]
    found += [f"{folder / name}: does not belong there" for name in files_below(folder) if name not in records]
    if found:
        raise CorruptShardError(found[0])


def _problems(path: Path, record: Record) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing"]
    if path.stat().st_size != record["num_bytes"]:
        return [f"{path}: {path.stat().st_size} bytes, {record['num_bytes']} were written"]
    if _record(path)["xxh3"] != record["xxh3"]:
        return [f"{path}: its bytes are not those that were written"]
    return []


def _record(path: Path, *, sync: bool = False) -> Record:
    digest, num_bytes = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            num_bytes += len(block)
        if sync:
            os.fsync(file.fileno())
    return {"num_bytes": num_bytes, "xxh3": digest.hexdigest()}
