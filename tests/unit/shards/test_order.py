"""The order of windows is a promise: golden values, and properties over ranks and epochs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import order
from shards.errors import UsageError

LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=12)


def test_golden_hashes() -> None:
    assert order.hashes(3, 1, 2).tolist() == GOLDEN_HASHES


def test_golden_epoch() -> None:
    windows = order.training_windows([60, 45, 19, 200], [20] * 4, seed=7, epoch=3)
    assert list(zip(windows.run.tolist(), windows.start.tolist(), strict=True)) == GOLDEN_EPOCH


def test_mix_is_splitmix64() -> None:
    # first outputs of SplitMix64 seeded with 0, as published with the generator
    first = order.mix(np.array([0], np.uint64))[0]
    second = order.mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0]
    assert (int(first), int(second)) == (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)


@given(lengths=LENGTHS, window=st.integers(1, 30), seed=st.integers(0, 2**63), epoch=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_training_windows_lie_inside_their_run_and_are_equally_many_each_epoch(
    lengths: list[int], window: int, seed: int, epoch: int
) -> None:
    windows = order.training_windows(lengths, [window] * len(lengths), seed, epoch)
    frames = np.array(lengths)[windows.run]
    assert (windows.start >= 0).all() and (windows.start + window <= frames).all()
    counts = np.bincount(windows.run, minlength=len(lengths))
    np.testing.assert_array_equal(counts, [length // window for length in lengths])


def test_every_frame_can_be_a_start_and_is_about_equally_often() -> None:
    starts = np.concatenate([order.training_windows([50], [20], 1, epoch).start for epoch in range(6000)])
    counts = np.bincount(starts, minlength=31)
    assert len(counts) == 31
    assert counts.min() > 0.75 * counts.mean() and counts.max() < 1.25 * counts.mean()


def test_epochs_and_seeds_differ() -> None:
    draws = [order.training_windows([300] * 5, [20] * 5, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    texts = {(w.run.tobytes(), w.start.tobytes()) for w in draws}
    assert len(texts) == 4


@given(lengths=LENGTHS, window=st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_tiling_holds_every_frame_exactly_once(lengths: list[int], window: int) -> None:
    windows = order.tiling_windows(lengths, [window] * len(lengths))
    seen = [np.zeros(length, int) for length in lengths]
    for run, start, frames in zip(windows.run, windows.start, windows.num_frames, strict=True):
        seen[run][start : start + frames] += 1
    assert all((count == 1).all() for count in seen)


@given(world=st.sampled_from([1, 2, 3, 4, 8, 64]), per_rank=st.integers(1, 5), step=st.integers(0, 50))
def test_a_global_batch_is_the_same_set_on_any_number_of_ranks(world: int, per_rank: int, step: int) -> None:
    batch = world * per_rank
    parts = [order.rank_positions(step, batch, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {per_rank}
    assert sorted(np.concatenate(parts).tolist()) == list(range(step * batch, (step + 1) * batch))


def test_a_global_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple"):
        order.rank_positions(0, 10, 0, 4)


@pytest.mark.parametrize("window, expected", [(20, [20, 20]), ("20", [20, 20]), ("16s", [8, 22]), ("7.2s", [4, 10])])
def test_window_lengths(window: int | str, expected: list[int]) -> None:
    assert order.parse_window(window, [2.0, 0.72]).tolist() == expected


@pytest.mark.parametrize("window", ["", "20.5", "abc", "-3", "0", "0.1s", "16 m"])
def test_bad_window_lengths_name_the_flag(window: str) -> None:
    with pytest.raises(UsageError, match="--window"):
        order.parse_window(window, [2.0, 0.72])


GOLDEN_HASHES = [16613338946343043936, 5167718485781182436, 139405959784801653]
GOLDEN_EPOCH = [
    (3, 142),
    (0, 28),
    (3, 114),
    (1, 5),
    (0, 26),
    (3, 42),
    (0, 8),
    (3, 60),
    (3, 106),
    (3, 11),
    (3, 177),
    (1, 20),
    (3, 87),
    (3, 159),
    (3, 26),
]
