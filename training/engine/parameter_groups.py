"""Which parameters learn, how fast, and when: groups for the optimizer, and the schedule of the learning rate.

Phase 3 counts layers from the head back to the stem: a layer is a module that holds a matrix or a kernel, or a whole
block of a stack; norms and single vectors belong to the layer registered before them. Nothing here knows a layer by
its name, so that both families of models are served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from shards.errors import UsageError
from training.config import ResolvedConfig
from training.networks.model import BoldModel

STACKS = (nn.Sequential, nn.ModuleList)
KEEPS_RATES = "WarmupCosineLR"
"""The one scheduler of DeepSpeed's JSON that multiplies each group's own rate; the others overwrite it."""

Member = tuple[str, nn.Parameter]


def parameter_groups(model: BoldModel, config: ResolvedConfig) -> list[dict[str, Any]]:
    """Groups by learning rate and weight decay, the head's first.

    Parameters
    ----------
    model
        Of any phase. Phase 3: parts whose rate is 0 from beginning to end are frozen here: no gradient, no
        dropout, not in any group.
    config
        Resolved.

    Returns
    -------
    list of dict
        `params`, `lr` (the peak), `weight_decay` (0 for biases, norms and single vectors), and `thaws`: whether
        the group waits for `--thaw_at`.
    """
    members = _members(model, config)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter, depth in members:
        part = name.split(".")[0]
        peak = float(config.lr or 0) * _scale(part, config) * config.layer_decay**depth
        parameter.requires_grad_(_scale(part, config) > 0)
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            thaws = config.phase == 3 and config.thaw_at > 0 and part != "head"
            groups.setdefault((peak, decay, thaws), []).append(parameter)
    for child in model.children():
        _hold_still(child)
    keys = ("lr", "weight_decay", "thaws")
    return [{"params": params, **dict(zip(keys, key, strict=True))} for key, params in groups.items()]


def layers(model: nn.Module) -> list[list[Member]]:
    """A phase-3 model's layers from the head back to the stem, each with its named parameters."""
    found: list[list[Member]] = []
    for part, module in model.named_children():
        own: list[list[Member]] = []
        for piece in filter(None, _pieces(part, module)):
            if own and not (_is_layer(piece) and _is_layer(own[-1])):
                own[-1].extend(piece)
            else:
                own.append(piece)
        found += own
    return found[::-1]


def rate(step: int, num_steps: int, warmup: float, start: int = 0) -> float:
    """Share of the peak learning rate at a step.

    0 before step `start`, then a linear warm-up over `warmup` of all steps, times a cosine that falls to 0 at
    the end; the cosine of a group that starts late is that of the others.
    """
    rising = max(1, round(warmup * num_steps))
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - rising) / max(1, num_steps - rising))))
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / rising) * falling


def schedule(num_steps: int, config: ResolvedConfig) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    """What makes the learning-rate scheduler of an optimizer over `parameter_groups`.

    A group that waits for `--thaw_at` has rate 0 until then: AdamW does not move or decay its weights, but does
    gather its moments, so that its first steps are as well scaled as later ones.
    """
    thaw = round(config.thaw_at * num_steps)

    def of_group(start: int) -> Callable[[int], float]:
        return lambda step: rate(step, num_steps, config.warmup, start)

    def make(optimizer: torch.optim.Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, [of_group(thaw if group.get("thaws") else 0) for group in optimizer.param_groups])

    return make


def check_scheduler(groups: list[dict[str, Any]], section: dict[str, Any] | None) -> None:
    """Refuse a scheduler of DeepSpeed's JSON that would overwrite the groups' rates.

    Raises
    ------
    UsageError
        Which flag it contradicts.
    """
    if section is None:
        return
    kind = section.get("type")
    if any(group["thaws"] for group in groups):
        raise UsageError(
            f'--thaw_at: the scheduler {kind} of --deepspeed_config knows no thawing; remove its "scheduler" section'
        )
    rates = sorted({group["lr"] for group in groups})
    if len(rates) > 1 and kind != KEEPS_RATES:
        raise UsageError(
            f"--deepspeed_config: the scheduler {kind} gives all parameters one learning rate, --encoder_lr_scale, "
            f"--sequence_lr_scale and --layer_decay ask for {len(rates)} (from {rates[0]:.3g} to {rates[-1]:.3g}); "
            f'remove its "scheduler" section, or use {KEEPS_RATES}'
        )


def _members(model: BoldModel, config: ResolvedConfig) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Name, parameter, and distance from the head in layers (0 outside phase 3)."""
    if config.phase < 3:
        yield from ((name, parameter, 0) for name, parameter in model.named_parameters())
        return
    for depth, layer in enumerate(layers(model)):
        yield from ((name, parameter, depth) for name, parameter in layer)


def _scale(part: str, config: ResolvedConfig) -> float:
    encoder, sequence = config.encoder_lr_scale, config.sequence_lr_scale
    scales = {2: {"encoder": encoder, "decoder": encoder}, 3: {"encoder": encoder, "sequence": sequence}}
    return float(scales.get(config.phase, {}).get(part, 1.0))


def _pieces(name: str, module: nn.Module) -> Iterator[list[Member]]:
    """A part in pieces, in order of registration: a stack's members whole, everything around stacks one by one."""
    if not any(isinstance(inner, STACKS) for inner in module.modules()):
        yield _named(name, module)
        return
    yield _named(name, module, recurse=False)
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}"
        if isinstance(module, STACKS):
            yield _named(path, child)
        else:
            yield from _pieces(path, child)


def _is_layer(piece: list[Member]) -> bool:
    return any(parameter.ndim > 1 for _, parameter in piece)


def _named(name: str, module: nn.Module, recurse: bool = True) -> list[Member]:
    return [(f"{name}.{own}", parameter) for own, parameter in module.named_parameters(recurse=recurse)]


def _hold_still(part: nn.Module) -> None:
    """A frozen part stays in evaluation mode, whatever the model is told: its dropout would only add noise."""
    parameters = list(part.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        part.eval()
        part.train = lambda mode=True: part  # type: ignore[method-assign,assignment]
