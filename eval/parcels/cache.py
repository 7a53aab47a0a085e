"""What was computed from every run, kept: a folder beside the shards, a file a shard, an array a run.

    <shard set>/<kind>-<hash of all that it depends on>/
        about.json                          what is kept
        <shard>-<start of its hash>.npz     an array a run, named by its run id

Each file is whole or absent and named for the bytes of its shard, so that a set that grows keeps what it has, a shard
that was made anew is computed anew, and a call that was stopped goes on at the next shard. A set that cannot be
written to, or that lies behind a URL, is kept for in the results' folder instead.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.arrays import packed
from eval.parcels.blocks import compute
from eval.provenance import GENERATOR
from eval.ranks import Ranks
from shards.errors import CorruptShardError, OutputError
from shards.format import ShardInfo, config_hash
from shards.writer import write_atomic

if TYPE_CHECKING:
    from shards.reader import ShardSet

log = logging.getLogger(__name__)

ABOUT = "about.json"
VERSION = 1
OPEN_FILES = 8
TELL_EVERY_S = 30.0


class RunCache:
    """An array for each run of a shard set, computed once.

    Parameters
    ----------
    shard_set : shards.reader.ShardSet
        Open shard set.
    kind : str
        First part of the folder's name.
    facts : mapping
        Everything that the arrays depend on beyond the shard's bytes, and a description; JSON values.
    lazy : callable
        Run number to a Dask array of what is to be kept.
    out : Path
        Folder that takes the cache when the shard set's folder cannot.
    """

    def __init__(
        self, shard_set: ShardSet, kind: str, facts: Mapping[str, Any], lazy: Callable[[int], Any], out: Path
    ) -> None:
        self.shard_set, self.lazy = shard_set, lazy
        self.about = {"generator": GENERATOR, "version": VERSION, "kind": kind, **facts}
        name = f"{kind}-{config_hash(self.about)[:16]}"
        self._shards = {shard.name: shard for shard in shard_set.manifest.shards}
        local = None if "://" in shard_set.location else Path(shard_set.location)
        self.places = ((local / name,) if local is not None else ()) + (out / name,)
        self._open = lru_cache(maxsize=OPEN_FILES)(_opened)

    def ensure(self, runs: Iterable[int], ranks: Ranks, threads: int) -> None:
        """Compute what is missing for some runs, whole shards at a time, each on one rank; every rank calls this.

        Raises
        ------
        OutputError
            Neither the set's folder nor the results' folder can be written.
        CorruptShardError
            A shard is damaged.
        """
        entries = self.shard_set.runs
        names = sorted({entries[run].shard for run in runs})
        missing = ranks.first(lambda: [name for name in names if self._found(name) is None])
        if not missing:
            return
        place = ranks.first(self._writable)
        log.info("%s: %d of %d shards are read, results are kept in %s", self._what, len(missing), len(names), place)
        members: dict[str, list[int]] = {name: [] for name in missing}
        for run, entry in enumerate(entries):
            if entry.shard in members:
                members[entry.shard].append(run)
        ranks.each(lambda: self._work(ranks.mine(missing), members, place, threads))

    def read(self, run: int) -> npt.NDArray[Any]:
        """The array of a run, from its file.

        Raises
        ------
        CorruptShardError
            The file is damaged; the message says what to do.
        """
        entry = self.shard_set.runs[run]
        path = self._found(entry.shard)
        if path is None:
            raise KeyError(f"{entry.run_id}: nothing is kept for {entry.shard}; `ensure` comes first")
        try:
            found: npt.NDArray[Any] = self._open(path)[entry.run_id]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CorruptShardError(f"{path}: cannot be read ({error}); remove it and run again") from error
        return found

    @property
    def _what(self) -> str:
        return str(self.about.get("description", self.about["kind"]))

    def _work(self, names: Sequence[str], members: Mapping[str, list[int]], place: Path, threads: int) -> None:
        told = time.monotonic()
        for number, name in enumerate(names):
            runs = members[name]
            values = compute([self.lazy(run) for run in runs], threads, f"{self.shard_set.location}/{name}")
            arrays = {self.shard_set.runs[run].run_id: value for run, value in zip(runs, values, strict=True)}
            write_atomic(place / _file(self._shards[name]), packed(arrays))
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                log.info("%s: %d of %d shards of this rank", self._what, number + 1, len(names))

    def _found(self, shard: str) -> Path | None:
        name = _file(self._shards[shard])
        return next((place / name for place in self.places if (place / name).is_file()), None)

    def _writable(self) -> Path:
        """The first place that takes files; it says what will be kept there."""
        for place in self.places:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            if os.access(place, os.W_OK):
                if not (place / ABOUT).is_file():
                    write_atomic(place / ABOUT, json.dumps(self.about, indent=1) + "\n")
                return place
        raise OutputError(f"{self.places[-1]}: cannot be written; choose another --out")


def _file(shard: ShardInfo) -> str:
    return f"{shard.name.removesuffix('.tar')}-{shard.xxh3[:16]}.npz"


def _opened(path: Path) -> Any:
    return np.load(path, allow_pickle=False)
