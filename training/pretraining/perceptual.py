"""TFF's perceptual loss: how far apart two images are in the first layers of an image classifier.

Axial slices of the reconstruction and of the truth go through VGG16 (Simonyan & Zisserman 2015) as far as relu2_2;
the loss is the mean squared difference after relu1_2 plus that after relu2_2. Written anew; the same loss as TFF's
but for this:

- The weights come from a local file, nothing is downloaded; `training/README.md` says how to make it.
- Nothing is computed that is not used (TFF went on to relu3_3, 49 % of the work, and threw that away), and the first
  layer is applied to one channel, its kernels summed over red, green and blue, instead of to three equal channels.
- What is compared is the residual inside the mask (TFF: z-scored intensity and its background). Outside the mask both
  are 0. As in TFF the values are not brought to ImageNet's mean and SD.
- Every frame gives the same number of slices, and which ones is a pure function of a key instead of a generator's
  state; the loss comes per window.

Shapes: B window, L frame, V voxel, N counted frames of all windows, K drawn slices of a frame, M = N*K slices,
X Y Z the mask's bounding box, P = X*Y pixels of a slice, Q = K*P.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import MismatchError, UsageError
from shards.order import hashes
from training.networks.volume import Volume
from training.pretraining.objectives import window_mean

LAYERS = {"features.0": (64, 3), "features.2": (64, 64), "features.5": (128, 64), "features.7": (128, 128)}
"""Convolutions as far as relu2_2: output and input channels; every kernel is 3x3."""
SLICES_AT_ONCE = 32
STREAM = 7
"""Tells these draws from others with the same key."""


def drawn_slices(key: NDArray[np.int64], *, num_frames: int, num_slices: int, share: float) -> NDArray[np.int64]:
    """Which axial slices of each frame are compared: a pure function, as `training.pretraining.masking.hidden_frames`.

    Parameters
    ----------
    key
        `[window, integers]` that name a window and a step; equal rows give equal draws.
    num_frames
        Frames of a window. A frame's draw depends on its place in the window, not on this.
    num_slices
        Slices of a volume.
    share
        Of the slices to draw, in (0, 1]; at least one is.

    Returns
    -------
    ndarray of int64, (window, frame, slice)
        Different slices within a frame.
    """
    count = max(1, round(share * num_slices))
    draws = [hashes(num_frames * num_slices, *row, STREAM).reshape(num_frames, num_slices) for row in key.tolist()]
    order = np.argsort(np.asarray(draws).reshape(len(key), num_frames, num_slices), axis=2, kind="stable")
    return order[:, :, :count].astype(np.int64)


class Perceptual(nn.Module):
    """The loss with its frozen weights, float32. They are in no state dict, so no checkpoint carries them.

    Parameters
    ----------
    file
        VGG16's first four convolutions in safetensors, under torchvision's names; other tensors are left alone.
    share
        Share of a frame's axial slices that is compared.

    Raises
    ------
    UsageError
        The file cannot be read, or lacks a tensor, or one has another shape.
    """

    def __init__(self, file: Path, share: float) -> None:
        super().__init__()
        self.share = share
        for index, (weight, bias) in enumerate(_read_layers(file)):
            self.register_buffer(f"weight{index}", weight if index else weight.sum(1, keepdim=True), persistent=False)
            self.register_buffer(f"bias{index}", bias, persistent=False)

    def loss(
        self,
        volume: Volume,
        reconstruction_BLV: Tensor,
        residual_BLV: Tensor,
        counted_BL: Tensor,
        key: NDArray[np.int64],
    ) -> Tensor:
        """Loss of each window, `[B]` float32: mean over its counted frames, 0 where there are none.

        Parameters
        ----------
        volume
            Where the voxels lie.
        reconstruction_BLV, residual_BLV
            What the model gave, and the truth, which gets no gradient.
        counted_BL
            Frames that count; nothing is computed for the others.
        key
            `[B, integers]`, as of `drawn_slices`.

        Raises
        ------
        MismatchError
            A slice of the mask's bounding box is less than 2 voxels wide, too small for VGG16.
        """
        width, height, depth = volume.crop.box
        if min(width, height) < 2:
            raise MismatchError(
                f"the mask's bounding box is {width}x{height}x{depth} voxels; the perceptual loss needs axial slices "
                "of at least 2x2, set --perceptual_weight 0"
            )
        drawn_BLK = drawn_slices(key, num_frames=counted_BL.shape[1], num_slices=depth, share=self.share)
        drawn_NK = torch.from_numpy(drawn_BLK).to(counted_BL.device)[counted_BL]
        voxel_NQ = _voxels_of_slices(volume)[drawn_NK].flatten(1)
        own_NQ, true_NQ = (_values_at(x[counted_BL].float(), voxel_NQ) for x in (reconstruction_BLV, residual_BLV))
        images = (x_NQ.view(-1, width, height) for x_NQ in (own_NQ, true_NQ))
        loss_BL = torch.zeros(counted_BL.shape, device=counted_BL.device)
        loss_BL[counted_BL] = _SliceLoss.apply(self, *images).view(drawn_NK.shape).mean(1)
        return window_mean(loss_BL, counted_BL)

    def features(self, image_MXY: Tensor) -> tuple[Tensor, Tensor]:
        """Activations after relu1_2 `[M, 64, X, Y]` and relu2_2 `[M, 128, X/2, Y/2]` of grey images."""
        layers = [(self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")) for i in range(len(LAYERS))]
        first = _convolutions(image_MXY[:, None], layers[:2])
        return first, _convolutions(F.max_pool2d(first, 2), layers[2:])

    def distance(self, image_MXY: Tensor, truth_MXY: Tensor) -> Tensor:
        """Loss of each image, `[M]`."""
        pairs = zip(self.features(image_MXY), self.features(truth_MXY), strict=True)
        return torch.stack([(own - true).square().mean((1, 2, 3)) for own, true in pairs]).sum(0)


class _SliceLoss(torch.autograd.Function):
    """`Perceptual.distance`, a few slices at a time.

    The loss of a slice depends on that slice alone, so its gradient is taken at once and is all that is kept: memory
    does not grow with VGG16's activations, which are two hundred times the slices, and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, perceptual: Perceptual, image_MXY: Tensor, truth_MXY: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1]
        loss_M = image_MXY.new_empty(len(image_MXY))
        gradient_MXY = torch.empty_like(image_MXY) if wanted else None
        for first in range(0, len(image_MXY), SLICES_AT_ONCE):
            part = slice(first, first + SLICES_AT_ONCE)
            with torch.set_grad_enabled(wanted):
                own = image_MXY[part].detach().requires_grad_(wanted)
                loss = perceptual.distance(own, truth_MXY[part])
                if gradient_MXY is not None:
                    (gradient_MXY[part],) = torch.autograd.grad(loss.sum(), own)
            loss_M[part] = loss.detach()
        ctx.save_for_backward(gradient_MXY)
        return loss_M

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient_MXY,) = ctx.saved_tensors
        return None, gradient_MXY * outer[0][:, None, None], None


def _convolutions(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    for weight, bias in layers:
        x = F.relu(F.conv2d(x, weight, bias, padding=1), inplace=True)
    return x


def _voxels_of_slices(volume: Volume) -> Tensor:
    """Voxel of each pixel of each axial slice of the bounding box, `[Z, P]`; V where there is none."""
    x, y, z = volume.crop.box
    return volume.lookup.view(volume.crop.shape)[:x, :y, :z].permute(2, 0, 1).flatten(1)


def _values_at(values_NV: Tensor, voxel_NQ: Tensor) -> Tensor:
    """Masked values of each frame at voxels `[N, Q]`, 0 where the voxel is V."""
    background_N1 = values_NV.new_zeros(values_NV.shape[0], 1)
    return torch.cat([values_NV, background_N1], dim=1).gather(1, voxel_NQ)


def _read_layers(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer, float32, checked."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    if not file.is_file():
        raise UsageError(f"--perceptual_file {file}: no such file; make it as training/pretraining/perceptual.py says")
    try:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a dict
                if name.rpartition(".")[0] in LAYERS:
                    found[name] = stored.get_tensor(name)
    except OSError as error:
        raise UsageError(f"--perceptual_file {file}: {error.strerror or error}; give a file that can be read") from None
    except SafetensorError as error:
        raise UsageError(
            f"--perceptual_file {file}: not a safetensors file ({error}); training/README.md says how to make it"
        ) from None
    layers = []
    for layer, (out, into) in LAYERS.items():
        wanted = {f"{layer}.weight": (out, into, 3, 3), f"{layer}.bias": (out,)}
        for name, shape in wanted.items():
            _check_tensor(file, name, found.get(name), shape)
        weight, bias = (found[name].float() for name in wanted)
        layers.append((weight, bias))
    return layers


def _check_tensor(file: Path, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is None:
        raise UsageError(
            f"--perceptual_file {file}: holds no {name}; needed are weight and bias of {', '.join(LAYERS)} under "
            "torchvision's names for VGG16"
        )
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise UsageError(
            f"--perceptual_file {file}: {name} is {tensor.dtype} {tuple(tensor.shape)}, VGG16's is {shape} in floating "
            "point; this is another network"
        )
