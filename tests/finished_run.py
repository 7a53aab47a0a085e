"""Run folders of finished trainings, made without training: random weights, real files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.reader import ShardSet
from shards.splits import Split, save_split


def random_model(shard_set: ShardSet, *, phase: int, seed: int = 0, intensity: bool = False, **arguments: Any) -> Any:
    """A small model with no weight at zero, so that whatever it is given matters to its output."""
    import torch

    from training.networks.model import BoldModel
    from training.presets import Architecture

    size = Architecture(
        latent=8, channels=(8, 8), blocks=1, width=16, depth=1, heads=2, dropout=0.0, causal=True, intensity=intensity
    )
    torch.manual_seed(seed)
    model = BoldModel(size=size, mask_XYZ=shard_set.mask, phase=phase, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if phase == 3:
        torch.nn.init.normal_(model.head.weight)
        torch.nn.init.normal_(model.head.bias)
    return model.eval()


def write_run(
    folder: Path,
    shards: Path,
    split: Split,
    *,
    phase: int = 3,
    target: Mapping[str, Any] | None = None,
    column: str = "group",
    init: Path | None = None,
    seed: int = 0,
    window: str = "20",
    intensity: bool = False,
    pool: str = "moments",
    **config: Any,
) -> Path:
    """Write what `train.py` leaves behind, and return the folder.

    `target` (content of `target.json`) is learned from the training subjects' `column` unless given; `init` is the
    run folder to say it started from; `config` replaces values of `config.json`.
    """
    from training.checkpoints.export import CONFIG, SPLIT, TARGET, read_description, save_model
    from training.finetuning.targets import learn_target

    with ShardSet(shards) as shard_set:
        manifest = shard_set.manifest
        if phase == 3 and target is None:
            target = learn_target(column, shard_set.phenotype(column), split.train).to_json()
        levels = (target or {}).get("levels") or ()
        model = random_model(
            shard_set,
            phase=phase,
            seed=seed,
            intensity=intensity,
            pool=pool,
            num_outputs=len(levels) if len(levels) > 2 else 1,
        )
    hashes = {
        "set_hash": manifest.set_hash,
        "mask_hash": manifest.mask_hash,
        "split_hash": split.hash,
        "init_hash": read_description(init)["weights_xxh3"] if init else None,
    }
    record = {"phase": phase, "preset": "tiny", "seed": seed, "window": window, "init": str(init) if init else None}
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(record | hashes | config))
    save_split(folder / SPLIT, split)
    if phase == 3:
        (folder / TARGET).write_text(json.dumps(target))
    save_model(folder, model, model.state_dict(), hashes | {"window": window, "target": target})
    return folder
