"""What ranks tell each other outside the gradient: small objects, sums, and who failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from shards.errors import BoldstreamError
from training.engine.environment import Place

T = TypeVar("T")


def gather(value: Any, place: Place) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    found: list[Any] = [None] * place.world_size
    dist.all_gather_object(found, value)
    return found


def first_rank_does(action: Callable[[], T], place: Place) -> T:
    """Run `action` on rank 0 and give its result to all; a `BoldstreamError` of it is raised on all."""
    outcome: list[Any] = [None, None]
    if place.is_first:
        try:
            outcome[0] = action()
        except BoldstreamError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, device=place.device)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def sum_over_ranks(values: NDArray[np.float64], place: Place) -> NDArray[np.float64]:
    """Elementwise sum of equally shaped arrays."""
    total = torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(place.device)
    dist.all_reduce(total)
    return total.cpu().numpy()


class _GatherRows(torch.autograd.Function):
    """All ranks' rows; the gradient of a rank's rows is the sum of what every rank asks of them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def gather_rows(own: Tensor) -> Tensor:
    """Rows of all ranks in rank order, `[world * B, ...]`, differentiable; equal B on every rank."""
    return _GatherRows.apply(own)
