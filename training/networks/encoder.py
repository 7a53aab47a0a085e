"""Frame encoder: dense volume -> latent.

latent = trunk + tower. The trunk is linear: a patch stem (a convolution whose stride is its kernel)
and one projection. The tower, residual convolutions at coarser and coarser resolution, starts at
zero. So training begins as a linear autoencoder, which a hundred subjects can already fit, and
becomes non-linear as far as the data allow. (A deep tower alone was still further from the data's
principal components after three times as long.)

Shapes: N frame, C channel, X Y Z dense crop, P Q R patches at a stage, D latent.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.volume import Crop

CHANNELS_PER_GROUP = 8
Extent = tuple[int, int, int]


def stage_extents(patches: Extent, num_stages: int) -> list[Extent]:
    """Patches along each axis at every stage: an axis halves (rounding up) while it has more than 3.

    Parameters
    ----------
    patches
        Patches along each axis after the stem.
    num_stages
        Stages, the first at full patch resolution.
    """
    extents = [patches]
    for _ in range(num_stages - 1):
        p, q, r = (-(-n // 2) if n > 3 else n for n in extents[-1])
        extents.append((p, q, r))
    return extents


def conv(channels_in: int, channels_out: int, extent: Extent, stride: Extent = (1, 1, 1)) -> nn.Conv3d:
    """A 3-convolution along every axis that has neighbours; keeps each axis, or halves it rounding up."""
    p, q, r = (3 if n > 1 else 1 for n in extent)
    return nn.Conv3d(channels_in, channels_out, (p, q, r), stride=stride, padding=(p // 2, q // 2, r // 2))


def zeroed(layer: nn.Linear | nn.Conv3d) -> nn.Linear | nn.Conv3d:
    """The same layer, starting at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class WideLinear(nn.Linear):
    """Linear layer with inputs divided by the root of their number, so weights of order 1.

    AdamW moves every weight by about the same amount. Weights of a plain layer with ten thousand
    inputs are of order 0.01, and one step would change them by a fifth; here it is small against them,
    whatever the grid.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_NI: Tensor) -> Tensor:
        return F.linear(x_NI * self.in_features**-0.5, self.weight, self.bias)


class ResidualBlock(nn.Module):
    """`x + conv(gelu(norm(conv(gelu(norm(x))))))` with group normalisation."""

    recomputable = True

    def __init__(self, channels: int, extent: Extent) -> None:
        super().__init__()
        groups = max(1, channels // CHANNELS_PER_GROUP)
        self.branch = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.GELU(),
            conv(channels, channels, extent),
            nn.GroupNorm(groups, channels),
            nn.GELU(),
            conv(channels, channels, extent),
        )

    def forward(self, x_NCPQR: Tensor) -> Tensor:
        return x_NCPQR + self.branch(x_NCPQR)


class Encoder(nn.Module):
    """Volume `[N, C, X, Y, Z]` -> latent `[N, D]`.

    Parameters
    ----------
    crop
        Geometry of the dense volume.
    input_channels
        C: 1, the residual, or 2 with the intensity.
    channels
        Width of each stage; the first is the stem's. Multiples of 8, at least two stages.
    blocks
        Residual blocks of each stage after the first.
    latent
        D.
    """

    def __init__(
        self, *, crop: Crop, channels: tuple[int, ...], blocks: int, latent: int, input_channels: int = 1
    ) -> None:
        super().__init__()
        extents = stage_extents(crop.patches, len(channels))
        self.stem = nn.Conv3d(input_channels, channels[0], crop.stride, stride=crop.stride)
        self.trunk = WideLinear(channels[0] * math.prod(crop.patches), latent)
        stages: list[nn.Module] = []
        for i in range(1, len(channels)):
            stages.append(_downsample(channels[i - 1], channels[i], extents[i - 1], extents[i]))
            stages.extend(ResidualBlock(channels[i], extents[i]) for _ in range(blocks))
        self.tower = nn.Sequential(*stages)
        self.to_latent = zeroed(WideLinear(channels[-1] * math.prod(extents[-1]), latent))

    def forward(self, volume_NCXYZ: Tensor) -> Tensor:
        x_NCPQR = self.stem(volume_NCXYZ)
        return self.trunk(x_NCPQR.flatten(1)) + self.to_latent(self.tower(x_NCPQR).flatten(1))


def _downsample(channels_in: int, channels_out: int, before: Extent, after: Extent) -> nn.Conv3d:
    p, q, r = (2 if b != a else 1 for b, a in zip(before, after, strict=True))
    return conv(channels_in, channels_out, before, stride=(p, q, r))
