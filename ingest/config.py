"""The configuration of `ingest-fmri`: its fields are the flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ingest.cleaning.config import CleaningConfig
from ingest.cluster.config import ClusterConfig
from ingest.sizes import parse_size
from shards.errors import ConfigDiffersError, UsageError


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to ingest, where to, and how.

    Raises
    ------
    UsageError
        A value is outside what its flag allows.
    """

    src: Path
    """Folder with the runs, or a table of runs (.tsv)."""
    out: Path
    """Folder for the shard set; other files in it are left alone."""
    layout: Literal["auto", "bids", "hcp", "abcd", "ukb", "flat", "table"] = "auto"
    """How the source is organised; auto says what it recognised and why."""
    space: str | None = None
    """Space to take where runs exist in several, such as MNI152NLin2009cAsym or MNI152NLin6Asym:res-2."""
    mask: Path | None = None
    """Brain mask on the grid of the runs; default: the runs' own masks combined, else computed."""
    resample: Literal["no", "linear", "cubic"] = "no"
    """Runs on another grid than the set's: no (they fail), or interpolate them onto it.
    The set's grid is then that of --mask, if given, else the one most runs have."""
    dtype: Literal["int8", "int16", "float16", "float32"] = "int8"
    """Stored values: int8 (SD/16 steps), int16 (SD/1024 steps), float16, or float32 (lossless)."""
    shard_size: str = "1GiB"
    """Size at which a new shard is begun: 512MB, 1GiB, 1.5G."""
    name: str | None = None
    """First part of the shards' file names; default: the source folder's name."""
    min_frames: int = 10
    """Runs with fewer frames fail: below 10, SD and connectivity say nothing."""
    tr: float | None = None
    """Repetition time in seconds for all runs, over sidecars and headers."""
    include: tuple[str, ...] = ()
    """Only runs whose file name or relative path matches one of these glob patterns."""
    exclude: tuple[str, ...] = ()
    """No runs whose file name or relative path matches one of these glob patterns."""
    participant_label: tuple[str, ...] = ()
    """Only these subjects, with or without sub-."""
    task: tuple[str, ...] = ()
    """Only these tasks."""
    participants: Path | None = None
    """Table of phenotypes (BIDS participants.tsv) to keep with the set; default: the one of the source."""
    part: str | None = None
    """Build one share of the shards, such as 3/16: calls that know nothing of each other, on any machines."""
    merge: bool = False
    """Make the set of what all parts have built; with the same flags otherwise."""
    on_failure: Literal["continue", "stop"] = "continue"
    """After a run fails: go on with the others, or begin no further shard."""
    overwrite: bool = False
    """Remove the shard set in --out first (only the files that ingest owns) and start anew."""
    dry_run: bool = False
    """Say what would be done; write nothing."""
    doctor: bool = False
    """Look whether software, machine, disks and queue are fit for this; write nothing."""
    json: bool = False
    """Print the summary as one JSON object on stdout, everything else on stderr."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.min_frames < 2:
            raise UsageError(f"--min-frames {self.min_frames}: allowed is 2 or more, one frame has no SD")
        if self.tr is not None and not 0 < self.tr <= 100:
            raise UsageError(f"--tr {self.tr}: allowed are seconds above 0, up to 100")
        if self.name is not None and clean_name(self.name) != self.name:
            raise UsageError(f"--name {self.name!r}: allowed are letters, digits, - and _")
        for flag, path in (("--mask", self.mask), ("--participants", self.participants)):
            if path is not None and not path.is_file():
                raise UsageError(f"{flag} {path}: no such file; check the path")
        self._check_parts()
        self.shard_bytes  # noqa: B018 -- refuses a size that cannot be read

    def _check_parts(self) -> None:
        alone = [flag for flag, given in (("--part", self.part), ("--merge", self.merge)) if given]
        others = [flag for flag, given in (("--overwrite", self.overwrite), ("--dry-run", self.dry_run)) if given]
        if alone and len(alone + others) > 1:
            raise UsageError(f"{' and '.join(alone + others)} do not go together; give one of them")

    @property
    def shard_bytes(self) -> int:
        """--shard-size in bytes."""
        return parse_size(self.shard_size, "--shard-size")

    def recorded(self, layout: str, mask_xxh3: str | None, name: str) -> dict[str, Any]:
        """The values that decide which bytes come out, as kept in the ledger and the manifest.

        Filters (--include, --task, ...) are no part of it: they choose what is added by a call. Resampling and
        cleaning are left out where they are off, so that sets of version 0.1 still compare equal.
        """
        values = {
            "layout": layout,
            "space": self.space,
            "mask": mask_xxh3,
            "dtype": self.dtype,
            "shard_bytes": self.shard_bytes,
            "name": name,
            "min_frames": self.min_frames,
            "tr": self.tr,
        }
        if self.resample != "no":
            values["resample"] = self.resample
        return values | self.cleaning.recorded()


def clean_name(text: str) -> str:
    """`text` with every character that a shard's name may not have replaced by `-`."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text).strip("-") or "set"


def compare(found: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Refuse a request that differs from what the set was made with.

    Raises
    ------
    ConfigDiffersError
        Names every field that differs, what was found and what is asked for now.
    """
    names = sorted(found.keys() | now.keys())
    differing = [
        f"--{name.replace('_', '-').replace('shard-bytes', 'shard-size')} found {found.get(name)}, now {now.get(name)}"
        for name in names
        if found.get(name) != now.get(name)
    ]
    if differing:
        raise ConfigDiffersError(
            f"{out} was made with other settings: {'; '.join(differing)}; ask for the same, choose another --out, or "
            "start anew with --overwrite"
        )
