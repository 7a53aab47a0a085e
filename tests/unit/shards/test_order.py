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


WEIGHTS = st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e6]), min_size=12, max_size=12)


def as_pairs(windows: order.Windows) -> list[tuple[int, int]]:
    return list(zip(windows.run.tolist(), windows.start.tolist(), strict=True))


def test_golden_weighted_epoch() -> None:
    windows = order.weighted_windows([60, 45, 19, 200], [20] * 4, [1, 1, 1, 1], 15, seed=7, epoch=3)
    assert as_pairs(windows) == GOLDEN_WEIGHTED


def test_golden_pairs() -> None:
    frames = [60, 45, 19, 200]
    windows = order.paired(order.training_windows(frames, [20] * 4, 7, 3), frames, 7, 3)
    assert as_pairs(windows) == GOLDEN_PAIRS


def test_golden_replacements() -> None:
    frames = np.array([60, 45, 19, 200])
    recipe = order.Recipe(num_frames=frames, window_frames=np.full(4, 20), seed=7, pairs=True)
    assert recipe.replacements(3, 8, 30).tolist()[:7] == GOLDEN_REPLACEMENTS


@given(lengths=LENGTHS, weights=WEIGHTS, count=st.integers(1, 200), seed=st.integers(0, 2**63))
@settings(max_examples=100, deadline=None)
def test_a_weighted_epoch_has_its_count_and_each_run_its_share(
    lengths: list[int], weights: list[float], count: int, seed: int
) -> None:
    own = np.array(weights[: len(lengths)]) * (np.array(lengths) >= 5)
    if not own.any():
        return
    windows = order.weighted_windows(lengths, [5] * len(lengths), weights[: len(lengths)], count, seed, 1)
    assert len(windows) == count
    assert (windows.start >= 0).all() and (windows.start + 5 <= np.array(lengths)[windows.run]).all()
    found = np.bincount(windows.run, minlength=len(lengths))
    assert (np.abs(found - count * own / own.sum()) < 1 + 1e-6).all()


def test_over_epochs_shares_are_met_exactly_on_average() -> None:
    weights = np.array([0.3, 1.0, 1.0, 5.0, 0.01])
    total = sum(
        np.bincount(order.weighted_windows([90] * 5, [20] * 5, weights, 7, 1, epoch).run, minlength=5)
        for epoch in range(4000)
    )
    np.testing.assert_allclose(total / 4000, 7 * weights / weights.sum(), atol=0.03)


def test_shares_make_subjects_equal_within_cohorts_of_given_size() -> None:
    counts, subject, cohort = [10, 5, 5, 40, 0], [0, 0, 1, 2, 3], [0, 0, 0, 1, 1]
    weights = order.shares(order.shares(counts, subject), cohort, [1, 3])
    np.testing.assert_allclose(weights, [1 / 3, 1 / 6, 1 / 2, 3, 0])


@given(lengths=LENGTHS, window=st.integers(1, 30), seed=st.integers(0, 2**63), epoch=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_partners_are_of_the_same_run_and_apart_where_there_is_room(
    lengths: list[int], window: int, seed: int, epoch: int
) -> None:
    base = order.training_windows(lengths, [window] * len(lengths), seed, epoch)
    pairs = order.paired(base, lengths, seed, epoch)
    first, second = pairs.start[::2], pairs.start[1::2]
    np.testing.assert_array_equal(first, base.start)
    np.testing.assert_array_equal(pairs.run[::2], pairs.run[1::2])
    frames = np.array(lengths)[base.run]
    assert (second >= 0).all() and (second + window <= frames).all()
    room = (first >= window) | (frames - first - window >= window)
    assert (np.abs(second - first)[room] >= window).all()


def test_every_place_that_is_apart_can_be_the_partner() -> None:
    found = set()
    for epoch in range(600):
        pairs = order.paired(order.training_windows([30], [10], 3, epoch), [30], 3, epoch)
        found |= {(int(a), int(b)) for a, b in zip(pairs.start[::2], pairs.start[1::2], strict=True) if a in (0, 5, 12)}
    behind = {(0, b) for b in range(10, 21)} | {(5, b) for b in range(15, 21)} | {(12, b) for b in range(3)}
    assert found == behind


@given(world=st.sampled_from([1, 2, 3, 4, 8, 64]), per_rank=st.integers(1, 5), step=st.integers(0, 50))
def test_pairs_stay_on_one_rank(world: int, per_rank: int, step: int) -> None:
    batch = 2 * world * per_rank
    parts = [order.rank_positions(step, batch, rank, world, unit=2) for rank in range(world)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(step * batch, (step + 1) * batch))
    assert all((part[::2] + 1 == part[1::2]).all() and (part[::2] % 2 == 0).all() for part in parts)


@given(lengths=LENGTHS, window=st.integers(1, 30), tiled=st.booleans(), pairs=st.booleans(), weighted=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_number_of_windows_is_known_before_they_are_drawn(
    lengths: list[int], window: int, tiled: bool, pairs: bool, weighted: bool
) -> None:
    if max(lengths) < window:
        return
    recipe = order.Recipe(
        num_frames=np.array(lengths),
        window_frames=np.full(len(lengths), window),
        tiled=tiled,
        pairs=pairs,
        weights=np.ones(len(lengths)) if weighted else None,
    )
    assert {len(recipe.windows(epoch)) for epoch in range(3)} == {recipe.num_windows}


@pytest.mark.parametrize("damaged", [{4}, {5}, {4, 5}, {4, 5, 10, 11, 12}])
def test_two_rows_of_a_pair_find_the_same_pair_in_place_of_a_damaged_one(damaged: set[int]) -> None:
    recipe = order.Recipe(num_frames=np.array([200]), window_frames=np.array([10]), seed=1, pairs=True)
    taken = []
    for position in (4, 5):
        tried = [position, *recipe.replacements(0, position, 40).tolist()]
        taken.append(next(k for k in tried if k not in damaged))
    assert taken[0] // 2 == taken[1] // 2


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")], [0.0, 0.0], [0.0, 5.0]])
def test_weights_that_cannot_be_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights"):
        order.Recipe(num_frames=np.array([50, 4]), window_frames=np.array([10, 10]), weights=np.array(weights))


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

GOLDEN_WEIGHTED = [
    (3, 103),
    (0, 16),
    (3, 48),
    (0, 27),
    (0, 15),
    (1, 12),
    (0, 4),
    (1, 17),
    (3, 32),
    (1, 3),
    (3, 173),
    (0, 37),
    (1, 25),
    (3, 137),
    (1, 7),
]
GOLDEN_PAIRS = [
    (3, 142),
    (3, 67),
    (0, 28),
    (0, 7),
    (3, 114),
    (3, 67),
    (1, 5),
    (1, 25),
    (0, 26),
    (0, 3),
    (3, 42),
    (3, 129),
    (0, 8),
    (0, 38),
    (3, 60),
    (3, 6),
    (3, 106),
    (3, 178),
    (3, 11),
    (3, 170),
    (3, 177),
    (3, 122),
    (1, 20),
    (1, 0),
    (3, 87),
    (3, 67),
    (3, 159),
    (3, 16),
    (3, 26),
    (3, 55),
]
GOLDEN_REPLACEMENTS = [9, 26, 27, 10, 11, 2, 3]
