"""Moments over time: against numpy, under time reversal, padding and averaging."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.networks.pooling import Pool, feature_groups, moments

GROUPS = {group.name: slice(group.start, group.stop) for group in feature_groups("moments", 4, 8)}


def full(*shape: int) -> torch.Tensor:
    return torch.full((shape[0],), shape[1])


def test_moments_equal_numpy() -> None:
    x = torch.randn(2, 9, 4)
    found = moments(x, torch.tensor([9, 6]))
    for row, length in enumerate((9, 6)):
        series = x[row, :length].double().numpy()
        for lag in range(4):
            product = series[lag:].T @ series[: length - lag] / (length - lag)
            if lag < 3:
                i, j = np.triu_indices(4)
                expected = ((product + product.T) / 2)[i, j] * np.where(i == j, 1, np.sqrt(2))
                assert np.allclose(found[row, GROUPS[f"sym{lag}"]], expected, atol=1e-5)
            if lag > 0:
                i, j = np.triu_indices(4, 1)
                expected = ((product - product.T) / 2)[i, j] * np.sqrt(2)
                assert np.allclose(found[row, GROUPS[f"anti{lag}"]], expected, atol=1e-5)
        assert np.allclose(found[row, GROUPS["mean"]], series.mean(0), atol=1e-6)


def test_time_reversal_flips_antisymmetric_moments_and_nothing_else() -> None:
    x = torch.randn(3, 20, 4)
    forward, backward = moments(x, full(3, 20)), moments(x.flip(1), full(3, 20))
    for name, columns in GROUPS.items():
        sign = -1 if name.startswith("anti") else 1
        assert torch.allclose(backward[:, columns], sign * forward[:, columns], atol=1e-5), name


def test_padding_changes_nothing() -> None:
    x = torch.randn(2, 12, 4)
    padded = torch.cat([x, 50 * torch.randn(2, 6, 4)], dim=1)
    assert torch.allclose(moments(padded, full(2, 12)), moments(x, full(2, 12)), atol=1e-6)


@pytest.mark.parametrize("num_valid", [0, 1, 2])
def test_windows_too_short_for_a_lag_give_zeros_there(num_valid: int) -> None:
    found = moments(torch.randn(1, 5, 4), torch.tensor([num_valid]))
    assert found.isfinite().all()
    assert not found[:, GROUPS["anti3"]].any()


def test_windows_average_to_the_runs_own_covariance() -> None:
    run = torch.randn(40, 4)
    run -= run.mean(0)
    windows = moments(run.view(4, 10, 4), full(4, 10))[:, GROUPS["sym0"]].mean(0)
    covariance = np.cov(run.numpy().T, ddof=0)
    i, j = np.triu_indices(4)
    assert np.allclose(windows, covariance[i, j] * np.where(i == j, 1, np.sqrt(2)), atol=1e-5)


def test_whitening_makes_the_cohorts_covariance_the_identity() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((500, 4)) @ rng.standard_normal((4, 4)) + 3).float()
    pool = Pool(pool="moments", latent=4, width=8)
    pool.fit_whitening(x.mean(0), torch.from_numpy(np.cov(x.numpy().T, ddof=0)))
    white = pool.raw(x[None], torch.zeros(1, 8), torch.tensor([500]))
    identity = np.eye(4)[np.triu_indices(4)]
    assert np.allclose(white[0, GROUPS["sym0"]], identity, atol=1e-3)


def test_directions_without_variance_become_zero() -> None:
    pool = Pool(pool="moments", latent=2, width=8)
    pool.fit_whitening(torch.zeros(2), torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert pool.whiten.isfinite().all()
    assert float(pool.whiten.abs().sum()) == pytest.approx(0.5)


def test_order_names_the_later_dimension_of_each_feature() -> None:
    groups = {group.name: group for group in feature_groups("moments", 3, 8)}
    assert groups["mean"].order == (0, 1, 2)
    assert groups["sym1"].order == (0, 1, 2, 1, 2, 2)
    assert groups["anti1"].order == (1, 2, 2)


@pytest.mark.parametrize(("pool", "num_features"), [("cls", 8), ("mean", 4), ("moments", 4 + 3 * 10 + 3 * 6)])
def test_width_of_each_pool(pool: str, num_features: int) -> None:
    made = Pool(pool=pool, latent=4, width=8)
    assert made(torch.randn(2, 6, 4), torch.randn(2, 8), full(2, 6)).shape == (2, num_features)
