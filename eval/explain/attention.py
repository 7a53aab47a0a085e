"""How far back, or ahead, each head of the transformer looks.

The weights are computed from the queries and keys that the model itself hands to `scaled_dot_product_attention`, with
the mask it hands over, while its own `forward` runs: nothing of the transformer is rebuilt here.

Shapes: L frame, S = L + 1 tokens (CLS first), H head, N layer, G = 2 L - 1 lags from -(L - 1) to L - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from eval.explain.choice import Window
from eval.explain.gradients import answers
from eval.scoring.metrics import Floats

if TYPE_CHECKING:
    from torch import Tensor, nn

    from training.networks.model import BoldModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Attention weights by lag, added up over the frames of some windows.

    Attributes
    ----------
    weight_NHG : numpy.ndarray, shape (N, H, G)
        Sum of the weights of keys at each lag (key minus query, in frames).
    count_G : numpy.ndarray, shape (G,)
        Pairs of query and key that may see each other, by lag.
    cls_NH : numpy.ndarray, shape (N, H)
        Sum of the weights that frames give to the CLS token.
    num_queries : float
        Frames that looked.
    """

    weight_NHG: Floats
    count_G: Floats
    cls_NH: Floats
    num_queries: float

    @property
    def mean_NHG(self) -> Floats:
        """Mean weight of a key at each lag; nan at lags that no query sees."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(self.count_G > 0, self.weight_NHG / self.count_G, np.nan))

    @property
    def lags(self) -> Floats:
        """Lag of each column in frames, negative is the past."""
        reach = len(self.count_G) // 2
        return np.arange(-reach, reach + 1, dtype=np.float64)


def attention_over_time(model: nn.Module, windows: Sequence[Window]) -> Attention:
    """Attention weights of a phase-3 model on some windows, by lag.

    Parameters
    ----------
    model : torch.nn.Module
        `BoldModel` of phase 3 in evaluation mode.
    windows : sequence of Window
        At least one.
    """
    import torch

    device = next(model.parameters()).device
    found = []
    for window in windows:
        weights: list[Tensor] = []
        seen: list[Tensor] = []
        with torch.no_grad(), _watch(weights, seen):
            answers(model, window, torch.from_numpy(window.residual_LV).to(device)[None])
        found.append(_by_lag(torch.cat(weights).double().cpu().numpy(), seen[0][0, 0].cpu().numpy()))
    return add_up(found)


def add_up(parts: Sequence[Attention]) -> Attention:
    """The same of all windows; shorter ones count at the lags that they have."""
    reach = max(len(part.count_G) for part in parts) // 2

    def widened(values: Floats) -> Floats:
        missing = reach - values.shape[-1] // 2
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(missing, missing)])

    return Attention(
        weight_NHG=np.sum([widened(part.weight_NHG) for part in parts], axis=0),
        count_G=np.sum([widened(part.count_G) for part in parts], axis=0),
        cls_NH=np.sum([part.cls_NH for part in parts], axis=0),
        num_queries=sum(part.num_queries for part in parts),
    )


def attention_matters(model: nn.Module) -> bool:
    """Whether the transformer reaches the head: its last projection starts at zero, and stays so if untrained."""
    network = cast("BoldModel", model)
    if network.size.family == "ancestor" or network.pool.pool == "cls":
        return True
    last = "sequence.onward.weight" if network.size.causal else "sequence.outward.weight"
    return bool(network.get_parameter(last).abs().max() > 0)


def _by_lag(weight_NHSS: Floats, seen_SS: Any) -> Attention:
    """Sums over the frames of one window."""
    frames_NHLL, seen_LL = weight_NHSS[..., 1:, 1:], seen_SS[1:, 1:]
    length = len(seen_LL)
    lags = range(1 - length, length)
    return Attention(
        weight_NHG=np.stack([np.trace(frames_NHLL, lag, axis1=2, axis2=3) for lag in lags], axis=-1),
        count_G=np.array([np.trace(seen_LL, lag) for lag in lags], dtype=np.float64),
        cls_NH=weight_NHSS[:, :, 1:, 0].sum(-1),
        num_queries=float(length),
    )


def _watch(weights: list[Tensor], seen: list[Tensor]) -> Any:
    """A mode in which each call of attention leaves its weights `(1, H, S, S)` and its mask behind."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is scaled_dot_product_attention:
                q, k, _ = args
                score = q.double() @ k.double().mT / q.shape[-1] ** 0.5
                mask = kwargs["attn_mask"].expand(1, 1, *score.shape[-2:])
                weights.append(torch.softmax(score.masked_fill(~mask, float("-inf")), dim=-1))
                seen.append(mask)
            return func(*args, **kwargs)

    return Watch()
