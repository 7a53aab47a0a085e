"""What DeepSpeed's JSON may say: its keys, and the combinations that train wrongly, hang or fail late.

DeepSpeed ignores top-level keys that it does not know and finds some mistakes on one rank only, or
after minutes; all of that is refused here, in one line, before anything starts.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from shards.errors import UsageError

KEYS = frozenset(
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
# sections whose keys DeepSpeed does not check itself, and theirs
SECTIONS = {
    "optimizer": {"type", "params", "legacy_fusion"},
    "scheduler": {"type", "params"},
    "torch_autocast": {"enabled", "dtype", "lower_precision_safe_modules"},
    "data_types": {"grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"},
}
CHECKED_BY_DEEPSPEED = ("bf16", "fp16", "zero_optimization", "tensorboard", "wandb", "csv_monitor", "compile")
SCHEDULERS = {"LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"}
ZERO_OPTIMIZERS = {"adam", "adamw", "adagrad", "lion", "muon"}
HALF = ("bf16", "fp16", "torch_autocast")


def zero_stage(values: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed configuration."""
    return int(values.get("zero_optimization", {}).get("stage", 0))


def check_rules(values: dict[str, Any], where: str) -> None:
    """Refuse unknown keys and combinations that are known to go wrong.

    Parameters
    ----------
    values
        The JSON object, its "auto" values not yet filled.
    where
        How messages name it.

    Raises
    ------
    UsageError
        The first thing found, and what to write instead.
    """
    _check_keys(values, KEYS, where, "")
    for name in (*SECTIONS, *CHECKED_BY_DEEPSPEED):
        if name in values and not isinstance(values[name], dict):
            raise UsageError(f"{where}: {name} is {values[name]!r}, must be a JSON object")
    for name, keys in SECTIONS.items():
        _check_keys(values.get(name, {}), keys, where, f"{name}.")
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3, "auto"):
        raise UsageError(f"{where}: ZeRO stage {stage!r}, allowed are 0, 1, 2, 3")
    if stage == "auto":
        raise UsageError(f'{where}: "auto" at zero_optimization.stage has no flag; write 0, 1, 2 or 3')
    for found in (_precision(values), _optimizer(values), _offload(values), _monitors(values)):
        if found is not None:
            raise UsageError(f"{where}: {found}")


def check_by_deepspeed(values: dict[str, Any]) -> None:
    """Let DeepSpeed read the sections that it checks itself, and tell what it refuses in one line.

    Raises
    ------
    UsageError
        Where, and what DeepSpeed says.
    """
    import deepspeed
    from pydantic import ValidationError

    batch = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    sections = {name: value for name, value in values.items() if name in CHECKED_BY_DEEPSPEED}
    try:
        deepspeed.DeepSpeedConfig(sections | batch)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        section = error.title.removeprefix("DeepSpeed").removesuffix("Config")
        raise UsageError(f"--deepspeed_config: {path} in {section}: {first['msg']}, found {first['input']!r}") from None
    except (AssertionError, ValueError) as error:
        raise UsageError(f"--deepspeed_config: {str(error).splitlines()[0]}") from None


def _check_keys(values: dict[str, Any], allowed: set[str] | frozenset[str], where: str, path: str) -> None:
    unknown = sorted(set(values) - allowed)
    if unknown:
        near = get_close_matches(unknown[0], allowed, 1)
        meant = f"; did you mean {path}{near[0]}?" if near else ""
        raise UsageError(f"{where}: unknown key {path + unknown[0]!r}{meant}; allowed are {', '.join(sorted(allowed))}")


def _on(values: dict[str, Any], name: str) -> bool:
    return bool(values.get(name, {}).get("enabled"))


def _precision(values: dict[str, Any]) -> str | None:
    half = [name for name in HALF if _on(values, name)]
    if len(half) > 1:
        return f"{' and '.join(half)} are both enabled; keep one"
    if half and half[0] != "torch_autocast" and zero_stage(values) == 0:
        return (
            f"{half[0]} with ZeRO stage 0 takes a wrong first Adam step in DeepSpeed 0.19; "
            'set "zero_optimization": {"stage": 1}'
        )
    dtype = values.get("torch_autocast", {}).get("dtype", "bfloat16")
    if _on(values, "torch_autocast") and dtype != "bfloat16":
        return (
            f"torch_autocast.dtype {dtype!r} trains differently under ZeRO; "
            'write "bfloat16", or enable fp16 in its place'
        )
    if values.get("compile", {}).get("deepcompile"):
        return "compile.deepcompile needs a CUDA compiler at run time and does not work here; use the flag --compile"
    return None


def _optimizer(values: dict[str, Any]) -> str | None:
    if "optimizer" in values:
        name = values["optimizer"].get("type")
        if not isinstance(name, str):
            return 'optimizer has no "type"; write {"type": "AdamW", "params": {...}} or leave the section out'
        tested = name.lower() in ZERO_OPTIMIZERS or values.get("zero_allow_untested_optimizer")
        if zero_stage(values) and not tested:
            return (
                f"optimizer {name} is not tested under ZeRO; use AdamW, Adam or Adagrad, "
                'or add "zero_allow_untested_optimizer": true'
            )
    if "scheduler" in values and values["scheduler"].get("type") not in SCHEDULERS:
        return (
            f"scheduler.type {values['scheduler'].get('type')!r}, allowed are {', '.join(sorted(SCHEDULERS))}; "
            "or leave the section out for the flags' warm-up and cosine"
        )
    return None


def _offload(values: dict[str, Any]) -> str | None:
    stage = zero_stage(values)
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
        section = values.get("zero_optimization", {}).get(name)
        if not isinstance(section, dict) or section.get("device", "none") == "none":
            continue
        if stage < least:
            return f"{name} does nothing below ZeRO stage {least}, found stage {stage}; raise it or leave {name} out"
        if "optimizer" not in values:
            return f"{name} needs an optimizer section such as that of deepspeed_configs/zero2_offload_bf16.json"
    return None


def _monitors(values: dict[str, Any]) -> str | None:
    for name in ("wandb", "tensorboard"):
        if _on(values, name) and find_spec(name) is None:
            return f"{name} is enabled but not installed; pip install {name}, or set its enabled to false"
    return None
