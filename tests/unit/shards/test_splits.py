"""Splits: whole families, balanced strata, stable, and refused when edited."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import Split, load_split, make_split, save_split

SUBJECTS = [f"{k:03d}" for k in range(120)]


@given(seed=st.integers(0, 2**40), sizes=st.lists(st.integers(1, 4), min_size=30, max_size=60))
@settings(max_examples=40, deadline=None)
def test_families_never_cross_and_everyone_is_somewhere(seed: int, sizes: list[int]) -> None:
    groups = {f"{family}-{k}": str(family) for family, size in enumerate(sizes) for k in range(size)}
    split = make_split(groups, groups=groups, seed=seed)
    parts = [set(split.train), set(split.val), set(split.test)]
    assert set.union(*parts) == set(groups) and sum(map(len, parts)) == len(groups)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not {groups[s] for s in parts[first]} & {groups[s] for s in parts[second]}


def test_strata_keep_their_proportions() -> None:
    strata = {s: "patient" if int(s) % 3 == 0 else "control" for s in SUBJECTS}
    split = make_split(SUBJECTS, strata=strata, fractions=(0.6, 0.2, 0.2))
    assert split.counts["train"] == {"control": 48, "patient": 24}
    assert split.counts["val"] == split.counts["test"] == {"control": 16, "patient": 8}


def test_the_order_of_the_table_does_not_matter_and_the_seed_does() -> None:
    assert make_split(SUBJECTS, seed=3) == make_split(reversed(SUBJECTS), seed=3)
    assert make_split(SUBJECTS, seed=3).hash != make_split(SUBJECTS, seed=4).hash


def test_golden_split() -> None:
    assert make_split(SUBJECTS[:10], fractions=(0.6, 0.2, 0.2), seed=1).test == ("003", "008")


def test_round_trip_and_edits(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    split = make_split(SUBJECTS, rule={"group_by": "family"})
    save_split(path, split)
    assert load_split(path) == split
    moved = Split.from_json(split.to_json(), "here")
    path.write_text(split.to_json().replace(f'"{split.test[0]}"', '"999"'))
    with pytest.raises(MismatchError, match="edited"):
        load_split(path)
    path.write_text(moved.to_json().replace(f'"{split.test[0]}"', f'"{split.train[0]}"'))
    with pytest.raises(UsageError, match="more than one part"):
        load_split(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match="not a split file"):
        load_split(path)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_bad_fractions(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        make_split(SUBJECTS, fractions=fractions)


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(UsageError, match="gets none"):
        make_split(SUBJECTS[:3], groups=dict.fromkeys(SUBJECTS[:3], "one"))


def test_runs_of_a_part(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    split = make_split(["00", "01", "02"], fractions=(1 / 3, 1 / 3, 1 / 3))
    with ShardSet(tmp_path) as shard_set:
        runs = {part: split.runs(shard_set, part) for part in ("train", "val", "test")}
        assert sorted([*runs["train"], *runs["val"], *runs["test"]]) == [0, 1, 2]
        assert shard_set.runs[runs["test"][0]].subject == split.test[0]
