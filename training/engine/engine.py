"""The DeepSpeed engine around a model, and the full weights back out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.config import ResolvedConfig
from training.engine.deepspeed_config import BETAS, EPS
from training.engine.parameter_groups import check_scheduler, parameter_groups, schedule
from training.networks.model import BoldModel, recompute_in_backward


def start_engine(model: BoldModel, config: ResolvedConfig, deepspeed_values: dict[str, Any], num_steps: int) -> Any:
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

    Raises
    ------
    UsageError
        A `scheduler` section that would overwrite the learning rates of single layers.
    """
    import deepspeed

    if config.recompute:
        recompute_in_backward(model)
    groups = parameter_groups(model, config)
    check_scheduler(groups, deepspeed_values.get("scheduler"))
    optimizer = None
    if "optimizer" not in deepspeed_values:
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, eps=EPS)
    scheduler = None if "scheduler" in deepspeed_values else schedule(num_steps, config)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=groups if optimizer is None else None,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=deepspeed_values,
    )
    if config.compile:
        engine.compile()
    return engine


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
