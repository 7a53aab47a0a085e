"""The DeepSpeed engine around a model: parameter groups, schedule, and the full weights back out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from training.config import TrainConfig
from training.deepspeed_config import BETAS, EPS
from training.model import BoldModel


def start_engine(model: BoldModel, config: TrainConfig, deepspeed_values: dict[str, Any], num_steps: int) -> Any:
    """Wrap a model for training.

    Parameters
    ----------
    model
        With its starting weights; rank 0's are sent to all.
    config
        Resolved.
    deepspeed_values
        Filled DeepSpeed configuration; without an `optimizer` section torch's AdamW is used, without a
        `scheduler` section warm-up and cosine.
    num_steps
        Optimizer steps of the whole run.
    """
    import deepspeed

    groups = parameter_groups(model, config)
    optimizer = None
    if "optimizer" not in deepspeed_values:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, eps=EPS)
    schedule = None if "scheduler" in deepspeed_values else _schedule(num_steps, config.warmup)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=groups if optimizer is None else None,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_values,
    )
    return engine


def parameter_groups(model: BoldModel, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay; phase 3 freezes what has a scale of 0.

    Weight decay is for matrices and kernels, not for biases, norms and single vectors.
    """
    scales = {"encoder": config.encoder_lr_scale, "sequence": config.sequence_lr_scale} if config.phase == 3 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = scales.get(name.split(".")[0], 1.0)
        parameter.requires_grad_(scale > 0)
        if scale > 0:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((float(config.lr or 0) * scale, decay), []).append(parameter)
    return [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()]


def rate(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine that ends at 0."""
    rising = max(1, round(warmup * num_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, num_steps - rising))))


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """The full state in float32 on CPU, whatever the ZeRO stage and precision; every rank must call it."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    module = engine.module
    weights = {}
    for name, parameter in module.named_parameters():
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if full is None:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                full = parameter.detach().clone()
        weights[name] = full.detach().float().cpu()
    persistent = module.state_dict().keys()
    weights |= {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in persistent}
    return weights


def _schedule(num_steps: int, warmup: float) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    return lambda optimizer: LambdaLR(optimizer, lambda step: rate(step, num_steps, warmup))
