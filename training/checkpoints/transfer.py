"""Parameters from the phase before: what may be taken, what was, and what must be refused."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from shards.errors import MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import Split, load_split
from training.checkpoints.export import SPLIT, read_description, read_weights
from training.networks.model import BoldModel

logger = logging.getLogger(__name__)

COMES_FROM = {2: (1,), 3: (1, 2)}


@dataclass(frozen=True, kw_only=True)
class Init:
    """A finished run that another phase starts from."""

    folder: Path
    description: dict[str, Any]
    split: Split

    @property
    def identity(self) -> str:
        """Hash of its weights."""
        return str(self.description["weights_xxh3"])


def open_init(folder: Path, phase: int, shard_set: ShardSet) -> Init:
    """Check that `--init` can be the start of a phase on this shard set.

    Raises
    ------
    UsageError
        No finished run there, or of a phase that does not come before.
    MismatchError
        Another mask, a split that its weights were not trained with, or subjects of another cohort.
    """
    try:
        description = read_description(folder)
    except UsageError as error:
        raise UsageError(f"--init {error}") from None
    if description["phase"] not in COMES_FROM[phase]:
        raise UsageError(
            f"--init {folder}: a phase-{description['phase']} run; phase {phase} starts from phase "
            f"{' or '.join(str(p) for p in COMES_FROM[phase])}"
        )
    own = shard_set.manifest.mask_hash
    if description["mask_hash"] != own:
        raise MismatchError(
            f"--init {folder}: trained on the mask {description['mask_hash']}, {shard_set.location} has {own}; give a "
            "shard set on the same grid and mask"
        )
    split = load_split(folder / SPLIT)
    if split.hash != description["split_hash"]:
        raise MismatchError(
            f"{folder / SPLIT}: hash {split.hash}, the weights were trained with {description['split_hash']}; its test "
            "subjects may have been seen; restore the file"
        )
    for part in ("train", "val"):
        if split.subjects(part) and not split.runs(shard_set, part):
            raise MismatchError(
                f"--init {folder}: none of its {len(split.subjects(part))} {part} subjects is in {shard_set.location}; "
                "give the shard set that it was trained on, or one that was extended"
            )
    return Init(folder=folder, description=description, split=split)


def transfer(model: BoldModel, init: Init) -> dict[str, Any]:
    """Copy every parameter and buffer that both models have.

    Returns
    -------
    dict
        `taken`, `fresh` (start as initialised) and `left` (not needed here): parts and their numbers of values.

    Raises
    ------
    MismatchError
        A part has another size: the architecture flags differ.
    """
    weights = read_weights(init.folder)
    own = model.state_dict()
    for name in sorted(own.keys() & weights.keys()):
        if own[name].shape != weights[name].shape:
            raise MismatchError(
                f"--init {init.folder}: {name} has shape {tuple(weights[name].shape)} there, {tuple(own[name].shape)} "
                "here; use the --preset and size flags of that run"
            )
    taken = own.keys() & weights.keys()
    model.load_state_dict({name: weights[name] for name in taken}, strict=False)
    report = {
        "taken": _by_part({name: own[name] for name in taken}),
        "fresh": _by_part({name: own[name] for name in own.keys() - taken}),
        "left": _by_part({name: weights[name] for name in weights.keys() - taken}),
    }
    for kind, parts in report.items():
        listing = ", ".join(f"{part} ({count:,} values)" for part, count in parts.items())
        logger.info("from %s, %s: %s", init.folder, kind, listing or "nothing")
    return report


def _by_part(tensors: dict[str, Tensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in sorted(tensors):
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + tensors[name].numel()
    return counts
