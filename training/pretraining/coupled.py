"""Objectives that look at many windows at once, exact whatever the number of ranks and accumulation steps.

A contrast compares each window with all others of the optimizer step, most of which belong to other ranks or to
batches that are not in memory together. So it is computed on the embeddings of all of them, without their graphs, and
only its value and its gradient with respect to each embedding go back to the batch (gradient caching, Gao et al.
2021): there, value + gradient . (embedding - its own value) has the right value and, through the embedding, the right
gradient.

Shapes: B window of a batch, S own windows of a step, A windows of a step on all ranks, L frame, D latent,
W transformer width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from shards.batch import Batch
from training.config import ResolvedConfig
from training.engine.collective import gather_rows
from training.engine.environment import Place
from training.pretraining.objectives import neighbour_contrast, pair_contrast


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What coupled objectives see of some windows."""

    context_BLD: Tensor
    """Contextual latents, for the contrast of neighbours."""
    valid_BL: Tensor
    """True where a frame is real."""
    cls_BW: Tensor
    """One embedding a window, for the contrast of pairs: the output of CLS. The mean of the contextual latents says
    little (residuals are centred over the run), and pulling it would write who the subject is into every frame."""
    run_B: Tensor
    """Number of the run."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Values of the coupled objectives for the windows of a batch, and the gradient of their weighted sum."""

    values: dict[str, Tensor]
    total_B: Tensor
    context_BLD: Tensor
    cls_BW: Tensor

    def attached(self, embeddings: Embeddings) -> Tensor:
        """The weighted sum `[B]`, whose gradient flows through the batch's embeddings."""
        pull_B = (embeddings.context_BLD.float() * self.context_BLD).sum((1, 2))
        pull_B = pull_B + (embeddings.cls_BW.float() * self.cls_BW).sum(1)
        return self.total_B + pull_B - pull_B.detach()


def is_coupled(config: ResolvedConfig) -> bool:
    """Whether some objective looks at more than one window."""
    return config.phase == 2 and bool(config.contrast_weight or config.pair_weight)


def couple(batches: list[Embeddings], config: ResolvedConfig, place: Place) -> list[Coupling]:
    """Compute the coupled objectives over an optimizer step's windows.

    Parameters
    ----------
    batches
        Embeddings of each of this rank's batches, of equally many windows; every rank must call with as many.
    config
        Weights and temperature.
    place
        This rank.

    Returns
    -------
    list of Coupling
        One a batch. The gradients are those of the sum over all windows of all ranks, so the mean over a batch's
        windows has the right scale under DeepSpeed, which averages over accumulation steps and ranks.
    """
    own = Embeddings(**{f.name: torch.cat([getattr(b, f.name) for b in batches]).detach() for f in fields(Embeddings)})
    context_SLD, cls_SW = own.context_BLD.float().requires_grad_(), own.cls_BW.float().requires_grad_()
    first, temperature = place.rank * len(own.run_B), config.contrast_temperature
    values: dict[str, Tensor] = {}
    with torch.enable_grad():
        total_S = context_SLD.new_zeros(len(own.run_B))
        if config.contrast_weight:
            all_ALD, valid_AL = _everybody(context_SLD, place), _everybody(own.valid_BL.to(torch.uint8), place).bool()
            values["contrast"] = neighbour_contrast(context_SLD, own.valid_BL, all_ALD, valid_AL, first, temperature)
            total_S = total_S + config.contrast_weight * values["contrast"]
        if config.pair_weight:
            _check_pairs(own.run_B)
            all_AW, run_A = _everybody(cls_SW, place), _everybody(own.run_B, place)
            values["pair"] = pair_contrast(cls_SW, own.run_B, all_AW, run_A, first, temperature)
            total_S = total_S + config.pair_weight * values["pair"]
        context_gradient, cls_gradient = torch.autograd.grad(
            total_S.sum(), (context_SLD, cls_SW), materialize_grads=True
        )
    sizes = [len(batch.run_B) for batch in batches]
    parts = {name: value.detach().split(sizes) for name, value in values.items()}
    rest = (total_S.detach().split(sizes), context_gradient.split(sizes), cls_gradient.split(sizes))
    return [
        Coupling(values={k: v[i] for k, v in parts.items()}, total_B=total, context_BLD=context, cls_BW=cls)
        for i, (total, context, cls) in enumerate(zip(*rest, strict=True))
    ]


def kept(batch: Batch) -> Batch:
    """A copy of a batch, on the CPU, that stays when the loader takes the next."""
    copied: dict[str, Any] = {
        each.name: value.clone() if isinstance(value, Tensor) else value
        for each in fields(batch)
        if not each.name.startswith("_")
        for value in [getattr(batch, each.name)]
    }
    return Batch(**copied)


def _everybody(own: Tensor, place: Place) -> Tensor:
    return gather_rows(own) if place.world_size > 1 else own


def _check_pairs(run_S: Tensor) -> None:
    assert torch.equal(run_S[0::2], run_S[1::2]), "a loader with pairs=True gives both windows of a run side by side"
