"""The model of each phase, assembled.

Phase 1: volume, encoder, decoder. Phase 2 adds the sequence. Phase 3 has no decoder, but a pool and
a head. Parts keep their names over the phases, which is all that parameter transfer needs.

Shapes: B window, L frame, V voxel, D latent, W transformer width, F feature, K output.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shards.loader import Batch
from training.networks.families import make_decoder, make_encoder, make_sequence
from training.networks.pooling import Pool, valid_frames
from training.networks.sequence import filtered
from training.networks.volume import Volume
from training.presets import Architecture
from training.pretraining.direction import Direction, reversed_frames


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
    window_scale: Tensor

    def __init__(
        self,
        *,
        size: Architecture,
        mask_XYZ: np.ndarray,
        phase: int,
        pool: str = "moments",
        num_outputs: int = 0,
        direction: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.phase = size, phase
        self.memory_format = torch.contiguous_format
        self.volume = Volume(mask_XYZ, patched=size.family == "boldstream")
        self.encoder = make_encoder(size, self.volume.crop, phase)
        if phase < 3:
            self.decoder = make_decoder(size, self.volume.crop, phase)
        if phase > 1:
            self.sequence = make_sequence(size)
        if direction:
            self.direction = Direction(size.latent)
        if phase == 3:
            self.pool = Pool(pool=pool, latent=size.latent, width=size.width)
            self.head = nn.Linear(self.pool.num_features, num_outputs)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            self.register_buffer("output_scale", torch.ones(num_outputs))
            self.register_buffer("output_shift", torch.zeros(num_outputs))
            self.register_buffer("window_scale", torch.ones(1))

    def forward(
        self,
        q: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        num_valid: Tensor,
        tr_s: Tensor,
        level: Tensor | None = None,
        spread: Tensor | None = None,
        hidden: Tensor | None = None,
        *,
        reverse: bool = False,
    ) -> dict[str, Tensor]:
        """Run one batch of windows.

        Parameters
        ----------
        q, gain, shift, num_valid, tr_s, level, spread
            As in `shards.loader.Batch`; the last two are used where the architecture has the intensity channel.
        hidden
            Phase 2: `[B, L]`, True at frames whose latent is replaced by the mask latent.
        reverse
            Phase 2 with direction head: score each window, and the same window reversed in time, as well.

        Returns
        -------
        dict
            Phases 1 and 2: `residual` `[B, L, V]` (what went in), `latent` and `context` `[B, L, D]`, and
            `reconstruction` `[B, L, V]` decoded from the context. Phase 2 also: `cls` `[B, W]`; `expected`
            `[B, L, D]`, each latent from the frames before it, if the architecture is causal; and, if asked for,
            `forward_score` and `reversed_score` `[B]`. Phase 3: `output` `[B, K]`: logits, or the value in the
            target's own units, whose average over windows is the subject's; and `window_scale` `[1]`, how far one
            window alone is to be trusted (`training.finetuning.task`).
        """
        residual_BLV = self.volume.residual(q, gain, shift)
        latent_BLD = self.encode(residual_BLV, level, spread)
        if self.phase == 1:
            return {
                "residual": residual_BLV,
                "latent": latent_BLD,
                "context": latent_BLD,
                "reconstruction": self.decode(latent_BLD),
            }
        valid_BL = valid_frames(num_valid, q.shape[1])
        if self.phase == 2:
            context_BLD, cls_BW = self.sequence(latent_BLD, valid_BL, tr_s, hidden)
            out = {
                "residual": residual_BLV,
                "latent": latent_BLD,
                "context": context_BLD,
                "cls": cls_BW,
                "reconstruction": self.decode(context_BLD),
            }
            if self.size.causal:
                out["expected"], _ = self.sequence(latent_BLD.detach(), valid_BL, tr_s, causal=True)
            return out | self._scores(out, num_valid, tr_s, hidden) if reverse else out
        features_BF = self.pool(*self.read_tokens(latent_BLD, valid_BL, tr_s), num_valid)
        output_BK = self.head(features_BF.to(self.head.weight.dtype)).float()
        return {"output": output_BK * self.output_scale + self.output_shift, "window_scale": self.window_scale}

    def _scores(
        self, out: dict[str, Tensor], num_valid: Tensor, tr_s: Tensor, hidden_BL: Tensor | None
    ) -> dict[str, Tensor]:
        """Scores of windows in both directions; the encoder sees frames one by one, so only their order is reversed."""
        valid_BL = valid_frames(num_valid, out["latent"].shape[1])
        latent_BLD = reversed_frames(out["latent"], num_valid)
        hidden_BL = None if hidden_BL is None else reversed_frames(hidden_BL, num_valid)
        context_BLD, _ = self.sequence(latent_BLD, valid_BL, tr_s, hidden_BL)
        return {
            "forward_score": self.direction(out["context"], num_valid),
            "reversed_score": self.direction(context_BLD, num_valid),
        }

    def tokens(
        self,
        q: Tensor,
        gain: Tensor,
        shift: Tensor | None,
        num_valid: Tensor,
        tr_s: Tensor,
        level: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What phase 3 reads of windows: filtered (or contextual) latents `[B, L, D]` and CLS outputs `[B, W]`."""
        latent_BLD = self.encode(self.volume.residual(q, gain, shift), level, spread)
        return self.read_tokens(latent_BLD, valid_frames(num_valid, q.shape[1]), tr_s)

    def read_tokens(self, latent_BLD: Tensor, valid_BL: Tensor, tr_s: Tensor) -> tuple[Tensor, Tensor]:
        """The same from frame latents that are known already."""
        if not self.size.causal or (self.phase == 3 and self.pool.pool == "cls"):
            return self.sequence(latent_BLD, valid_BL, tr_s)
        expected_BLD, cls_BW = self.sequence(latent_BLD, valid_BL, tr_s, causal=True)
        return filtered(latent_BLD, expected_BLD), cls_BW

    def encode(self, residual_BLV: Tensor, level_BV: Tensor | None = None, spread_BV: Tensor | None = None) -> Tensor:
        """Latents `[B, L, D]` of residuals, frame by frame."""
        dtype = next(self.encoder.parameters()).dtype
        channels = [self.volume.dense(residual_BLV.flatten(0, 1).to(dtype))]
        if self.size.intensity:
            assert level_BV is not None and spread_BV is not None, "a loader with intensity=True gives both"
            intensity_BLV = level_BV[:, None] + spread_BV[:, None] * residual_BLV
            channels.append(self.volume.dense(intensity_BLV.flatten(0, 1).to(dtype)))
        volume_NCXYZ = torch.cat(channels, dim=1).contiguous(memory_format=self.memory_format)
        return self.encoder(volume_NCXYZ).unflatten(0, residual_BLV.shape[:2])

    def decode(self, latent_BLD: Tensor) -> Tensor:
        """Masked voxels `[B, L, V]` of latents, frame by frame."""
        num_windows, num_frames, _ = latent_BLD.shape
        decoded_NV = self.volume.masked(self.decoder(latent_BLD.flatten(0, 1)))
        return decoded_NV.unflatten(0, (num_windows, num_frames))


def recompute_in_backward(model: BoldModel) -> None:
    """Activation checkpointing: keep the inputs of blocks (those that say `recomputable`), not what is inside."""
    for module in model.modules():
        if getattr(module, "recomputable", False):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]


def inputs_of(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The arguments of `BoldModel.forward` from a loader's batch, on the device."""
    moved = batch.to(device)
    return {name: getattr(moved, name) for name in ("q", "gain", "shift", "num_valid", "tr_s", "level", "spread")}
