"""The probe of direction against scikit-learn, and what it must not be able to see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from shards.errors import UsageError
from training import reversal
from training.networks.model import BoldModel
from training.presets import Architecture
from training.reversal import ORDER, PENALTIES, STATIC, Pairs, fit_direction, in_context, shuffled, window_starts

SIZE = Architecture(latent=8, channels=(8, 8), blocks=1, width=16, depth=2, heads=2, dropout=0.0)


def rotating(num_units: int, angle_rad: float, *, windows: int = 6, frames: int = 20, seed: int = 0) -> Pairs:
    """Windows of a process that turns in the plane of each two dimensions, the same way for every unit."""
    rng = np.random.default_rng(seed)
    turn = np.zeros((6, 6))
    for k in (0, 2, 4):
        turn[k, k + 1], turn[k + 1, k] = angle_rad, -angle_rad
    step, keep = expm(turn), 0.8
    x = rng.standard_normal((num_units * windows, 6))
    series = []
    for _ in range(frames):
        x = keep * x @ step + (1 - keep**2) ** 0.5 * rng.standard_normal(x.shape)
        series.append(x)
    forward = np.stack(series, axis=1).astype(np.float32)
    unit = np.repeat([f"s{k:02d}" for k in range(num_units)], windows)
    return Pairs(unit=unit, tr_s=np.full(len(unit), 2, np.float32), forward=forward, backward=forward[:, ::-1])


@pytest.mark.parametrize("num_features", [5, 60])
def test_the_ridge_and_its_left_out_units_are_those_of_scikit_learn_on_both_directions(num_features):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, num_features)) + 0.3
    unit = np.repeat(["a", "b", "c", "d"], 6)
    penalty, error, weight = reversal._fit(x, np.ones(num_features), unit)
    norm = (x**2).sum(1).mean()
    both, target, groups = np.concatenate([x, -x]), np.repeat([1.0, -1.0], 24), np.tile(unit, 2)
    errors = []
    for candidate in PENALTIES:
        # every window stands twice, so the penalty does as well
        oracle = Ridge(alpha=2 * candidate * norm, fit_intercept=False)
        left_out = cross_val_predict(oracle, both, target, groups=groups, cv=LeaveOneGroupOut())
        errors.append(((left_out - target) ** 2).mean())
    assert penalty == PENALTIES[int(np.argmin(errors))]
    assert error == pytest.approx(min(errors))
    assert np.allclose(weight, Ridge(alpha=2 * penalty * norm, fit_intercept=False).fit(both, target).coef_)


def test_an_irreversible_process_is_told_on_unseen_units():
    probe = fit_direction(rotating(12, 0.5), ORDER)
    assert (probe.score(rotating(12, 0.5, seed=1)) > 0).mean() > 0.9
    assert (probe.score(rotating(12, -0.5, seed=2)) < 0).mean() > 0.9


def test_a_reversible_process_is_not():
    probe = fit_direction(rotating(20, 0.0), ORDER)
    assert 0.4 < (probe.score(rotating(60, 0.0, seed=1)) > 0).mean() < 0.6


def test_shuffled_frames_are_not():
    train, test = (shuffled(rotating(20, 0.5, seed=seed), seed, copies) for seed, copies in ((0, 1), (1, 5)))
    assert len(test.unit) == 5 * len(rotating(20, 0.5).unit)
    assert 0.4 < (fit_direction(train, ORDER).score(test) > 0).mean() < 0.6


def test_a_shuffle_keeps_each_windows_frames_and_mirrors_them():
    pairs = rotating(2, 0.5)
    mixed = shuffled(pairs, 0, 1)
    assert not np.array_equal(mixed.forward, pairs.forward)
    assert np.array_equal(np.sort(mixed.forward, axis=1), np.sort(pairs.forward, axis=1))
    assert np.array_equal(mixed.backward, mixed.forward[:, ::-1])


def test_static_features_score_exactly_zero():
    pairs = rotating(6, 0.5)
    probe = fit_direction(pairs, STATIC)
    assert not probe.weight.any() and not probe.score(pairs).any()


def test_reversing_a_window_negates_its_score():
    pairs = rotating(6, 0.5)
    probe = fit_direction(pairs, ORDER)
    turned = replace(pairs, forward=pairs.backward, backward=pairs.forward)
    assert np.array_equal(probe.score(turned), -probe.score(pairs))


def test_dimensions_without_variance_are_left_out():
    pairs = rotating(6, 0.5)
    flat = np.full((*pairs.forward.shape[:2], 1), 3.0, np.float32)
    wider = replace(
        pairs,
        forward=np.concatenate([pairs.forward, flat, pairs.forward[..., :1]], 2),
        backward=np.concatenate([pairs.backward, flat, pairs.backward[..., :1]], 2),
    )
    probe = fit_direction(wider, ORDER)
    assert probe.whiten.shape == (8, 6)
    assert (probe.score(wider) > 0).mean() > 0.9


def test_one_unit_is_refused():
    with pytest.raises(UsageError, match="at least 2"):
        fit_direction(rotating(1, 0.5), ORDER)


@pytest.mark.parametrize("num_frames", [19, 20, 40, 41, 59, 121])
def test_windows_lie_side_by_side_within_the_run(num_frames):
    for seed in range(50):
        starts = window_starts(num_frames, 20, 10, np.random.default_rng(seed))
        assert bool(starts) == (num_frames >= 40)
        assert all(10 <= start <= num_frames - 10 - 20 for start in starts)
        assert not starts or set(np.diff(starts)) <= {20}
        assert len(starts) >= (num_frames - 20) // 20 - 1


def test_windows_begin_at_every_place():
    firsts = {window_starts(121, 20, 10, np.random.default_rng(seed))[0] for seed in range(500)}
    assert firsts == set(range(10, 30))


@pytest.mark.parametrize(("phase", "causal"), [(1, False), (2, False), (2, True), (3, True)])
def test_tokens_are_those_of_the_model_shown_the_reversed_frames(phase, causal, mask):
    size = replace(SIZE, causal=causal)
    model = BoldModel(size=size, mask_XYZ=mask, phase=phase, num_outputs=1).eval()
    if phase > 1:
        projection = model.sequence.onward if causal else model.sequence.outward
        torch.nn.init.normal_(projection.weight, std=0.5)  # as trained: it starts at zero
    residual = torch.randn(3, 12, int(mask.sum()))
    with torch.no_grad():
        latent = model.encode(residual).numpy()
        pairs = Pairs(
            unit=np.array(["a", "b", "c"]),
            tr_s=np.array([2.0, 1.0, 0.8], np.float32),
            forward=latent,
            backward=latent[:, ::-1],
        )
        found = in_context(model, pairs, windows_at_once=2)
        for shown, ours in ((residual, found.forward), (residual.flip(1), found.backward)):
            expected = model.encode(shown)
            if phase > 1:
                # residuals stand in for stored values: gain 1, no shift
                gain, num_valid = torch.ones(3, shown.shape[2]), torch.tensor([12, 12, 12])
                expected, _ = model.tokens(shown, gain, None, num_valid, torch.from_numpy(pairs.tr_s))
            assert np.allclose(ours, expected.numpy(), atol=1e-5)
    if phase > 1:
        assert not np.allclose(found.backward, found.forward[:, ::-1], atol=1e-3)
