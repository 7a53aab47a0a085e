"""Run folders of phases 2 and 3 with random weights, which load as trained ones do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eval.config import CommonConfig
from shards.format import xxh3
from shards.reader import ShardSet
from shards.splits import Split, save_split
from training.checkpoints.export import save_model
from training.networks.model import BoldModel
from training.presets import Architecture

SIZE = Architecture(
    latent=6, channels=(8, 8), blocks=1, width=16, depth=1, heads=2, dropout=0.0, causal=True, intensity=False
)
GROUP = {"column": "group", "kind": "binary", "levels": ["control", "case"], "mean": None, "std": None}
WINDOW = "25"


def random_model(shard_set: ShardSet, *, seed: int = 0, **arguments: Any) -> BoldModel:
    """A model with no weight at zero."""
    torch.manual_seed(seed)
    model = BoldModel(size=arguments.pop("size", SIZE), mask_XYZ=shard_set.mask, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def write_run(
    folder: Path,
    study: Any,
    *,
    phase: int,
    init: Path | None = None,
    split: Split | None = None,
    change: Callable[[BoldModel], None] | None = None,
    **arguments: Any,
) -> Path:
    """A finished run's files; `change` is applied to the model before it is saved."""
    split = split or study.split
    folder.mkdir()
    with ShardSet(study.folder) as shard_set:
        more: dict[str, Any] = {"num_outputs": 1} if phase == 3 else {}
        model = random_model(shard_set, seed=phase, phase=phase, **more | arguments)
        if change is not None:
            change(model)
        hashes = {"set_hash": study.set_hash, "mask_hash": shard_set.manifest.mask_hash, "split_hash": split.hash}
    facts = {"step": 1, "window": WINDOW, "target": GROUP if phase == 3 else None, **hashes}
    save_model(folder, model, model.state_dict(), facts)
    config = {"phase": phase, "preset": "tiny", "window": WINDOW, "init": None, **hashes}
    if init is not None:
        config |= {"init": str(init), "init_hash": xxh3((init / "model.safetensors").read_bytes())}
    (folder / "config.json").write_text(json.dumps(config))
    save_split(folder / "split.json", split)
    if phase == 3:
        (folder / "target.json").write_text(json.dumps(GROUP))
    return folder


def asked(study: Any, run: Path, out: Path, **more: Any) -> CommonConfig:
    """The command line for a run."""
    return CommonConfig(checkpoint=run, shards=str(study.folder), out=out, **more)
