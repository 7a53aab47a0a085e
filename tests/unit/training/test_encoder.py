"""Encoder and decoder: any grid, linear at the start, and starting at the principal components."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.networks.decoder import Decoder
from training.networks.encoder import Encoder, WideLinear, stage_extents
from training.networks.principal import principal_components, start_at_principal_components
from training.networks.volume import Volume


def build(
    mask: NDArray[np.bool_], *, channels: tuple[int, ...] = (8, 16), latent: int = 6
) -> tuple[Volume, Encoder, Decoder]:
    torch.manual_seed(0)
    volume = Volume(mask)
    size = {"crop": volume.crop, "channels": channels, "blocks": 1, "latent": latent}
    return volume, Encoder(**size), Decoder(**size)


def stir(module: nn.Module) -> None:
    """Move every parameter away from its start, so that no branch contributes nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def decaying_data(mask: NDArray[np.bool_], num_frames: int) -> Tensor:
    """Frames `[N, V]` whose singular values fall, with a mean that is not zero."""
    rng = np.random.default_rng(4)
    num_voxels = int(mask.sum())
    rows = rng.standard_normal((num_frames, 40)) * 0.8 ** np.arange(40)
    data = rows @ rng.standard_normal((40, num_voxels)) + 0.1 * rng.standard_normal((num_frames, num_voxels)) + 0.3
    return torch.from_numpy(data.astype("f4"))


def batches(volume: Volume, data_NV: Tensor, size: int) -> Iterator[Tensor]:
    for part in data_NV.split(size):
        yield volume.dense(part)


@pytest.mark.parametrize("channels", [(8, 16), (8, 16, 24)])
@pytest.mark.parametrize("shape", [(6, 10, 10), (40, 20, 1), (1, 9, 7), (1, 1, 1), (2, 3, 5), (34, 40, 33)])
def test_any_grid_goes_forward_and_every_weight_gets_a_gradient(
    shape: tuple[int, int, int], channels: tuple[int, ...]
) -> None:
    volume, encoder, decoder = build(np.ones(shape, bool), channels=channels)
    stir(encoder)
    stir(decoder)
    x_NV = torch.randn(2, math.prod(shape), generator=torch.Generator().manual_seed(2))
    latent = encoder(volume.dense(x_NV))
    assert latent.shape == (2, 6)
    decoded = volume.masked(decoder(latent))
    assert decoded.shape == x_NV.shape
    (decoded - x_NV).square().mean().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_axes_halve_rounding_up_while_they_have_more_than_three_patches() -> None:
    assert stage_extents((9, 10, 3), 4) == [(9, 10, 3), (5, 5, 3), (3, 3, 3), (3, 3, 3)]
    assert stage_extents((10, 5, 1), 3) == [(10, 5, 1), (5, 3, 1), (3, 3, 1)]


def test_encoder_and_decoder_start_linear(mask: NDArray[np.bool_]) -> None:
    volume, encoder, decoder = build(mask)
    a, b = torch.randn(2, 3, volume.num_voxels, generator=torch.Generator().manual_seed(3))
    functions = [(lambda x: encoder(volume.dense(x)), a, b), (decoder, a[:, :6], b[:, :6])]
    with torch.no_grad():
        for function, left, right in functions:
            whole = function(left + right) + function(torch.zeros_like(left))
            torch.testing.assert_close(function(left) + function(right), whole, rtol=1e-4, atol=1e-4)


def test_a_stirred_encoder_and_decoder_are_not_linear(mask: NDArray[np.bool_]) -> None:
    volume, encoder, decoder = build(mask)
    stir(encoder)
    stir(decoder)
    x = torch.randn(3, volume.num_voxels, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for function, value in [(lambda x: encoder(volume.dense(x)), x), (decoder, x[:, :6])]:
            bent = function(2 * value) + function(torch.zeros_like(value)) - 2 * function(value)
            assert bent.abs().max() > 0.01


def test_wide_linear_is_a_linear_layer_with_outputs_of_order_one() -> None:
    torch.manual_seed(0)
    layer = WideLinear(5000, 40)
    x = torch.randn(20, 5000)
    with torch.no_grad():
        output = layer(x).numpy()
    expected = x.numpy().astype(float) @ layer.weight.detach().numpy().T.astype(float) / np.sqrt(5000)
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-4)
    assert 0.8 < output.std() < 1.2


def test_the_start_reaches_the_error_of_the_svd(mask: NDArray[np.bool_]) -> None:
    # 16 voxels a patch and 16 channels: the stem loses nothing
    volume, encoder, decoder = build(mask, channels=(16, 8), latent=7)
    assert math.prod(volume.crop.stride) == 16
    data = decaying_data(mask, 90)
    start_at_principal_components(encoder, decoder, lambda: batches(volume, data, 40))
    with torch.no_grad():
        latent = encoder(volume.dense(data))
        error = (volume.masked(decoder(latent)) - data).square().sum()
    singular = np.linalg.svd(data.numpy().astype(float), compute_uv=False)
    assert float(error) == pytest.approx((singular[7:] ** 2).sum(), rel=1e-3)


def test_latents_start_uncorrelated_with_unit_second_moments(mask: NDArray[np.bool_]) -> None:
    volume, encoder, decoder = build(mask, channels=(16, 8), latent=7)
    data = decaying_data(mask, 90)
    start_at_principal_components(encoder, decoder, lambda: batches(volume, data, 40))
    with torch.no_grad():
        latent = encoder(volume.dense(data))
    torch.testing.assert_close(latent.T @ latent / 90, torch.eye(7), rtol=0, atol=1e-3)


def test_a_narrow_stem_starts_with_the_leading_components_of_patches(mask: NDArray[np.bool_]) -> None:
    volume, encoder, decoder = build(mask, channels=(8, 8), latent=7)
    data = decaying_data(mask, 60)
    start_at_principal_components(encoder, decoder, lambda: batches(volume, data, 60))
    p, q, r = volume.crop.patches
    a, b, c = volume.crop.stride
    dense = volume.dense(data).numpy().reshape(60, p, a, q, b, r, c)
    rows = dense.transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, a * b * c).astype(float)
    leading = np.linalg.svd(rows, full_matrices=False)[2][:8]
    weight = encoder.stem.weight.detach().numpy().reshape(8, -1)
    np.testing.assert_allclose(weight.T @ weight, leading.T @ leading, atol=1e-4)


def test_fewer_frames_than_latents_are_reconstructed_and_leave_latents_at_zero(mask: NDArray[np.bool_]) -> None:
    volume, encoder, decoder = build(mask, channels=(16, 8), latent=12)
    data = decaying_data(mask, 5)
    start_at_principal_components(encoder, decoder, lambda: batches(volume, data, 2))
    with torch.no_grad():
        latent = encoder(volume.dense(data))
        decoded = volume.masked(decoder(latent))
    torch.testing.assert_close(decoded, data, rtol=0, atol=2e-3)
    assert (latent[:, 5:] == 0).all()


def test_components_are_those_of_numpy_and_missing_ones_are_zero_rows_of_sd_one() -> None:
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((30, 4)) * [4, 3, 2, 1]) @ np.linalg.qr(rng.standard_normal((50, 4)))[0].T
    components, scale = principal_components(torch.from_numpy(x.astype("f4")), 9)
    _, singular, rows = np.linalg.svd(x)
    np.testing.assert_allclose(np.abs((components.numpy()[:4] * rows[:4]).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(scale.numpy(), [*(singular[:4] / np.sqrt(30)), 1, 1, 1, 1, 1], rtol=1e-4)
    assert (components[4:] == 0).all()
