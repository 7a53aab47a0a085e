"""Whose decoder reconstructs: the run that the checkpoint started from, or another one that is named."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.context import Context, window_length
from eval.lineage import ancestors
from shards.errors import MismatchError, UsageError

if TYPE_CHECKING:
    from training.networks.model import BoldModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A pre-trained run.

    Attributes
    ----------
    model : training.networks.model.BoldModel
        Of phase 1 or 2, with its decoder, in evaluation mode on this rank's device.
    folder : Path
        Of the run.
    weights_hash : str
        Of the model's weights.
    window : int or str
        Window length that it was trained with, in frames (20) or seconds ('16s').
    """

    model: BoldModel
    folder: Path
    weights_hash: str
    window: int | str


def open_source(context: Context, pretrained: Path | None) -> Source | None:
    """The run with the decoder; None, with a line in the log, where the checkpoint's start is not at hand.

    Parameters
    ----------
    context : Context
        Of the checkpoint.
    pretrained : Path or None
        The run folder; by default the one that the checkpoint started from.

    Raises
    ------
    UsageError
        The named run is not one of phase 1 or 2.
    MismatchError
        It has another mask, or was trained on subjects that are to be reconstructed.
    """
    folder = pretrained
    if folder is None:
        found = ancestors(context.config.checkpoint, context.run_config)
        if not found:
            log.info("no reconstruction: %s started from random weights", context.config.checkpoint)
            return None
        folder = found[0].folder
        if folder is None:
            log.info("no reconstruction: %s: %s; name it with --pretrained", found[0].named, found[0].reason)
            return None
    return _open(context, folder)


def _open(context: Context, folder: Path) -> Source:
    from shards.splits import load_split
    from training.checkpoints.export import SPLIT, rebuild
    from training.predict import has_mask_of

    model, description = rebuild(folder, context.ranks.device)
    if description["phase"] not in (1, 2):
        raise UsageError(
            f"--pretrained {folder}: a phase-{description['phase']} run, which has no decoder; give the phase-1 or "
            "phase-2 run that the checkpoint started from"
        )
    if not has_mask_of(model, context.shard_set):
        raise MismatchError(
            f"--pretrained {folder}: its mask has {model.volume.num_voxels} voxels and is not that of "
            f"{context.shard_set.location} ({context.shard_set.num_voxels} voxels); give a run on the same shard set"
        )
    subset = context.config.subset
    seen = sorted(set(load_split(folder / SPLIT).train) & set(context.split.subjects(subset)))
    if seen:
        raise MismatchError(
            f"--pretrained {folder}: {len(seen)} of the {subset} subjects were in its training, first {seen[0]}; give "
            "a run that was trained on the same split"
        )
    return Source(
        model=model,
        folder=folder,
        weights_hash=str(description["weights_xxh3"]),
        window=window_length(description["window"]),
    )
