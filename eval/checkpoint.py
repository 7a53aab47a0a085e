"""The run folder of a phase-3 model: what must hold before anything is computed with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from shards.reader import ShardSet

CONFIG = "config.json"


def read_run_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a phase-3 run folder.

    Raises
    ------
    UsageError
        No such folder, no run in it, or a run of another phase.
    """
    if not folder.is_dir():
        raise UsageError(f"--checkpoint {folder}: no such folder; give what train.py --phase 3 wrote to --out")
    try:
        config = json.loads((folder / CONFIG).read_text())
        phase = config["phase"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--checkpoint {folder}: no readable {CONFIG} of a training run ({type(error).__name__}: {error}); "
            "give what train.py --phase 3 wrote to --out"
        ) from error
    if phase != 3:
        raise UsageError(
            f"--checkpoint {folder}: a phase-{phase} run, only phase 3 predicts a target; "
            f"continue with train.py --phase 3 --init {folder} --target COLUMN"
        )
    return dict(config)


def check_shard_set(config: dict[str, Any], shard_set: ShardSet, folder: Path) -> None:
    """Refuse a shard set that the run was not trained on.

    Raises
    ------
    MismatchError
        The two set hashes differ; both are named.
    """
    trained_on, found = config.get("set_hash"), shard_set.manifest.set_hash
    if trained_on != found:
        raise MismatchError(
            f"{folder} was trained on the shard set {trained_on}, {shard_set.location} is {found}: "
            "its subjects may be others than those of the split; give the shard set of the training"
        )
