"""The networks of the two ancestors, written anew from what their papers and code do, to compare with.

TFF (2022) and its hackathon fork: a residual convolution tower of few channels at full resolution, a bottleneck of
2 channels that is flattened to 2640 numbers a frame, and a BERT of that width over the frames of a window. Presets
`tff` and `hackathon` have their numbers; the two differ in input channels, layers and positions. What differs here:

- shapes follow from the mask's bounding box, whatever it is;
- padding frames are masked out of attention (they had none), so short windows work;
- the CLS embedding is stored and restored like any other parameter (theirs was drawn anew at every load).

The word embedding of BERT (one row, nothing ever looks it up) is kept so that the counts of parameters are theirs.

Shapes: N frame, C channel, X Y Z bounding box at a stage, D latent (2640), B window, L frame of a window,
S = L + 1 tokens (CLS first), W transformer width (= D), H heads.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import MismatchError

CHANNELS_PER_GROUP = 4
BOTTLENECK_CHANNELS = 2
FIRST_BLOCKS, MIDDLE_BLOCKS, LAST_BLOCKS = 1, 2, 4
"""Residual blocks of the encoder's first, each middle, and its last stage."""
INTERMEDIATE = 3072
EPSILON = 1e-12
INITIAL_SD = 0.02
CLS_INPUT = 0.5

Extent = tuple[int, int, int]


def halvings(box: Extent, num_stages: int) -> list[Extent]:
    """Voxels along each axis at every stage: each is the one before, halved and rounded up."""
    extents = [box]
    for _ in range(num_stages - 1):
        x, y, z = (-(-n // 2) for n in extents[-1])
        extents.append((x, y, z))
    return extents


class GreenBlock(nn.Module):
    """`x + dropout(conv(lrelu(norm(conv(lrelu(norm(x)))))))`, 4 channels a group of the norms."""

    recomputable = True

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        groups = channels // CHANNELS_PER_GROUP
        self.branch = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.LeakyReLU(),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.LeakyReLU(),
            nn.Conv3d(channels, channels, 3, padding=1),
            nn.Dropout(dropout),
        )

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        return x_NCXYZ + self.branch(x_NCXYZ)


class Upsample(nn.Module):
    """A 1-convolution, then nearest neighbours to the finer extent, then a residual block."""

    def __init__(self, channels_in: int, channels_out: int, fine: Extent, dropout: float) -> None:
        super().__init__()
        self.fine = fine
        self.conv = nn.Conv3d(channels_in, channels_out, 1)
        self.green = GreenBlock(channels_out, dropout)

    def forward(self, x_NCXYZ: Tensor) -> Tensor:
        return self.green(F.interpolate(self.conv(x_NCXYZ), size=self.fine, mode="nearest"))


class AncestorEncoder(nn.Module):
    """Dense volumes `[N, C, X, Y, Z]` -> latents `[N, D]`.

    Parameters
    ----------
    box
        Voxels of the mask's bounding box along each axis.
    input_channels
        2 with the intensity (TFF), 1 without (hackathon).
    channels
        Of each stage; every stage but the last ends in a convolution of stride 2.
    latent
        D. Where the flattened bottleneck has that many numbers already it is the latent, as it is; else a
        linear layer lies between.
    dropout
        Of the residual blocks.
    """

    def __init__(
        self, *, box: Extent, input_channels: int, channels: tuple[int, ...], latent: int, dropout: float
    ) -> None:
        super().__init__()
        stages = []
        for i, (here, coarser) in enumerate(pairwise(channels)):
            blocks = [GreenBlock(here, dropout) for _ in range(MIDDLE_BLOCKS if i else FIRST_BLOCKS)]
            stages.append(nn.Sequential(*blocks, nn.Conv3d(here, coarser, 3, stride=2, padding=1)))
        stages.append(nn.Sequential(*(GreenBlock(channels[-1], dropout) for _ in range(LAST_BLOCKS))))
        self.stem = nn.Conv3d(input_channels, channels[0], 3, padding=1)
        self.stages = nn.Sequential(*stages)
        flat = BOTTLENECK_CHANNELS * math.prod(halvings(box, len(channels))[-1])
        self.bottleneck = nn.Sequential(
            nn.GroupNorm(channels[-1] // CHANNELS_PER_GROUP, channels[-1]),
            nn.LeakyReLU(),
            nn.Conv3d(channels[-1], BOTTLENECK_CHANNELS, 3, padding=1),
            nn.Flatten(),
            nn.Identity() if flat == latent else nn.Linear(flat, latent),
        )

    def forward(self, volume_NCXYZ: Tensor) -> Tensor:
        return self.bottleneck(self.stages(self.stem(volume_NCXYZ)))


class AncestorDecoder(nn.Module):
    """Latents `[N, D]` -> dense volumes `[N, 1, X, Y, Z]`, every voxel of the bounding box.

    Parameters
    ----------
    box, channels, latent
        As the encoder's; the stages run backwards, through the encoder's own extents.
    dropout
        Of the residual blocks.

    Raises
    ------
    MismatchError
        The box is so small that the coarsest stage is one voxel, which its norm would turn into a constant.
    """

    def __init__(self, *, box: Extent, channels: tuple[int, ...], latent: int, dropout: float) -> None:
        super().__init__()
        extents = halvings(box, len(channels))
        coarsest = (BOTTLENECK_CHANNELS, *extents[-1])
        if math.prod(extents[-1]) == 1:
            raise MismatchError(
                f"the mask's bounding box is {'x'.join(map(str, box))} voxels, which {len(channels) - 1} halvings make "
                "one voxel; presets tff and hackathon need an axis of more, choose tiny, base or large"
            )
        self.bottleneck = nn.Sequential(
            nn.Linear(latent, math.prod(coarsest)),
            nn.Unflatten(1, coarsest),
            nn.GroupNorm(BOTTLENECK_CHANNELS, BOTTLENECK_CHANNELS),
            nn.LeakyReLU(),
            nn.Conv3d(BOTTLENECK_CHANNELS, channels[-1], 3, padding=1),
        )
        upward = reversed(list(zip(pairwise(channels), extents, strict=False)))
        self.stages = nn.Sequential(*(Upsample(coarse, fine, extent, dropout) for (fine, coarse), extent in upward))
        self.output = nn.Sequential(
            nn.Conv3d(channels[0], channels[0], 3, padding=1),
            nn.Conv3d(channels[0], 1, 1),
        )

    def forward(self, latent_ND: Tensor) -> Tensor:
        return self.output(self.stages(self.bottleneck(latent_ND)))


class BertLayer(nn.Module):
    """A layer of BERT (Devlin et al. 2019): attention and a GELU network, each followed by the norm of its sum."""

    recomputable = True

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, INTERMEDIATE), nn.Linear(INTERMEDIATE, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPSILON) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSW: Tensor, valid_BS: Tensor) -> Tensor:
        projections = (self.query(x_BSW), self.key(x_BSW), self.value(x_BSW))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projections)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_BS[:, None, None, :], dropout_p=drop)
        x_BSW = self.norm1(x_BSW + self.drop(self.out(mixed.transpose(1, 2).flatten(2))))
        return self.norm2(x_BSW + self.drop(self.outer(F.gelu(self.inner(x_BSW)))))


class Embeddings(nn.Module):
    """BERT's input layer: token plus learned position plus token type 0, normalised.

    `word` is a table that nothing looks up, since the tokens are latents: it gets no gradient.
    """

    def __init__(self, width: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(1, width, padding_idx=0)
        self.position = nn.Embedding(positions, width)
        self.token_type = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.drop = nn.Dropout(dropout)

    def forward(self, token_BSW: Tensor) -> Tensor:
        place_S = torch.arange(token_BSW.shape[1], device=token_BSW.device)
        return self.drop(self.norm(token_BSW + self.position(place_S) + self.token_type(torch.zeros_like(place_S))))


class AncestorSequence(nn.Module):
    """Latents `[B, L, D]` -> contextual latents `[B, L, W]` and pooled CLS `[B, W]`; W = D.

    Parameters
    ----------
    width, depth, heads
        W, layers, H.
    positions
        Learned positions; one is CLS's, so a window has at most `positions - 1` frames. Times do not enter.
    dropout
        Of attention, layers and input.
    """

    def __init__(self, *, width: int, depth: int, heads: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.positions = positions
        self.cls = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU())
        self.embeddings = Embeddings(width, positions, dropout)
        self.blocks = nn.ModuleList(BertLayer(width, heads, dropout) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        for part in (self.embeddings, self.blocks, self.pooler):
            part.apply(_start_as_bert)

    def forward(
        self, latent_BLD: Tensor, valid_BL: Tensor, tr_s_B: Tensor, hidden_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Put frames into context.

        Parameters
        ----------
        latent_BLD
            Frame latents.
        valid_BL
            True where a frame is real; the others are not attended to.
        tr_s_B
            Not used: positions are frame numbers here.
        hidden_BL
            True where a frame's latent is replaced by zeros.

        Raises
        ------
        MismatchError
            More frames than there are positions for.
        """
        num_windows, num_frames, _ = latent_BLD.shape
        if num_frames >= self.positions:
            raise MismatchError(
                f"a window of {num_frames} frames: this transformer has {self.positions} learned positions, one of "
                f"them for CLS; give --window {self.positions - 1} or less, or another preset"
            )
        if hidden_BL is not None:
            latent_BLD = latent_BLD.masked_fill(hidden_BL[..., None], 0.0)
        cls_1W = self.cls(latent_BLD.new_full((1, latent_BLD.shape[2]), CLS_INPUT))
        x_BSW = self.embeddings(torch.cat([cls_1W.expand(num_windows, 1, -1), latent_BLD], dim=1))
        valid_BS = F.pad(valid_BL, (1, 0), value=True)
        for block in self.blocks:
            x_BSW = block(x_BSW, valid_BS)
        return x_BSW[:, 1:], torch.tanh(self.pooler(x_BSW[:, 0]))


def _start_as_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_SD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight)  # the word embedding's only row
