"""Weights that travel: `model.safetensors` and `model.json`, which rebuild the model and execute nothing when read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from shards.errors import CorruptShardError, FormatVersionError, MismatchError, UsageError
from shards.format import xxh3
from shards.splits import Split, load_split
from shards.writer import write_atomic
from training.networks.model import BoldModel
from training.presets import Architecture, PoolName

WEIGHTS = "model.safetensors"
MODEL = "model.json"
CONFIG = "config.json"
SPLIT = "split.json"
TARGET = "target.json"
FORMAT_NAME = "boldstream-model"
FORMAT_VERSION = 1
# buffers that the first models did not have; as a new model has them they change nothing
ADDED_LATER = frozenset({"window_scale"})


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A trained model with what is needed to use it.

    Attributes
    ----------
    model
        In evaluation mode, on the device asked for.
    config
        The run's resolved configuration, shard-set, mask and split hashes included.
    target
        Phase 3: content of `target.json`; else None.
    split
        The subjects it was trained, validated and not tested on.
    """

    model: BoldModel
    config: dict[str, Any]
    target: dict[str, Any] | None
    split: Split


def save_model(folder: Path, model: BoldModel, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write weights and their description, each atomically, the description last.

    Parameters
    ----------
    folder
        Run folder.
    model
        For its architecture.
    weights
        Full float32 state.
    facts
        Mask, shard set and split hashes, step, window, phase 3's target, and what else the run wants to say.
    """
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in weights.items()})
    description = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "phase": model.phase,
        "architecture": asdict(model.size),
        "pool": model.pool.pool if model.phase == 3 else None,
        "num_outputs": model.head.out_features if model.phase == 3 else 0,
        "weights_xxh3": xxh3(data),
        **facts,
    }
    write_atomic(folder / WEIGHTS, data)
    write_atomic(folder / MODEL, json.dumps(description, indent=1) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Content of a run folder's `model.json`.

    Raises
    ------
    UsageError
        There is no finished run in the folder.
    FormatVersionError
        It was written by an unknown version.
    """
    path = folder / MODEL
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the run folder of a finished training")
    if not path.is_file():
        raise UsageError(f"{path}: not there; {folder} holds no finished run, train it to its end first")
    description = _read_json(path)
    found = (description.get("format"), description.get("version"))
    if found != (FORMAT_NAME, FORMAT_VERSION):
        raise FormatVersionError(
            f"{path}: format {found[0]!r} version {found[1]!r}, this version reads {FORMAT_NAME!r} {FORMAT_VERSION}; "
            "update boldstream or train again"
        )
    return description


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of `model.safetensors`, checked against the hash in `model.json`."""
    from safetensors.torch import load

    path = folder / WEIGHTS
    description = read_description(folder)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; the run folder is incomplete, train again") from None
    if xxh3(data) != description.get("weights_xxh3"):
        raise CorruptShardError(f"{path}: its bytes are not those that {MODEL} describes; restore both or train again")
    return load(data)


def build_model(description: dict[str, Any], weights: dict[str, Tensor]) -> BoldModel:
    """The model that `weights` belong to; they carry the mask.

    Raises
    ------
    CorruptShardError
        The description misses something, says something impossible, or is of other weights.
    """
    try:
        if description["pool"] not in (None, *get_args(PoolName)):
            raise ValueError(f"pool {description['pool']!r}")
        model = BoldModel(
            size=Architecture.from_dict(description["architecture"]),
            mask_XYZ=weights["volume.mask"].numpy().astype(bool),
            phase=description["phase"],
            pool=description["pool"] or "moments",
            num_outputs=description["num_outputs"],
            direction="direction.read.weight" in weights,
        )
        later = {name: value for name, value in model.state_dict().items() if name in ADDED_LATER}
        model.load_state_dict(later | weights)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().replace("\n", " ")[:300]
        raise CorruptShardError(
            f"{MODEL} does not describe the weights beside it ({type(error).__name__}: {reason}); restore both, update "
            "boldstream if a later version wrote them, or train again"
        ) from None
    return model


def rebuild(folder: str | Path, device: str | torch.device = "cpu") -> tuple[BoldModel, dict[str, Any]]:
    """The model, from `model.safetensors` and `model.json` alone.

    Parameters
    ----------
    folder
        Where the two files are, and nothing else need be.
    device
        Where to put the model.

    Returns
    -------
    model
        In evaluation mode.
    description
        Content of `model.json`: phase, architecture, window, phase 3's target, and hashes of the mask, shard set
        and split that it was trained on.

    Raises
    ------
    UsageError
        No model there.
    ShardError
        Damaged, or of an unknown version.
    """
    folder = Path(folder)
    description = read_description(folder)
    return build_model(description, read_weights(folder)).eval().to(device), description


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Load the trained model of a run folder, with the run's split and configuration.

    Parameters
    ----------
    folder
        What `train.py --out` was given.
    device
        Where to put the model.

    Raises
    ------
    UsageError
        No finished run there.
    ShardError
        Damaged, or of an unknown version.
    MismatchError
        The folder's split is not the one that the model was trained with.
    """
    folder = Path(folder)
    model, description = rebuild(folder, device)
    split = load_split(folder / SPLIT)
    if split.hash != description["split_hash"]:
        raise MismatchError(
            f"{folder / SPLIT}: hash {split.hash}, the model was trained with {description['split_hash']}; "
            "restore the file"
        )
    target = _read_json(folder / TARGET) if description["phase"] == 3 else None
    return LoadedModel(model=model, config=_read_json(folder / CONFIG), target=target, split=split)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptShardError(f"{path}: {error}; restore it or train again") from None
    if not isinstance(values, dict):
        raise CorruptShardError(f"{path}: not a JSON object; restore it or train again")
    return values
