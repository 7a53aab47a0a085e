"""Models that know nothing, for the check that a map depends on what was learned (Adebayo et al. 2018)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Level = Literal["readout", "everything"]
LEVELS: tuple[Level, ...] = ("readout", "everything")
"""What is randomised: the head alone, or every weight of the network."""


def randomised(model: nn.Module, level: Level, seed: int) -> nn.Module:
    """A copy whose weights are shuffled within each tensor, which keeps their scale and destroys what they mean.

    Parameters
    ----------
    model : torch.nn.Module
        `BoldModel` of phase 3; left as it is.
    level : {'readout', 'everything'}
        Whether the head alone is shuffled. Statistics of features (buffers) stay.
    seed : int
        Of the shuffle, the same on every device.
    """
    import torch

    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if level == "everything" or name.startswith("head."):
                order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[order].view_as(weight))
    return twin
