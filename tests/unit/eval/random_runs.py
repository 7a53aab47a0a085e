"""Finished runs of a toy study, as its stages are asked for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finished_run

from eval.config import CommonConfig
from shards.splits import Split

GROUP = {"column": "group", "kind": "binary", "levels": ["control", "case"], "mean": None, "std": None}
WINDOW = "25"


def write_run(folder: Path, study: Any, *, phase: int, split: Split | None = None, **more: Any) -> Path:
    """A run on a study's shard set and split."""
    more = {"seed": phase, "window": WINDOW, "target": GROUP if phase == 3 else None} | more
    return finished_run.write_run(folder, study.folder, split or study.split, phase=phase, **more)


def asked(study: Any, run: Path, out: Path, **more: Any) -> CommonConfig:
    """The command line for a run."""
    return CommonConfig(checkpoint=run, shards=str(study.folder), out=out, **more)
