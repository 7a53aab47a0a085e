"""Which frames are hidden: the right number, in stretches, and a function of the window alone."""

from __future__ import annotations

import numpy as np
import pytest

from training.pretraining.masking import hidden_frames


def draw(lengths: list[int], *, seed: int = 0, fraction: float = 0.25, span: int = 3) -> np.ndarray:
    key = np.array([[seed, 7, row, 0] for row in range(len(lengths))])
    return hidden_frames(np.array(lengths), key, num_frames=20, fraction=fraction, span=span)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.99])
def test_share_of_real_frames_and_never_all(fraction: float) -> None:
    lengths = [20, 13, 5, 2, 1, 0]
    hidden = draw(lengths, fraction=fraction)
    for row, length in enumerate(lengths):
        wanted = min(max(1, round(fraction * length)), length - 1) if length > 1 else 0
        assert hidden[row].sum() == wanted
        assert not hidden[row, length:].any()


def test_hidden_frames_come_in_stretches() -> None:
    hidden = draw([20] * 200)
    starts = (hidden[:, 1:] & ~hidden[:, :-1]).sum() + hidden[:, 0].sum()
    assert hidden.sum() / starts > 2


def test_every_frame_gets_hidden_about_equally_often() -> None:
    share = draw([20] * 4000).mean(0)
    assert share.min() > 0.18 and share.max() < 0.32


def test_a_draw_depends_on_its_own_key_alone() -> None:
    together = draw([20, 20, 20])
    alone = hidden_frames(np.array([20]), np.array([[0, 7, 1, 0]]), num_frames=20, fraction=0.25, span=3)
    assert np.array_equal(together[1:2], alone)
    assert not np.array_equal(draw([20] * 5), draw([20] * 5, seed=1))
