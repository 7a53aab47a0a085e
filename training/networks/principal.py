"""Where phase 1 starts: the principal components of the training frames, in closed form.

The encoder and the decoder begin linear (see `encoder`), so their trunks can be solved instead of
searched: the stem becomes the principal components of all patches, the trunk those of the frames
that the stem sees, scaled to unit variance; the decoder is the transpose. Gradients then only have
to find what is not linear.

Shapes: N frame, K voxels of a patch, C stem channel, P Q R patches, F = C*P*Q*R, D latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.networks.decoder import Decoder
from training.networks.encoder import Encoder


@torch.no_grad()
def start_at_principal_components(encoder: Encoder, decoder: Decoder, volumes: Callable[[], Iterable[Tensor]]) -> None:
    """Set stem, trunks and output layer to the principal components of some frames.

    Parameters
    ----------
    encoder, decoder
        As initialised; their towers keep contributing nothing.
    volumes
        Gives the frames as batches `[N, 1, X, Y, Z]`; called twice, must give the same both times.
    """
    stem, output = encoder.stem, decoder.to_patches
    basis_CK = _leading_rows(_patch_scatter(stem, volumes()), stem.out_channels)
    _assign(stem.weight, basis_CK.view_as(stem.weight))
    _assign(stem.bias, 0)
    _assign(output.weight, basis_CK.T.reshape(output.weight.shape))
    _assign(output.bias, 0)

    seen_NF = torch.cat([stem(volume).flatten(1) for volume in volumes()])
    components_DF, scale_D = principal_components(seen_NF, encoder.trunk.out_features)
    _assign(encoder.trunk.weight, components_DF / scale_D[:, None] * encoder.trunk.in_features**0.5)
    _assign(encoder.trunk.bias, 0)
    _assign(decoder.trunk.weight, (components_DF * scale_D[:, None]).T)
    _assign(decoder.trunk.bias, 0)


def principal_components(x_NF: Tensor, num_components: int) -> tuple[Tensor, Tensor]:
    """Orthonormal leading components `[D, F]` of rows about zero, and the SD along each, `[D]`.

    Where the rows do not span `num_components` dimensions the rest are zero rows of SD 1.
    """
    num_rows = x_NF.shape[0]
    eigenvalues, vectors_ND = torch.linalg.eigh((x_NF @ x_NF.T).double())
    order = torch.arange(num_rows - 1, max(num_rows - num_components, 0) - 1, -1)
    eigenvalues, vectors_ND = eigenvalues[order], vectors_ND[:, order]
    kept = eigenvalues > 1e-6 * eigenvalues[0].clamp(min=1e-12)
    norm = eigenvalues[kept].sqrt()
    found = (vectors_ND[:, kept] / norm).T.float() @ x_NF
    components = x_NF.new_zeros(num_components, x_NF.shape[1])
    scale = x_NF.new_ones(num_components)
    components[: len(found)] = _oriented(found)
    scale[: len(found)] = (norm / num_rows**0.5).float()
    return components, scale


def _patch_scatter(stem: nn.Conv3d, volumes: Iterable[Tensor]) -> Tensor:
    """Second moments `[K, K]` of the voxels of a patch, over all patches and frames."""
    a, b, c = stem.stride
    num_voxels = a * b * c
    scatter = torch.zeros(num_voxels, num_voxels, device=stem.weight.device)
    for volume in volumes:
        patches = volume.squeeze(1).unflatten(1, (-1, a)).unflatten(3, (-1, b)).unflatten(5, (-1, c))
        rows = patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, num_voxels)
        scatter += rows.T @ rows
    return scatter


def _leading_rows(scatter_KK: Tensor, count: int) -> Tensor:
    """Leading eigenvectors as rows `[count, K]`; zero rows past K."""
    vectors = torch.linalg.eigh(scatter_KK.double()).eigenvectors.flip(1).T.float()
    rows = scatter_KK.new_zeros(count, scatter_KK.shape[0])
    rows[: len(vectors)] = _oriented(vectors[:count])
    return rows


def _oriented(rows: Tensor) -> Tensor:
    """Rows with their sign such that the largest entry is positive: which one a solver gives differs by machine."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * torch.where(largest < 0, -1.0, 1.0)


def _assign(parameter: Tensor | None, value: Tensor | float) -> None:
    assert parameter is not None
    parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype, device=parameter.device).expand_as(parameter))
