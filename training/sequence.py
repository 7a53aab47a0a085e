"""The transformer over the frames of a window.

Contextual latent = latent + projection(transformer), the projection starting at zero: with no
training the token stream is the encoder's, and its width stays D, so that moments over time stay
few. Positions are times in seconds (rotary), so cohorts of different repetition times mix.

Shapes: B window, L frame, S = L + 1 tokens (CLS first), D latent, W width, H heads, E = W / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORTEST_PERIOD_S = 1.0
LONGEST_PERIOD_S = 512.0


def rotary_frequencies(head_width: int) -> Tensor:
    """Angular frequencies in rad/s, `[E / 2]`, periods geometric from 1 s to 512 s."""
    periods = torch.logspace(0, 1, head_width // 2, base=LONGEST_PERIOD_S / SHORTEST_PERIOD_S)
    return 2 * torch.pi / (SHORTEST_PERIOD_S * periods)


def rotate(x_BHSE: Tensor, time_s_BS: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021) with positions in seconds; float32 angles."""
    angle = time_s_BS[:, None, :, None].float() * frequencies
    cos, sin = angle.cos(), angle.sin()
    even, odd = x_BHSE.float().chunk(2, dim=-1)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1).to(x_BHSE.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions in seconds and a padding mask."""

    frequencies: Tensor

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("frequencies", rotary_frequencies(width // heads), persistent=False)

    def forward(self, x_BSW: Tensor, time_s_BS: Tensor, valid_BS: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x_BSW).chunk(3, -1))
        q, k = (rotate(t, time_s_BS, self.frequencies) for t in (q, k))
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_BS[:, None, None, :], dropout_p=drop)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSW: Tensor, time_s_BS: Tensor, valid_BS: Tensor) -> Tensor:
        x_BSW = x_BSW + self.drop(self.attention(self.norm1(x_BSW), time_s_BS, valid_BS))
        return x_BSW + self.drop(self.mlp(self.norm2(x_BSW)))


class Sequence(nn.Module):
    """Latents `[B, L, D]` -> contextual latents `[B, L, D]` and CLS output `[B, W]`.

    Parameters
    ----------
    latent, width, depth, heads, dropout
        D, W, layers, H, and dropout of attention and layers.
    """

    def __init__(self, *, latent: int, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.mask_latent = nn.Parameter(0.02 * torch.randn(latent))  # not 0: its direction has a gradient
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.inward = nn.Linear(latent, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, latent)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

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
            Repetition time of each window in seconds.
        hidden_BL
            True where a frame's latent is replaced by the learned mask latent.
        """
        if hidden_BL is not None:
            latent_BLD = torch.where(hidden_BL[..., None], self.mask_latent.to(latent_BLD.dtype), latent_BLD)
        num_windows, num_frames = valid_BL.shape
        frame = torch.arange(num_frames, device=tr_s_B.device)
        time_s_BL = tr_s_B[:, None] * frame
        time_s_BS = F.pad(time_s_BL, (1, 0))
        valid_BS = F.pad(valid_BL, (1, 0), value=True)
        cls_B1W = self.cls.expand(num_windows, 1, -1)
        x_BSW = torch.cat([cls_B1W, self.inward(latent_BLD)], dim=1)
        for block in self.blocks:
            x_BSW = block(x_BSW, time_s_BS, valid_BS)
        x_BSW = self.norm(x_BSW)
        return latent_BLD + self.outward(x_BSW[:, 1:]), x_BSW[:, 0]
