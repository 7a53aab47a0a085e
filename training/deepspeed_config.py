"""DeepSpeed's JSON: read, checked, its "auto" values filled from the flags.

DeepSpeed ignores top-level keys that it does not know and some combinations train wrongly; both are
refused here, before anything starts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from training.config import TrainConfig

ALLOWED = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "bf16",
        "checkpoint",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "data_types",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "gradient_predivide_factor",
        "log_level",
        "memory_breakdown",
        "optimizer",
        "prescale_gradients",
        "scheduler",
        "steps_per_print",
        "tensorboard",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "wandb",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
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
    unknown = sorted(set(values) - ALLOWED)
    if unknown:
        raise UsageError(
            f"--deepspeed_config {path}: unknown key {unknown[0]!r}; allowed are {', '.join(sorted(ALLOWED))}"
        )
    _check_sections(values, path)
    _check_precision(values, path)
    return values


def fill(values: dict[str, Any], config: TrainConfig, world_size: int) -> dict[str, Any]:
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
        "tensorboard.output_path": str(config.out),
        "tensorboard.job_name": "tensorboard",
    }
    filled = _fill(values, known, "")
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


def zero_stage(values: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed configuration."""
    return int(values.get("zero_optimization", {}).get("stage", 0))


def check_device(values: dict[str, Any], device_type: str) -> None:
    """Refuse fp16 where the device cannot do it."""
    if values.get("fp16", {}).get("enabled") and device_type == "cpu":
        raise UsageError("--deepspeed_config: fp16 is not supported on CPU; use a bf16 or fp32 configuration")


def _check_sections(values: dict[str, Any], path: Path) -> None:
    for name in ("bf16", "fp16", "zero_optimization", "optimizer", "scheduler"):
        if name in values and not isinstance(values[name], dict):
            raise UsageError(f"--deepspeed_config {path}: {name} is {values[name]!r}, must be a JSON object")
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UsageError(f"--deepspeed_config {path}: ZeRO stage {stage!r}, allowed are 0, 1, 2, 3")


def _at(values: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _check_precision(values: dict[str, Any], path: Path) -> None:
    half = [name for name in ("bf16", "fp16") if values.get(name, {}).get("enabled")]
    if half and zero_stage(values) == 0:
        raise UsageError(
            f"--deepspeed_config {path}: {half[0]} with ZeRO stage 0 takes a wrong first Adam step in DeepSpeed 0.19; "
            'set "zero_optimization": {"stage": 1}'
        )


def _fill(value: Any, known: dict[str, Any], path: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, known, f"{path}.{key}" if path else key) for key, item in value.items()}
    if value != "auto":
        return value
    if path not in known:
        raise UsageError(f'--deepspeed_config: "auto" at {path} has no flag; allowed at {", ".join(sorted(known))}')
    return known[path]
