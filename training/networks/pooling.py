"""What a head sees of a window: the CLS output, the mean, or the moments over time.

`moments` makes static and dynamic structure linearly readable: second moments of the whitened
latents at lag k, split into a symmetric part (lag 0 is functional connectivity, seen from the
cohort's mean connectivity) and an antisymmetric one (who leads whom; it changes sign when time is
reversed and is zero without dynamics). They are not centred in the window: the residual is centred
over the run, so that the average over a run's windows is the run's own second moment.

Shapes: B window, L frame, D latent, F feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SYMMETRIC_LAGS = (0, 1, 2)
ANTISYMMETRIC_LAGS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureGroup:
    """Features of one kind and lag.

    Attributes
    ----------
    name
        `mean`, `sym0` .. `sym2`, `anti1` .. `anti3`, or `cls`.
    start, stop
        Its columns.
    order
        For each column the later one of the two latent dimensions it is made of (whitened
        dimensions come in order of falling variance); zeros where the order means nothing.
    """

    name: str
    start: int
    stop: int
    order: tuple[int, ...]


def feature_groups(pool: str, latent: int, width: int) -> tuple[FeatureGroup, ...]:
    """The groups of features that `pool` gives, in column order."""
    if pool == "cls":
        return (FeatureGroup(name="cls", start=0, stop=width, order=(0,) * width),)
    if pool == "mean":
        return (FeatureGroup(name="mean", start=0, stop=latent, order=(0,) * latent),)
    orders = {"mean": tuple(range(latent))}
    upper = tuple(torch.triu_indices(latent, latent, device="cpu")[1].tolist())
    strict = tuple(torch.triu_indices(latent, latent, 1, device="cpu")[1].tolist())
    orders |= {f"sym{lag}": upper for lag in SYMMETRIC_LAGS}
    orders |= {f"anti{lag}": strict for lag in ANTISYMMETRIC_LAGS}
    groups, start = [], 0
    for name, order in orders.items():
        groups.append(FeatureGroup(name=name, start=start, stop=start + len(order), order=order))
        start += len(order)
    return tuple(groups)


def moments(x_BLD: Tensor, num_valid_B: Tensor) -> Tensor:
    """Mean and lagged second moments of each window, `[B, F]`, float32.

    Off-diagonal entries are scaled by sqrt(2), so that a dot product of features is one of
    matrices. At lag k the average runs over the `num_valid - k` pairs of real frames; a window too
    short for a lag gives zeros there.
    """
    x_BLD = x_BLD.float()
    valid_BL = valid_frames(num_valid_B, x_BLD.shape[1])
    x_BLD = x_BLD * valid_BL[..., None]
    features = [x_BLD.sum(1) / num_valid_B.clamp(min=1)[:, None]]
    lagged = {lag: _lagged(x_BLD, num_valid_B, lag) for lag in {*SYMMETRIC_LAGS, *ANTISYMMETRIC_LAGS}}
    num_dims = x_BLD.shape[2]
    row, column = torch.triu_indices(num_dims, num_dims, device=x_BLD.device)
    weight = torch.where(row == column, 1.0, 2**0.5)
    for lag in SYMMETRIC_LAGS:
        symmetric = (lagged[lag] + lagged[lag].mT) / 2
        features.append(symmetric[:, row, column] * weight)
    row, column = torch.triu_indices(num_dims, num_dims, 1, device=x_BLD.device)
    for lag in ANTISYMMETRIC_LAGS:
        antisymmetric = (lagged[lag] - lagged[lag].mT) / 2
        features.append(antisymmetric[:, row, column] * 2**0.5)
    return torch.cat(features, dim=1)


def valid_frames(num_valid_B: Tensor, num_frames: int) -> Tensor:
    """True where a frame is real, `[B, L]`."""
    return torch.arange(num_frames, device=num_valid_B.device) < num_valid_B[:, None]


def _lagged(x_BLD: Tensor, num_valid_B: Tensor, lag: int) -> Tensor:
    """Average of x[t + lag] x[t]' over the pairs of real frames, `[B, D, D]`."""
    num_frames = x_BLD.shape[1]
    if lag >= num_frames:
        return x_BLD.new_zeros(x_BLD.shape[0], x_BLD.shape[2], x_BLD.shape[2])
    products = x_BLD[:, lag:].mT @ x_BLD[:, : num_frames - lag]
    return products / (num_valid_B - lag).clamp(min=1)[:, None, None]


class Pool(nn.Module):
    """Window features, standardised with what the training subjects gave.

    Parameters
    ----------
    pool
        `cls`, `mean` or `moments`.
    latent, width
        D and the transformer's width.
    """

    center: Tensor
    whiten: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, *, pool: str, latent: int, width: int) -> None:
        super().__init__()
        self.pool = pool
        self.groups = feature_groups(pool, latent, width)
        self.num_features = self.groups[-1].stop
        self.register_buffer("center", torch.zeros(latent))
        self.register_buffer("whiten", torch.eye(latent))
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_scale", torch.ones(self.num_features))

    def raw(self, context_BLD: Tensor, cls_BW: Tensor, num_valid_B: Tensor) -> Tensor:
        """Features before standardisation, `[B, F]` float32."""
        if self.pool == "cls":
            return cls_BW.float()
        white_BLD = (context_BLD.float() - self.center) @ self.whiten
        if self.pool == "moments":
            return moments(white_BLD, num_valid_B)
        valid_BL = valid_frames(num_valid_B, context_BLD.shape[1])
        return (white_BLD * valid_BL[..., None]).sum(1) / num_valid_B.clamp(min=1)[:, None]

    def forward(self, context_BLD: Tensor, cls_BW: Tensor, num_valid_B: Tensor) -> Tensor:
        return (self.raw(context_BLD, cls_BW, num_valid_B) - self.feature_mean) * self.feature_scale

    @torch.no_grad()
    def fit_whitening(self, mean_D: Tensor, covariance_DD: Tensor) -> None:
        """Whiten latents of this mean and covariance, leading dimensions first.

        Directions of (numerically) no variance become zero instead of noise blown up to one.
        """
        variance, vectors = torch.linalg.eigh(covariance_DD.double())
        variance, vectors = variance.flip(0), vectors.flip(1)
        gain = torch.where(variance > 1e-6 * variance[0], variance.clamp(min=1e-30).rsqrt(), 0.0)
        self.center.copy_(mean_D)
        self.whiten.copy_(vectors * gain)
