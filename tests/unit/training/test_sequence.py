"""The transformer: time in seconds, padding, hidden frames."""

from __future__ import annotations

import pytest
import torch

from training.networks.sequence import Sequence, rotary_frequencies, rotate


@pytest.fixture
def sequence() -> Sequence:
    torch.manual_seed(0)
    model = Sequence(latent=6, width=16, depth=2, heads=2, dropout=0.0).eval()
    torch.nn.init.normal_(model.outward.weight)
    torch.nn.init.normal_(model.mask_latent)
    return model


def test_scores_depend_on_the_distance_in_seconds() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    frequencies = rotary_frequencies(8)

    def score(time_q: float, time_k: float) -> float:
        rotated = [rotate(x, torch.tensor([[t]]), frequencies) for x, t in ((q, time_q), (k, time_k))]
        return float((rotated[0] * rotated[1]).sum())

    assert score(3.0, 7.0) == pytest.approx(score(40.0, 44.0), abs=1e-4)
    assert score(3.0, 7.0) != pytest.approx(score(3.0, 8.0), abs=1e-3)


def test_the_same_instants_at_two_repetition_times_give_the_same_output(sequence: Sequence) -> None:
    latent = torch.randn(1, 10, 6)
    valid = torch.ones(1, 10, dtype=torch.bool)
    valid[:, 1::2] = False
    spread, _ = sequence(latent, valid, torch.tensor([1.0]))
    packed, _ = sequence(latent[:, ::2], valid[:, ::2], torch.tensor([2.0]))
    assert torch.allclose(spread[:, ::2], packed, atol=1e-5)
    other, _ = sequence(latent[:, ::2], valid[:, ::2], torch.tensor([0.7]))
    assert not torch.allclose(other, packed, atol=1e-3)


def test_padding_changes_nothing(sequence: Sequence) -> None:
    latent = torch.randn(2, 7, 6)
    padded = torch.cat([latent, 100 * torch.randn(2, 5, 6)], dim=1)
    valid = torch.arange(12).expand(2, 12) < 7
    tr_s = torch.tensor([2.0, 0.8])
    context, cls = sequence(latent, valid[:, :7], tr_s)
    context_padded, cls_padded = sequence(padded, valid, tr_s)
    assert torch.allclose(context, context_padded[:, :7], atol=1e-5)
    assert torch.allclose(cls, cls_padded, atol=1e-5)


def test_a_window_without_frames_stays_finite(sequence: Sequence) -> None:
    context, cls = sequence(torch.zeros(1, 4, 6), torch.zeros(1, 4, dtype=torch.bool), torch.ones(1))
    assert context.isfinite().all() and cls.isfinite().all()


def test_hidden_frames_are_not_seen(sequence: Sequence) -> None:
    latent = torch.randn(1, 8, 6)
    hidden = torch.arange(8)[None] % 3 == 0
    changed = torch.where(hidden[..., None], torch.randn(1, 8, 6), latent)
    valid, tr_s = torch.ones(1, 8, dtype=torch.bool), torch.tensor([2.0])
    assert torch.equal(sequence(latent, valid, tr_s, hidden)[0], sequence(changed, valid, tr_s, hidden)[0])
    assert not torch.equal(sequence(latent, valid, tr_s)[0], sequence(changed, valid, tr_s)[0])


def test_an_untrained_sequence_hands_latents_through() -> None:
    sequence = Sequence(latent=6, width=16, depth=1, heads=2, dropout=0.0)
    latent = torch.randn(2, 5, 6)
    assert torch.equal(sequence(latent, torch.ones(2, 5, dtype=torch.bool), torch.ones(2))[0], latent)
