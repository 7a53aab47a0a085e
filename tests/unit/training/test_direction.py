"""The score of a window's direction: it sees order and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.pretraining.direction import Direction, reversed_frames
from training.pretraining.objectives import direction_error

LENGTHS = torch.tensor([12, 12, 9, 12])


def scorer(latent: int = 5) -> Direction:
    """A head that has learnt something."""
    head = Direction(latent)
    torch.nn.init.normal_(head.weigh.weight)
    return head


def test_real_frames_are_reversed_and_padding_stays_behind() -> None:
    x = torch.arange(10.0).view(2, 5, 1)
    found = reversed_frames(x, torch.tensor([3, 5]))[..., 0]
    assert found.tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5]]
    assert torch.equal(reversed_frames(x[..., 0], torch.tensor([3, 5])), found)


def test_reversing_a_window_negates_its_score() -> None:
    head, x = scorer(), torch.randn(4, 12, 5)
    there, back = head(x, LENGTHS), head(reversed_frames(x, LENGTHS), LENGTHS)
    torch.testing.assert_close(back, -there)
    assert there.abs().min() > 0.1


def test_what_does_not_depend_on_order_scores_zero() -> None:
    half = torch.randn(3, 6, 5)
    palindrome = torch.cat([half, half.flip(1)], dim=1)
    constant = torch.randn(3, 1, 5).expand(3, 12, 5)
    full = torch.tensor([12, 12, 12])
    assert scorer()(palindrome, full).abs().max() < 1e-5
    assert scorer()(constant, full).abs().max() < 1e-5


def test_a_score_by_hand() -> None:
    # two latents read as they are; one pair of frames at lag 1, none at lags 2 and 3
    head = Direction(2)
    with torch.no_grad():
        head.read.weight.copy_(torch.eye(2))
        head.weigh.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    x = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    expected = (3 * 2 - 5 * 1) / 2 * 2**0.5  # x[1] x[0]' is [[3, 6], [5, 10]]
    assert head(x, torch.tensor([2])).item() == pytest.approx(expected)


def test_latents_of_any_width_are_scored_through_few_dimensions() -> None:
    head = Direction(400)
    assert head.read.weight.shape == (32, 400) and head.weigh.in_features == 3 * 32 * 31 // 2


def test_descending_the_objective_makes_directions_separable() -> None:
    head, x = scorer(), torch.randn(4, 12, 5)
    x.requires_grad_()
    before = direction_error(*both(head, x)).detach()
    optimizer = torch.optim.SGD([x, *head.parameters()], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        direction_error(*both(head, x)).mean().backward()
        optimizer.step()
    forward, backward = both(head, x)
    assert before.max() > np.log(2)  # at the start not all were told
    assert (forward > 0).all() and (backward < 0).all() and direction_error(forward, backward).max() < 0.1


def test_a_head_learns_who_leads_whom_and_tells_windows_it_has_not_seen() -> None:
    head = Direction(3)
    series = torch.randn(200, 21, 3, generator=torch.Generator().manual_seed(3))
    series[:, 1:, 1] += 0.7 * series[:, :-1, 0]  # the second latent follows the first
    full = torch.full((200,), 21)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        direction_error(*both(head, series[:100], full[:100])).mean().backward()
        optimizer.step()
    forward, backward = both(head, series[100:], full[100:])
    assert (forward > backward).float().mean() > 0.8
    still = torch.randn(100, 21, 3)
    forward, backward = both(head, still, full[:100])
    assert abs(float((forward > backward).float().mean()) - 0.5) < 0.2


def both(head: Direction, x: Tensor, lengths: Tensor = LENGTHS) -> tuple[Tensor, Tensor]:
    return head(x, lengths), head(reversed_frames(x, lengths), lengths)
