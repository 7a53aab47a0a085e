"""The model of each phase, assembled.

Phase 1: volume, encoder, decoder. Phase 2 adds the sequence. Phase 3 has no decoder, but a pool and
a head. Parts keep their names over the phases, which is all that parameter transfer needs.

Shapes: B window, L frame, V voxel, D latent, W transformer width, F feature, K output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shards.loader import Batch
from training.config import Architecture
from training.decoder import Decoder
from training.encoder import Encoder
from training.pooling import Pool, valid_frames
from training.sequence import Sequence
from training.volume import Volume


class BoldModel(nn.Module):
    """4D fMRI model of one phase.

    Parameters
    ----------
    size
        The numbers of the architecture.
    mask_XYZ
        Brain mask on the shard set's grid; every shape follows from it.
    phase
        1, 2 or 3.
    pool, num_outputs
        Phase 3: what the head sees (`cls`, `mean`, `moments`), and K: 1 logit for a binary target
        (of the second level), K logits for K classes, 1 value for regression.
    """

    output_scale: Tensor
    output_shift: Tensor

    def __init__(
        self, *, size: Architecture, mask_XYZ: np.ndarray, phase: int, pool: str = "moments", num_outputs: int = 0
    ) -> None:
        super().__init__()
        self.size, self.phase = size, phase
        self.volume = Volume(mask_XYZ)
        tower: dict[str, Any] = {"channels": size.channels, "blocks": size.blocks, "latent": size.latent}
        self.encoder = Encoder(crop=self.volume.crop, **tower)
        if phase < 3:
            self.decoder = Decoder(crop=self.volume.crop, **tower)
        if phase > 1:
            self.sequence = Sequence(
                latent=size.latent, width=size.width, depth=size.depth, heads=size.heads, dropout=size.dropout
            )
        if phase == 3:
            self.pool = Pool(pool=pool, latent=size.latent, width=size.width)
            self.head = nn.Linear(self.pool.num_features, num_outputs)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            self.register_buffer("output_scale", torch.ones(num_outputs))
            self.register_buffer("output_shift", torch.zeros(num_outputs))

    def forward(
        self,
        q: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        num_valid: Tensor,
        tr_s: Tensor,
        hidden: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run one batch of windows.

        Parameters
        ----------
        q, gain, shift, num_valid, tr_s
            As in `shards.loader.Batch`.
        hidden
            Phase 2: `[B, L]`, True at frames whose latent is replaced by the mask latent.

        Returns
        -------
        dict
            Phases 1 and 2: `residual` `[B, L, V]` (what went in), `latent` and `context` `[B, L, D]`, and
            `reconstruction` `[B, L, V]` decoded from the context. Phase 3: `output` `[B, K]`: logits, or
            the value in the target's own units.
        """
        residual_BLV = self.volume.residual(q, gain, shift)
        latent_BLD = self.encode(residual_BLV)
        if self.phase == 1:
            return {
                "residual": residual_BLV,
                "latent": latent_BLD,
                "context": latent_BLD,
                "reconstruction": self.decode(latent_BLD),
            }
        valid_BL = valid_frames(num_valid, q.shape[1])
        context_BLD, cls_BW = self.sequence(latent_BLD, valid_BL, tr_s, hidden)
        if self.phase == 2:
            return {
                "residual": residual_BLV,
                "latent": latent_BLD,
                "context": context_BLD,
                "reconstruction": self.decode(context_BLD),
            }
        features_BF = self.pool(context_BLD, cls_BW, num_valid)
        output_BK = self.head(features_BF.to(self.head.weight.dtype)).float()
        return {"output": output_BK * self.output_scale + self.output_shift}

    def tokens(
        self, q: Tensor, gain: Tensor, shift: Tensor | None, num_valid: Tensor, tr_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Contextual latents `[B, L, D]` and CLS outputs `[B, W]` of phases 2 and 3."""
        latent_BLD = self.encode(self.volume.residual(q, gain, shift))
        context_BLD, cls_BW = self.sequence(latent_BLD, valid_frames(num_valid, q.shape[1]), tr_s)
        return context_BLD, cls_BW

    def encode(self, residual_BLV: Tensor) -> Tensor:
        """Latents `[B, L, D]` of residuals, frame by frame."""
        num_windows, num_frames, _ = residual_BLV.shape
        residual_NV = residual_BLV.flatten(0, 1).to(self.encoder.stem.weight.dtype)
        return self.encoder(self.volume.dense(residual_NV)).unflatten(0, (num_windows, num_frames))

    def decode(self, latent_BLD: Tensor) -> Tensor:
        """Masked voxels `[B, L, V]` of latents, frame by frame."""
        num_windows, num_frames, _ = latent_BLD.shape
        decoded_NV = self.volume.masked(self.decoder(latent_BLD.flatten(0, 1)))
        return decoded_NV.unflatten(0, (num_windows, num_frames))


def inputs_of(batch: Batch, device: torch.device) -> dict[str, Tensor | None]:
    """The arguments of `BoldModel.forward` from a loader's batch, on the device."""
    moved = batch.to(device)
    return {name: getattr(moved, name) for name in ("q", "gain", "shift", "num_valid", "tr_s")}
