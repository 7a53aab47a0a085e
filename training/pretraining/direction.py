"""What tells a window from its own time reversal: the objective of phase 2 that only order can serve.

Gradients find static structure first, and a classifier of whole windows learns who the subject is before it learns
anything about time; windows told by attention and mean pooling stay at chance. Two things leave no such way out here.
The two classes are one window in two directions, so whatever does not depend on order is equal in both and cancels in
the difference of the scores, which is all that the loss sees. And the score is made of nothing but antisymmetric
lagged second moments of the contextual latents, x[t + k] x[t]' - x[t] x[t + k]' (who leads whom), which change sign
when frames are reversed: were the contextual latents the same in both directions, so would the score.

Shapes: B window, L frame, D latent, R read-out dimensions, F feature, X anything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.networks.pooling import ANTISYMMETRIC_LAGS, feature_groups, moments

MOST_DIMENSIONS = 32


def reversed_frames(x_BLX: Tensor, num_valid_B: Tensor) -> Tensor:
    """The real frames of each window in reverse order; padding stays behind them."""
    frame_L = torch.arange(x_BLX.shape[1], device=x_BLX.device)
    last_B1 = num_valid_B[:, None] - 1
    source_BL = torch.where(frame_L <= last_B1, last_B1 - frame_L, frame_L)
    return x_BLX[torch.arange(len(x_BLX), device=x_BLX.device)[:, None], source_BL]


class Direction(nn.Module):
    """Score of a window's direction, from its contextual latents.

    Parameters
    ----------
    latent
        D. At most 32 learned combinations of the latents are looked at, since features grow with their square.
    """

    def __init__(self, latent: int) -> None:
        super().__init__()
        num_dimensions = min(latent, MOST_DIMENSIONS)
        groups = feature_groups("moments", num_dimensions, 0)
        wanted = [group for group in groups if group.name in {f"anti{lag}" for lag in ANTISYMMETRIC_LAGS}]
        self._columns = slice(wanted[0].start, wanted[-1].stop)
        self.read = nn.Linear(latent, num_dimensions, bias=False)
        nn.init.orthogonal_(self.read.weight)
        self.weigh = nn.Linear(wanted[-1].stop - wanted[0].start, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, context_BLD: Tensor, num_valid_B: Tensor) -> Tensor:
        """Scores `[B]`; above 0 looks forward."""
        features_BF = moments(self.read(context_BLD), num_valid_B)[:, self._columns]
        return self.weigh(features_BF.to(self.weigh.weight.dtype))[:, 0]
