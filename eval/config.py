"""What `eval-fmri` can be asked for; the fields are the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Score a phase-3 run on subjects it has not seen, beside simple baselines, and write a report."""

    checkpoint: Path
    """Folder of the phase-3 run (what train.py --out wrote)."""
    shards: str
    """Folder or URL of the shard set that it was trained on."""
    out: Path
    """Folder for report.html, metrics.json and predictions.tsv."""
    atlas: Path | None = None
    """3-D NIfTI of integer labels for the connectivity baseline (default: geometric parcels)."""
    subset: Literal["test", "val"] = "test"
    """Subjects to score. Validation subjects chose the checkpoint: their scores flatter the model."""
    bootstrap: int = 2000
    """Resamples of subjects behind each interval."""
    permutations: int = 1000
    """Label permutations behind each p-value."""
    seed: int = 0
    """Seed of resamples, permutations and inner folds."""
    batch_size: int = 8
    """Windows per forward pass."""
    threads: int = 2
    """Threads that read shards."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("bootstrap", self.bootstrap, 100),
            ("permutations", self.permutations, 100),
            ("batch-size", self.batch_size, 1),
            ("threads", self.threads, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise UsageError(f"--{flag} {value}: at least {least} is needed")
