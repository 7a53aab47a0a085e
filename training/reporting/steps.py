"""What a training step tells: a line of the journal, the monitors of DeepSpeed's JSON, a line for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from training.reporting.journal import Journal
from training.reporting.progress import Progress

logger = logging.getLogger(__name__)

FOR_PEOPLE = ("score", "loss", "mse", "latent_mse", "ahead_mse", "direction_told", "latent_rank", "context_rank")
"""Figures of a validation that the line for people has; the journal has all of them."""


def report_step(
    journal: Journal, engine: Any, progress: Progress, terms: dict[str, Tensor], loss: float, step: int
) -> None:
    """Log an optimizer step.

    Parameters
    ----------
    terms
        Parts of the last batch's loss on this rank; their means over all ranks are told, so every rank must call it.
    loss
        Mean over the step's batches and all ranks.
    """
    losses = {"loss": loss, **_mean_over_ranks(terms)}
    values = {**losses, **_state(engine)}
    speed = progress.report(step)
    journal.write("train", step, **values, **speed)
    _tell_monitors(journal, engine, "Train", {**values, **speed})
    logger.info("%s", progress.line(step, losses, speed))


def report_validation(journal: Journal, engine: Any, found: dict[str, float], step: int) -> None:
    """Log a validation."""
    journal.write("val", step, **found)
    _tell_monitors(journal, engine, "Val", found)
    figures = ", ".join(f"{name} {found[name]:.4g}" for name in FOR_PEOPLE if name in found)
    logger.info("step %d validation: %s", step, figures)


def _mean_over_ranks(terms: dict[str, Tensor]) -> dict[str, float]:
    shared = torch.stack([value.detach().double() for value in terms.values()])
    dist.all_reduce(shared)
    return dict(zip(terms, (shared / dist.get_world_size()).tolist(), strict=True))


def _state(engine: Any) -> dict[str, float | None]:
    """Learning rate and gradient norm (None under ZeRO stage 0, where DeepSpeed does not keep it); fp16's scale."""
    norm = engine.get_global_grad_norm()
    state = {"lr": engine.get_lr()[0], "grad_norm": None if norm is None else float(norm)}
    if engine.fp16_enabled():
        state |= {"loss_scale": float(engine.optimizer.loss_scale), "skipped_steps": float(engine.skipped_steps)}
    return state


def _tell_monitors(journal: Journal, engine: Any, group: str, values: Mapping[str, float | None]) -> None:
    """Write to TensorBoard, W&B and CSV; over samples, since DeepSpeed's own figures there are."""
    if engine.monitor.enabled and journal.writes:
        samples = engine.global_samples
        engine.monitor.write_events(
            [(f"{group}/{name}", float(value), samples) for name, value in values.items() if value is not None]
        )
