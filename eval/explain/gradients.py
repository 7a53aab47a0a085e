"""Integrated gradients of a phase-3 model with respect to the residual of a window (Sundararajan et al. 2017).

The path runs from residual 0, which is the subject's mean image in every frame, to the window. The integral over it
is taken at Gauss-Legendre points: exact, where the output is a polynomial of the signal of a degree below twice their
number (features of second moments are nearly one of degree 2). SmoothGrad-squared (Smilkov et al. 2017; Hooker et al.
2019) is the mean square of attributions of noisy copies of the window.

Shapes: P point, L frame, V voxel, K output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from eval.explain.choice import Window
from eval.scoring.metrics import Floats

if TYPE_CHECKING:
    from torch import Tensor, nn

NOISE_SD = 0.2
"""SD of the noise of SmoothGrad, in units of each voxel's SD over its run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowAttribution:
    """What the voxels of one window contribute.

    Attributes
    ----------
    signed_KV : numpy.ndarray, shape (K, V)
        Integrated gradients of each output, summed over frames, in units of the output.
    squared_V : numpy.ndarray, shape (V,)
        SmoothGrad-squared of one combination of the outputs, summed over frames, in squared units of it.
    output_K, change_K : numpy.ndarray, shape (K,)
        The model's output, and how far it is from the output at residual 0.
    """

    signed_KV: Floats
    squared_V: Floats
    output_K: Floats
    change_K: Floats


def attribute(
    model: nn.Module,
    window: Window,
    combination_K: Sequence[float],
    *,
    steps: int,
    noise_samples: int,
    batch_size: int,
    seed: int,
) -> WindowAttribution:
    """Attribute the outputs of a window to its voxels.

    Parameters
    ----------
    model : torch.nn.Module
        `BoldModel` of phase 3 in evaluation mode; its `forward` is what is differentiated.
    window : Window
        One window of one run.
    combination_K : sequence of float, length K
        Weight of each output in what is squared.
    steps : int
        Points of each path.
    noise_samples : int
        Noisy copies of the window; 0 squares the attributions of the window itself.
    batch_size : int
        Points in one pass; changes speed and memory only.
    seed : int
        Of the noise.
    """
    device = next(model.parameters()).device
    residual_LV = torch.from_numpy(window.residual_LV).to(device)
    signed_KLV = integrated_gradients(model, window, residual_LV, steps=steps, batch_size=batch_size)
    weight_K = torch.tensor(combination_K, dtype=signed_KLV.dtype, device=device)
    noise = np.random.default_rng((seed, window.run, window.start))
    squared_V = torch.zeros(residual_LV.shape[1], dtype=signed_KLV.dtype, device=device)
    for _ in range(noise_samples):
        drawn = NOISE_SD * noise.standard_normal(window.residual_LV.shape, dtype=np.float32)
        noisy_LV = residual_LV + torch.from_numpy(drawn).to(device)
        found_KLV = integrated_gradients(model, window, noisy_LV, steps=steps, batch_size=batch_size)
        squared_V += torch.einsum("k,klv->lv", weight_K, found_KLV).square().sum(0) / noise_samples
    if not noise_samples:
        squared_V += torch.einsum("k,klv->lv", weight_K, signed_KLV).square().sum(0)
    with torch.no_grad():
        ends_PK = answers(model, window, torch.stack([residual_LV, torch.zeros_like(residual_LV)])).double()
    return WindowAttribution(
        signed_KV=signed_KLV.sum(1).cpu().numpy(),
        squared_V=squared_V.cpu().numpy(),
        output_K=ends_PK[0].cpu().numpy(),
        change_K=(ends_PK[0] - ends_PK[1]).cpu().numpy(),
    )


def integrated_gradients(
    model: nn.Module, window: Window, residual_LV: Tensor, *, steps: int, batch_size: int
) -> Tensor:
    """Attributions `(K, L, V)`, float64, of each output to each value of a residual, by the path from 0."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alpha_P = torch.tensor((nodes + 1) / 2, dtype=residual_LV.dtype, device=residual_LV.device)
    weight_P = torch.tensor(weights / 2, dtype=torch.float64, device=residual_LV.device)
    total: Tensor | None = None
    for first in range(0, steps, batch_size):
        part_P = alpha_P[first : first + batch_size]
        points_PLV = (part_P[:, None, None] * residual_LV).requires_grad_()
        output_PK = answers(model, window, points_PLV)
        num_outputs = output_PK.shape[1]
        gradients = [
            torch.autograd.grad(output_PK[:, k].sum(), points_PLV, retain_graph=k < num_outputs - 1)[0]
            for k in range(num_outputs)
        ]
        found = torch.einsum("p,kplv->klv", weight_P[first : first + batch_size], torch.stack(gradients).double())
        total = found if total is None else total + found
    assert total is not None, "steps is at least 1"
    return total * residual_LV.double()


def answers(model: nn.Module, window: Window, points_PLV: Tensor) -> Tensor:
    """Outputs `(P, K)` of residuals in the place of a window's own; differentiable."""
    num_points, _, num_voxels = points_PLV.shape
    device = points_PLV.device

    def same(value: npt.NDArray[np.float32] | None) -> Tensor | None:
        return None if value is None else torch.as_tensor(value, device=device).expand(num_points, num_voxels)

    found: Tensor = model(
        q=points_PLV,
        gain=torch.ones(num_points, num_voxels, device=device),
        shift=None,
        num_valid=torch.full((num_points,), len(window.residual_LV), device=device),
        tr_s=torch.full((num_points,), window.tr_s, device=device),
        level=same(window.level_V),
        spread=same(window.spread_V),
    )["output"]
    return found
