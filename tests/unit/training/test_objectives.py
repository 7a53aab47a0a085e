"""Objectives: signs, masks, independence of how a batch is cut."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.pretraining import objectives

ALL = torch.ones(2, 6, dtype=torch.bool)


@pytest.mark.parametrize(("kind", "oracle"), [("huber", F.huber_loss), ("l1", F.l1_loss), ("mse", F.mse_loss)])
def test_elementwise_errors_equal_torch(kind: str, oracle: object) -> None:
    a, b = torch.randn(2, 3, 4, 5) * 3
    assert float(objectives.elementwise(kind, a, b).mean()) == pytest.approx(float(oracle(a, b)))  # type: ignore[operator]


def test_window_mean_counts_only_what_is_counted() -> None:
    value = torch.arange(12.0).view(2, 6)
    counted = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    assert objectives.window_mean(value, counted).tolist() == [0.5, 0.0]


def test_active_error_looks_at_the_largest_tenth() -> None:
    residual = torch.arange(20.0).view(1, 1, 20) - 10
    error = torch.zeros(1, 1, 20)
    error[..., 0] = 6.0  # |-10| is among the two largest
    assert float(objectives.active_error(error, residual)) == pytest.approx(3.0)


def slow_course(num_windows: int = 3, num_frames: int = 12) -> torch.Tensor:
    """AR(1) embeddings: neighbours alike, distant frames not."""
    rng = np.random.default_rng(0)
    x = np.zeros((num_windows, num_frames, 8))
    x[:, 0] = rng.standard_normal((num_windows, 8))
    for t in range(1, num_frames):
        x[:, t] = 0.9 * x[:, t - 1] + np.sqrt(1 - 0.81) * rng.standard_normal((num_windows, 8))
    return torch.from_numpy(x).float()


def contrast(x: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
    return objectives.neighbour_contrast(x, valid, x, valid, 0, 0.1)


def test_contrast_is_lower_where_neighbours_are_alike() -> None:
    course = slow_course()
    shuffled = course[:, torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    assert contrast(course).mean() < contrast(shuffled).mean() - 0.5


def descend(
    loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, rate: float, steps: int = 60
) -> torch.Tensor:
    """Embeddings after gradient descent on an objective, starting from `x`."""
    x = x.clone().requires_grad_()
    optimizer = torch.optim.SGD([x], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x).mean().backward()
        optimizer.step()
    return x.detach()


def test_descending_the_contrast_brings_neighbours_closer_than_all_others() -> None:
    x = F.normalize(descend(contrast, torch.randn(3, 10, 8), rate=1.0).flatten(0, 1), dim=1)
    similarity, time, window = (x @ x.T).numpy(), np.arange(30) % 10, np.arange(30) // 10
    distance, same = np.abs(time[:, None] - time), window[:, None] == window
    neighbours = similarity[same & (distance == 1)].mean()
    assert neighbours > similarity[same & (distance > 3)].mean() + 0.3
    assert neighbours > similarity[~same].mean() + 0.3


def test_descending_the_pair_contrast_brings_windows_of_a_run_together() -> None:
    run = torch.tensor([4, 4, 7, 7, 9, 9, 4, 4])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return objectives.pair_contrast(x, run, x, run, 0, 0.1)

    x = F.normalize(descend(loss, torch.randn(8, 6), rate=1.0), dim=1)
    similarity, row = (x @ x.T).numpy(), np.arange(8)
    assert similarity[row, row ^ 1].min() > similarity[(run[:, None] != run).numpy()].max() + 0.3


def test_pair_contrast_by_hand() -> None:
    # runs a a b b a a; embeddings along axes, so similarities are 0 or 1; pairs of the same run are no negatives
    axis = torch.eye(3)
    x, run = axis[[0, 0, 1, 2, 0, 1]] * torch.tensor([[1.0], [2], [3], [1], [1], [1]]), torch.tensor([0, 0, 1, 1, 0, 0])
    e = math.e
    expected = [
        math.log((e + 1 + 1) / e),  # partner 1; negatives 0, 0
        math.log((e + 1 + 1) / e),
        math.log(1 + 1 + 1 + 1 + e),  # partner at right angles; of the negatives 0, 1, 4, 5 the last is alike
        math.log(1 + 1 + 1 + 1 + 1),
        math.log(1 + 1 + 1),  # partner 5 at right angles; negatives 2 and 3 too
        math.log(1 + e + 1),  # partner 4 at right angles; negative 2 alike
    ]
    found = objectives.pair_contrast(x, run, x, run, 0, 1.0)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_pair_contrast_does_not_depend_on_how_the_batch_is_cut() -> None:
    x, run = torch.randn(8, 6), torch.tensor([0, 0, 1, 1, 2, 2, 0, 0])
    whole = objectives.pair_contrast(x, run, x, run, 0, 0.1)
    parts = [objectives.pair_contrast(x[k : k + 2], run[k : k + 2], x, run, k, 0.1) for k in (0, 2, 4, 6)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_direction_error_by_hand() -> None:
    found = objectives.direction_error(torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 1.0]))
    expected = [math.log(1 + math.exp(-4)), math.log(2), math.log(1 + math.exp(2))]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_contrast_does_not_depend_on_how_the_batch_is_cut() -> None:
    x = slow_course(4)
    valid = torch.ones(4, 12, dtype=torch.bool)
    valid[1, 7:] = False
    whole = contrast(x, valid)
    parts = [objectives.neighbour_contrast(x[k : k + 2], valid[k : k + 2], x, valid, k, 0.1) for k in (0, 2)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_contrast_ignores_padding() -> None:
    x = slow_course(2)
    valid = torch.arange(12).expand(2, 12) < 9
    noisy = torch.where(valid[..., None], x, torch.randn(2, 12, 8))
    assert torch.allclose(contrast(x, valid), contrast(noisy, valid), atol=1e-6)


def test_trivial_predictions_equal_numpy_interpolation() -> None:
    value = torch.randn(1, 8, 3)
    hidden = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 0]], dtype=torch.bool)
    valid = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    found = objectives.trivial_predictions(value, hidden, valid)
    seen = [1, 4, 5]
    for voxel in range(3):
        series = value[0, :, voxel].numpy()
        linear = np.interp(np.arange(8), seen, series[seen])
        assert np.allclose(found["linear"][0, :7, voxel][hidden[0, :7]], linear[:7][hidden[0, :7]], atol=1e-6)
    assert torch.equal(found["previous"][0, 3], value[0, 1])
    assert torch.equal(found["previous"][0, 0], value[0, 1])  # nothing earlier: the nearest later one
    assert not found["mean"].any()


def test_trivial_predictions_do_not_look_at_hidden_frames() -> None:
    value = torch.randn(1, 8, 3)
    hidden = torch.arange(8)[None] % 2 == 1
    valid = torch.ones(1, 8, dtype=torch.bool)
    changed = torch.where(hidden[..., None], 1e6, value)
    one, other = (objectives.trivial_predictions(v, hidden, valid) for v in (value, changed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_effective_rank() -> None:
    assert objectives.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert objectives.effective_rank(torch.diag(torch.tensor([3.0, 0.0, 0.0]))) == pytest.approx(1)


def test_contrast_of_one_window_by_hand() -> None:
    # frames 0 and 1 point the same way, frame 2 at right angles to both; lengths do not matter
    x, valid = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]]), torch.ones(1, 3, dtype=torch.bool)
    expected = (math.log((math.e + 1) / math.e) + 0.0 + math.log(2)) / 3
    assert float(objectives.neighbour_contrast(x, valid, x, valid, 0, 1.0)) == pytest.approx(expected, rel=1e-5)
