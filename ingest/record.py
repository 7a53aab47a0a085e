"""The one record type that every layout yields: a run and the files that belong to it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.format import run_id_from_entities

Signature = tuple[tuple[str, int, int], ...]
"""(relative path, bytes, mtime in ns) of each file of a run; -1, -1 for one that cannot be read."""

_PATHS = ("bold", "mask", "confounds", "sidecar")
_LABELS = ("subject", "session", "task", "run", "space", "variant", "tr_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One BOLD run as it was found; nothing of it has been opened yet."""

    subject: str
    """Label without `sub-`."""
    session: str = ""
    task: str = ""
    run: str = ""
    entities: tuple[tuple[str, str], ...] = ()
    """Other entities that tell runs apart (acq, dir, echo, ...), part of the run id."""
    space: str = ""
    """Space label such as `MNI152NLin6Asym:res-2`; empty where names carry none. Not part of the run id."""
    variant: str = ""
    """How far the series was processed, in the layout's own word: `preproc`, `denoised`, `hp2000_clean`. Not part
    of the run id."""
    bold: Path
    mask: Path | None = None
    """Brain mask of this run."""
    confounds: Path | None = None
    """Table of confounds, or motion parameters (`ingest.confounds` knows the kinds)."""
    sidecar: Path | None = None
    """JSON beside the BOLD file, for RepetitionTime."""
    tr_s: float | None = None
    """Repetition time in seconds where the layout itself knows it."""

    @property
    def run_id(self) -> str:
        """BIDS entities joined by `_`: the run's name in the shard set."""
        own = {"subject": self.subject, "session": self.session, "task": self.task, "run": self.run}
        return run_id_from_entities(own | dict(self.entities))

    @property
    def confounds_json(self) -> Path | None:
        """Where the JSON of a confounds table would lie: fMRIPrep says in it what its components are."""
        table = self.confounds
        return table.with_suffix(".json") if table is not None and table.suffix == ".tsv" else None

    def source(self, base: Path) -> str:
        """Path of the BOLD file relative to `base`, with forward slashes."""
        return relative(self.bold, base)

    def signature(self, base: Path) -> Signature:
        """State of the run's files, to see later whether one was repaired."""
        files = [path for name in _PATHS if (path := getattr(self, name)) is not None]
        files += [] if self.confounds_json is None else [self.confounds_json]
        return tuple((relative(path, base), *_size_and_mtime(path)) for path in files)

    def to_dict(self, base: Path) -> dict[str, Any]:
        """Return a JSON-able copy with paths relative to `base`."""
        paths = {name: relative(path, base) for name in _PATHS if (path := getattr(self, name)) is not None}
        labels = {name: getattr(self, name) for name in _LABELS}
        return labels | paths | {"entities": dict(self.entities)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], base: Path) -> RunRecord:
        """Rebuild from `to_dict`; paths are taken from `base` again, labels unknown to older versions left empty."""
        paths = {name: base / values[name] for name in _PATHS if name in values}
        labels = {name: values[name] for name in _LABELS if name in values}
        return cls(**labels, **paths, entities=tuple(sorted(values["entities"].items())))


def relative(path: Path, base: Path) -> str:
    """Return `path` as seen from `base`, with forward slashes."""
    return Path(os.path.relpath(path, base)).as_posix()


def clean_label(text: str) -> str:
    """Return the letters and digits of `text`, as BIDS labels want them."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _size_and_mtime(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)
