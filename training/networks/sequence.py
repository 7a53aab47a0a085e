"""The transformer over the frames of a window.

One transformer, two ways to attend. In both directions, some frames hidden: contextual latent = latent +
projection(transformer), the projection starting at zero. Backwards only (causal): what each frame's latent is
expected to be from the frames before it, starting at zero as well; every frame teaches, none has to be
hidden, and what is learned is what phase 3 needs: the part of the signal that follows from the past is
free of the noise of single frames, and it has a direction in time (`filtered`). The width of the token stream
stays D, so that moments over time stay few. Positions are times in seconds (rotary), so cohorts of different
repetition times mix.

Shapes: B window, L frame, S = L + 1 tokens (CLS first), D latent, W width, H heads, E = W / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORTEST_PERIOD_S = 1.0
LONGEST_PERIOD_S = 512.0
NEIGHBOUR_S = 2.0
"""Distance in time that the first heads start looking at."""
SHARPNESS = 2.0
"""Size of the constant part of queries and keys at the start."""
GAIN = 1 / 3
"""Weight of what a frame shows against what was expected of it; see `filtered`."""


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
    """Multi-head self-attention with rotary positions in seconds; `seen_BQS` says which token sees which."""

    frequencies: Tensor

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("frequencies", rotary_frequencies(width // heads), persistent=False)
        self._look_around()

    def forward(self, x_BSW: Tensor, time_s_BS: Tensor, seen_BQS: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x_BSW).chunk(3, -1))
        q, k = (rotate(t, time_s_BS, self.frequencies) for t in (q, k))
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BQS[:, None], dropout_p=drop)
        return self.out(mixed.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def _look_around(self) -> None:
        """Start with heads that look 2 s back, 2 s ahead, 4 s back, 4 s ahead, ...

        Their queries and keys start with a constant part, which rotates with time, so that attention peaks where key
        and query are so far apart. From weights that attend to everything alike, it takes hundreds of steps to find
        out that what was measured next to a hidden frame says most about it.
        """
        width = self.out.in_features
        head_H = torch.arange(self.heads, device=self.qkv.bias.device)
        offset_s_H = NEIGHBOUR_S * (head_H // 2 + 1) * torch.where(head_H % 2 == 0, -1.0, 1.0)
        angle_HF = offset_s_H[:, None] * self.frequencies
        query_HE = torch.cat([angle_HF.cos(), angle_HF.sin()], dim=1)
        key_HE = torch.cat([torch.ones_like(angle_HF), torch.zeros_like(angle_HF)], dim=1)
        self.qkv.bias[: 2 * width] = SHARPNESS * torch.cat([query_HE.flatten(), key_HE.flatten()])


class Block(nn.Module):
    """Pre-norm transformer layer."""

    recomputable = True

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BSW: Tensor, time_s_BS: Tensor, seen_BQS: Tensor) -> Tensor:
        x_BSW = x_BSW + self.drop(self.attention(self.norm1(x_BSW), time_s_BS, seen_BQS))
        return x_BSW + self.drop(self.mlp(self.norm2(x_BSW)))


class Sequence(nn.Module):
    """Latents `[B, L, D]` -> contextual or expected latents `[B, L, D]` and CLS output `[B, W]`.

    Parameters
    ----------
    latent, width, depth, heads, dropout
        D, W, layers, H, and dropout of attention and layers.
    causal
        Whether there is a second projection, for expected latents.
    """

    def __init__(
        self, *, latent: int, width: int, depth: int, heads: int, dropout: float, causal: bool = False
    ) -> None:
        super().__init__()
        self.mask_latent = nn.Parameter(0.02 * torch.randn(latent))  # not 0: its direction has a gradient
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.inward = nn.Linear(latent, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, latent)
        self.onward = nn.Linear(width, latent) if causal else None
        for projection in (self.outward, self.onward):
            if projection is not None:
                nn.init.zeros_(projection.weight)
                nn.init.zeros_(projection.bias)

    def forward(
        self,
        latent_BLD: Tensor,
        valid_BL: Tensor,
        tr_s_B: Tensor,
        hidden_BL: Tensor | None = None,
        *,
        causal: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Put frames into context, or expect each from those before it.

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
        causal
            Give expected latents: of a frame from the frames before it, of the first one from nothing.
        """
        if hidden_BL is not None:
            latent_BLD = torch.where(hidden_BL[..., None], self.mask_latent.to(latent_BLD.dtype), latent_BLD)
        num_windows, num_frames = valid_BL.shape
        frame = torch.arange(num_frames, device=tr_s_B.device)
        time_s_BL = tr_s_B[:, None] * frame
        time_s_BS = F.pad(time_s_BL, (1, 0))
        seen_BQS = F.pad(valid_BL, (1, 0), value=True)[:, None].expand(-1, num_frames + 1, -1)
        if causal:
            seen_BQS = seen_BQS.tril()
        cls_B1W = self.cls.expand(num_windows, 1, -1)
        x_BSW = torch.cat([cls_B1W, self.inward(latent_BLD)], dim=1)
        for block in self.blocks:
            x_BSW = block(x_BSW, time_s_BS, seen_BQS)
        x_BSW = self.norm(x_BSW)
        if causal:
            assert self.onward is not None, "built without causal=True"
            return self.onward(x_BSW[:, :-1]), x_BSW[:, 0]
        return latent_BLD + self.outward(x_BSW[:, 1:]), x_BSW[:, 0]


def filtered(latent_BLD: Tensor, expected_BLD: Tensor) -> Tensor:
    """Expectation corrected by a third of the surprise: the update of a Kalman filter, with a constant gain.

    Without training the expectation is 0 and the result a third of the latent, the same up to a scale that
    whitening takes away: so phase 3 can start from phase 1, too.
    """
    return expected_BLD + GAIN * (latent_BLD - expected_BLD)
