"""Gains of a run: the same from its JSON as from its statistics, and refused when they are not what was written."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from shards.affine import Gain, gain_of, list_wide, read_wide
from shards.format import xxh3
from shards.reader import ShardSet
from shards.values import Encoded, residual_affine


def filled(gain: Gain, num_voxels: int, before: Gain | None = None) -> np.ndarray:
    row = np.full(num_voxels, np.nan, np.float32)
    if before is not None:
        before.put(row, None)
    gain.put(row, before)
    return row


@pytest.mark.parametrize("num_wide", [0, 1, 5, 40, 200])
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_the_gains_are_those_of_the_statistics(tmp_path: Path, make_shard_set, num_wide: int, dtype: str) -> None:
    make_shard_set(tmp_path, num_wide=num_wide, dtype=dtype, frames=(150, 90))
    with ShardSet(tmp_path) as opened:
        for run in range(2):
            stats = opened.statistics(run)
            expected, _ = residual_affine(stats.mean, stats.std, stats.scale, dtype)
            np.testing.assert_array_equal(filled(opened.gain(run), opened.num_voxels), expected)


def test_a_few_wide_voxels_cost_no_read_of_the_statistics(
    tmp_path: Path, make_shard_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard_set(tmp_path, num_wide=5, frames=(150,))
    with ShardSet(tmp_path) as opened:
        assert opened.runs[0].num_wide_voxels == 5
        monkeypatch.setattr(opened, "statistics", lambda run: pytest.fail("read the statistics"))
        assert len(opened.gain(0).voxels) == 5
        calls = []
        monkeypatch.setattr(opened.storage, "read_into", lambda *a: calls.append(a))
        opened.gain(0)
        assert not calls


def test_a_row_that_held_another_run_holds_this_one_after() -> None:
    rng = np.random.default_rng(0)
    std = np.ones(400, np.float32)
    gains = []
    for wide in (0, 3, 20, 399):
        scale = std / 16
        scale[rng.choice(400, wide, replace=False)] *= 1.5
        gains.append(gain_of(std, std, scale, "int8"))
    for before in gains:
        for gain in gains:
            np.testing.assert_array_equal(filled(gain, 400, before), filled(gain, 400))


def test_scales_one_step_beside_an_even_one_are_listed_as_runs_tsv_counts_them() -> None:
    std = (1 + np.arange(4096) / 4096).astype("f4")
    scale = std / np.float32(16)
    scale[::20] = np.nextafter(scale[::20], np.float32(9))
    encoded = Encoded(q=np.zeros((2, 4096), np.int8), mean=std, std=std, scale=scale)
    gain = gain_of(std, std, scale, "int8")
    assert encoded.num_wide_voxels == len(gain.voxels) == 205
    np.testing.assert_array_equal(read_wide(list_wide(gain, 4096), 205, 4096, "int8").own, gain.own)


@pytest.mark.parametrize("key", ["voxels", "gains", "xxh3"])
def test_every_flipped_bit_of_the_list_is_refused(key: str) -> None:
    scale = np.full(160, 1 / 16, np.float32)
    scale[[4, 77, 159]] = 0.2
    listed = list_wide(gain_of(np.ones(160, "f4"), np.ones(160, "f4"), scale, "int8"), 160)
    assert listed is not None and len(read_wide(listed, 3, 160, "int8").voxels) == 3
    for place in range(len(listed[key])):
        for bit in range(7):
            text = listed[key]
            changed = text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]
            with pytest.raises(ValueError):
                gain = read_wide(listed | {key: changed}, 3, 160, "int8")
                # the two spare bits of base64 do not count
                np.testing.assert_array_equal(gain.voxels, [4, 77, 159])
                np.testing.assert_array_equal(gain.own, np.float32([0.2] * 3))
                raise ValueError


@pytest.mark.parametrize(
    "voxels, gains", [([-1], [1.0]), ([9], [1.0]), ([3, 3], [1.0, 1.0]), ([3], [0.0]), ([3], [float("nan")]), ([3], [])]
)
def test_a_consistent_list_of_what_cannot_be_is_refused(voxels: list[int], gains: list[float]) -> None:
    parts = np.array(voxels, "<i4").tobytes(), np.array(gains, "<f4").tobytes()
    texts = [base64.b64encode(part).decode() for part in parts]
    listed = {"voxels": texts[0], "gains": texts[1], "xxh3": xxh3(b"".join(parts))}
    with pytest.raises(ValueError, match=r"wide in \.json"):
        read_wide(listed, len(voxels), 9, "int8")
