"""Which networks a model is made of: one table for the family of boldstream, one for the ancestors.

Whatever the family, an encoder maps dense volumes `[N, C, X, Y, Z]` to latents `[N, D]`, a decoder
maps latents to patches `[N, K, P, Q, R]`, and a sequence maps latents `[B, L, D]` to contextual
latents `[B, L, D]` and one output `[B, W]` a window.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from training.networks.ancestor import AncestorDecoder, AncestorEncoder, AncestorSequence
from training.networks.decoder import Decoder
from training.networks.encoder import Encoder
from training.networks.sequence import Sequence
from training.networks.volume import Crop
from training.presets import Architecture

CONVOLUTION_DROPOUT = {1: (0.2, 0.2), 2: (0.2, 0.2), 3: (0.35, 0.0)}
"""Ancestors: dropout of encoder and decoder blocks in each phase."""


def make_encoder(size: Architecture, crop: Crop, phase: int) -> nn.Module:
    """The frame encoder of an architecture on a crop."""
    if size.family == "ancestor":
        return AncestorEncoder(
            box=crop.box,
            input_channels=size.input_channels,
            channels=size.channels,
            latent=size.latent,
            dropout=CONVOLUTION_DROPOUT[phase][0],
        )
    return Encoder(crop=crop, input_channels=size.input_channels, **_tower(size))


def make_decoder(size: Architecture, crop: Crop, phase: int) -> nn.Module:
    """The frame decoder; phases 1 and 2."""
    if size.family == "ancestor":
        return AncestorDecoder(
            box=crop.box, channels=size.channels, latent=size.latent, dropout=CONVOLUTION_DROPOUT[phase][1]
        )
    return Decoder(crop=crop, **_tower(size))


def make_sequence(size: Architecture) -> nn.Module:
    """The transformer over frames; phases 2 and 3."""
    if size.family == "ancestor":
        return AncestorSequence(
            width=size.width, depth=size.depth, heads=size.heads, positions=size.positions or 30, dropout=size.dropout
        )
    return Sequence(
        latent=size.latent,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        dropout=size.dropout,
        causal=size.causal,
    )


def _tower(size: Architecture) -> dict[str, Any]:
    return {"channels": size.channels, "blocks": size.blocks, "latent": size.latent}
