"""Stages of an evaluation: each is done once, resumable inside, and says what it was made from.

A stage owns a folder. `stage.json` is written last and names the inputs (hashes of weights, shard set and split, and
the options that results depend on) and the files; a folder whose inputs and files are those asked for is done, and
read instead of computed. Work in progress lies in `parts-<hash of the inputs>/`, a file a part, each whole or absent:
a part that is there is not computed again, whoever computed it, and which rank computes which part changes nothing.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from eval.arrays import packed, unpacked
from eval.provenance import GENERATOR, software_versions
from eval.ranks import Ranks
from shards.errors import OutputError
from shards.format import config_hash, xxh3
from shards.writer import write_atomic

log = logging.getLogger(__name__)

RECORD = "stage.json"
VERSION = 1
Arrays = Mapping[str, npt.NDArray[Any]]


def parts_of(
    runs: Sequence[int], *, most: int = 64, least: int = 8, prefix: str = "runs"
) -> dict[str, tuple[int, ...]]:
    """Name of each part to its runs: a function of the runs alone, whoever computes them.

    Parameters
    ----------
    runs : sequence of int
        Numbers of runs.
    most : int
        Runs of a part at most.
    least : int
        Parts at least, where there are as many runs: small cohorts are cut finer, so that several ranks have something
        to do.
    prefix : str
        Of the parts' names.
    """
    size = max(1, min(most, -(-len(runs) // least)))
    return {f"{prefix}-{k:05d}": tuple(runs[first : first + size]) for k, first in enumerate(range(0, len(runs), size))}


class Stage:
    """One stage and its folder.

    Parameters
    ----------
    folder : Path
        Its own; what this package did not write there is refused, not overwritten.
    inputs : mapping
        Everything that the result depends on, JSON values only. Batch size, threads and ranks do not belong here.
    ranks : Ranks
        The ranks at work; all of them call the methods of a stage in the same order.
    command : str
        As it was typed, for the record.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any], ranks: Ranks, command: str = "") -> None:
        self.folder, self.inputs, self.ranks, self.command = folder, json.loads(json.dumps(inputs)), ranks, command
        self.key = config_hash(self.inputs)

    def record(self) -> dict[str, Any] | None:
        """What `finish` wrote, if the stage is done with these inputs and its files have the bytes they had.

        With several ranks, `ranks.first(stage.record)`: two that see a network disk differently must not go apart.
        """
        found = self._read()
        if found is None or found.get("version") != VERSION or found.get("inputs") != self.inputs:
            return None
        for name, digest in found["files"].items():
            path = self.folder / name
            if not path.is_file() or xxh3(path.read_bytes()) != digest:
                return None
        return found

    def parts(self, names: Sequence[str], compute: Callable[[str], Arrays]) -> Iterator[tuple[str, Arrays]]:
        """Compute what is missing, this rank its share, then read every part in the order of `names`.

        Parameters
        ----------
        names : sequence of str
            Names that files can have, the same on every rank.
        compute : callable
            Name to arrays (no object arrays); called by one rank for each part.

        Raises
        ------
        OutputError
            The folder cannot be written.
        BoldstreamError
            What `compute` raised, on whatever rank.
        """
        place = self.folder / f"parts-{self.key}"

        def work() -> None:
            missing = [name for name in self.ranks.mine(names) if not (place / f"{name}.npz").is_file()]
            if 0 < len(missing) < len(self.ranks.mine(names)):
                log.info("%s: going on, %d parts are missing", self.folder.name, len(missing))
            for name in missing:
                write_atomic(place / f"{name}.npz", packed(compute(name)))

        self.ranks.first(lambda: self._make(place))
        self.ranks.each(work)
        for name in names:
            yield name, unpacked(place / f"{name}.npz", remove="it")

    def finish(self, files: Mapping[str, bytes | str], facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write the files, then the record, on rank 0; the parts are removed. Every rank gets the record.

        Parameters
        ----------
        files : mapping
            Name in the folder to content; needed on rank 0 only.
        facts : mapping, optional
            JSON values for the record.
        """

        def write() -> dict[str, Any]:
            self._make(self.folder)
            data = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
            for name, content in data.items():
                write_atomic(self.folder / name, content)
            record = {
                "generator": GENERATOR,
                "stage": self.folder.name,
                "version": VERSION,
                "inputs": self.inputs,
                "facts": dict(facts or {}),
                "command": self.command,
                "software": software_versions(),
                "files": {name: xxh3(content) for name, content in data.items()},
            }
            write_atomic(self.folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
            for parts in self.folder.glob("parts-*"):
                shutil.rmtree(parts)
            return record

        return self.ranks.first(write)

    def _make(self, folder: Path) -> None:
        try:
            if self._read() is None and self.folder.is_dir():
                others = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith(("parts-", ".")))
                if others and not (self.folder / RECORD).exists():
                    raise OutputError(
                        f"{self.folder}: holds {others[0]}, which eval-fmri did not write; choose another --out"
                    )
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / RECORD).read_text())
        except (OSError, ValueError):
            return None
        ours = isinstance(found, dict) and found.get("generator") == GENERATOR and isinstance(found.get("files"), dict)
        return found if ours else None
