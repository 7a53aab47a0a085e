"""Frame decoder: latent -> masked voxels. The encoder's mirror: a linear trunk plus a tower that starts at zero.

The last layer writes the K voxels of every patch as channels; one gather then picks the mask's
voxels, so no dense volume is ever built and the loss cannot see the background.

Shapes: N frame, D latent, C channel, P Q R patches at a stage, K voxels of a patch, V voxel.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from training.networks.encoder import Extent, ResidualBlock, conv, stage_extents, zeroed
from training.networks.volume import Crop


class Decoder(nn.Module):
    """Latent `[N, D]` -> patches `[N, K, P, Q, R]`, for `Volume.masked`.

    Parameters
    ----------
    crop, channels, blocks, latent
        As the encoder's; the tower runs from the last stage to the first.
    """

    def __init__(self, *, crop: Crop, channels: tuple[int, ...], blocks: int, latent: int) -> None:
        super().__init__()
        extents = stage_extents(crop.patches, len(channels))
        self._finest = (channels[0], *extents[0])
        self._coarsest = (channels[-1], *extents[-1])
        self.trunk = nn.Linear(latent, math.prod(self._finest))
        self.from_latent = nn.Linear(latent, math.prod(self._coarsest))
        stages: list[nn.Module] = []
        for i in range(len(channels) - 1, 0, -1):
            stages.extend(ResidualBlock(channels[i], extents[i]) for _ in range(blocks))
            finer = Upsample(channels[i], channels[i - 1], extents[i], extents[i - 1])
            stages.append(finer)
        zeroed(finer.conv)
        self.tower = nn.Sequential(*stages)
        self.to_patches = nn.Conv3d(channels[0], math.prod(crop.stride), 1)

    def forward(self, latent_ND: Tensor) -> Tensor:
        x_NCPQR = self.trunk(latent_ND).unflatten(1, self._finest)
        tower_NCPQR = self.tower(self.from_latent(latent_ND).unflatten(1, self._coarsest))
        return self.to_patches(x_NCPQR + tower_NCPQR)


class Upsample(nn.Module):
    """A convolution at the coarse resolution, then nearest neighbours to the fine one."""

    def __init__(self, channels_in: int, channels_out: int, coarse: Extent, fine: Extent) -> None:
        super().__init__()
        self.fine = fine
        self.conv = conv(channels_in, channels_out, coarse)

    def forward(self, x_NCPQR: Tensor) -> Tensor:
        return F.interpolate(self.conv(x_NCPQR), size=self.fine, mode="nearest")
