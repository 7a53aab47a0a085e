"""DeepSpeed's JSON: read, checked (`training.engine.deepspeed_rules`), its "auto" values filled from the flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from training.config import ResolvedConfig, TrainConfig
from training.engine.deepspeed_rules import check_by_deepspeed, check_rules
from training.engine.deepspeed_rules import zero_stage as zero_stage

BETAS = (0.9, 0.95)
EPS = 1e-8
DEFAULT: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 1},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
    },
    "steps_per_print": 1000000000,
}
REQUIRED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
# a number in the JSON, and the flag that says the same
SAID_TWICE = {"train_micro_batch_size_per_gpu": "batch_size", "gradient_accumulation_steps": "accumulation"}


def read_deepspeed_config(path: Path | None) -> dict[str, Any]:
    """The JSON as given, or the default: ZeRO-1, float32, torch's AdamW.

    Raises
    ------
    UsageError
        Not there, not JSON, an unknown key, or a combination that trains wrongly.
    """
    if path is None:
        return json.loads(json.dumps(DEFAULT))
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--deepspeed_config {path}: {error}; give one such as those in deepspeed_configs/") from None
    if not isinstance(values, dict):
        raise UsageError(f"--deepspeed_config {path}: not a JSON object; give one such as those in deepspeed_configs/")
    check_rules(values, f"--deepspeed_config {path}")
    return values


def fill(values: dict[str, Any], config: ResolvedConfig, world_size: int) -> dict[str, Any]:
    """Fill every "auto" from the flags; a number in the JSON must not contradict its flag.

    Parameters
    ----------
    values
        From `read_deepspeed_config`.
    config
        Resolved.
    world_size
        Number of ranks.

    Raises
    ------
    UsageError
        A contradiction, or an "auto" for which there is no flag.
    """
    batch_size, accumulation = int(config.batch_size or 0), config.accumulation
    known = {
        "train_batch_size": batch_size * accumulation * world_size,
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip,
        "optimizer.params.lr": config.lr,
        "optimizer.params.betas": list(BETAS),
        "optimizer.params.eps": EPS,
        "optimizer.params.weight_decay": config.weight_decay,
        **_monitor_values(config),
    }
    filled = _fill(values, known, "")
    for path, value in _monitor_values(config).items():
        section, key = path.split(".")
        if section in filled:
            filled[section].setdefault(key, value)
    for key in REQUIRED:
        filled.setdefault(key, known[key])
    for path in (*REQUIRED, "optimizer.params.lr", "optimizer.params.weight_decay"):
        found = _at(filled, path)
        if found is not None and found != known[path]:
            flags = {"batch_size": batch_size, "accumulation": accumulation, "clip": config.clip, "lr": config.lr}
            flags["weight_decay"] = config.weight_decay
            given = ", ".join(f"--{name} {value}" for name, value in flags.items())
            raise UsageError(
                f"--deepspeed_config: {path} is {found}, the flags give {known[path]} ({given}, {world_size} ranks); "
                'write "auto" or change the flag'
            )
    return filled


def with_its_batch(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """The flags, with batch size and accumulation from the JSON where it has numbers and the flag was left out."""
    from dataclasses import replace

    micro, accumulation = (values.get(key) for key in SAID_TWICE)
    if config.batch_size is None and isinstance(micro, int):
        config = replace(config, batch_size=micro)
    if config.accumulation == 1 and isinstance(accumulation, int):
        config = replace(config, accumulation=accumulation)
    return config


def check_device(values: dict[str, Any], device_type: str) -> None:
    """Refuse what this device, or DeepSpeed itself, does not take; needs the process group's accelerator.

    Parameters
    ----------
    values
        From `read_deepspeed_config`.
    device_type
        `cpu`, `cuda`, ...; how the message names it.

    Raises
    ------
    UsageError
        A precision that the device lacks, or a section that DeepSpeed refuses.
    """
    from deepspeed.accelerator import get_accelerator

    check_by_deepspeed(values)
    supported = {"fp16": get_accelerator().is_fp16_supported, "bf16": get_accelerator().is_bf16_supported}
    for name, is_supported in supported.items():
        if values.get(name, {}).get("enabled") and not is_supported():
            other = "bf16 or fp32" if name == "fp16" else "fp16 or fp32"
            raise UsageError(f"--deepspeed_config: {name} is not supported on this {device_type}; use {other}")


def _monitor_values(config: ResolvedConfig) -> dict[str, str]:
    """Where the monitors write, unless the JSON says otherwise: into the run folder."""
    out = config.out
    return {
        "tensorboard.output_path": str(out),
        "tensorboard.job_name": "tensorboard",
        "csv_monitor.output_path": str(out),
        "csv_monitor.job_name": "csv",
        "wandb.project": "boldstream",
        "wandb.group": out.name,
    }


def _at(values: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _fill(value: Any, known: dict[str, Any], path: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, known, f"{path}.{key}" if path else key) for key, item in value.items()}
    if value != "auto":
        return value
    if path not in known:
        raise UsageError(f'--deepspeed_config: "auto" at {path} has no flag; allowed at {", ".join(sorted(known))}')
    return known[path]
