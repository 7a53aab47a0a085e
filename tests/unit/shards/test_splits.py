"""Splits: whole families, balanced strata, stable, and refused when edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigDiffersError, MismatchError, OutputError, UsageError
from shards.reader import ShardSet
from shards.splits import (
    Split,
    check_groups,
    check_split,
    fixed_split,
    load_split,
    make_split,
    publish_splits,
    read_list,
    read_parts,
    save_split,
)

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
    strata = {s: ("patient" if int(s) % 3 == 0 else "control",) for s in SUBJECTS}
    split = make_split(SUBJECTS, strata=strata, fractions=(0.6, 0.2, 0.2))
    assert split.counts["train"] == {"control": 48, "patient": 24}
    assert split.counts["val"] == split.counts["test"] == {"control": 16, "patient": 8}


def test_the_order_of_the_table_does_not_matter_and_the_seed_does() -> None:
    assert make_split(SUBJECTS, seed=3) == make_split(reversed(SUBJECTS), seed=3)
    assert make_split(SUBJECTS, seed=3).hash != make_split(SUBJECTS, seed=4).hash


def _drawn(subject: str, salt: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{salt}{subject}".encode())


COHORT = [f"{k:04d}" for k in range(200)]
FAMILIES = {s: f"fam{_drawn(s, 'f') % 90}" for s in COHORT if _drawn(s, "g") % 5}
STRATA = {s: (("a", "b", "c")[_drawn(s, "s") % 3],) for s in COHORT if _drawn(s, "t") % 10}
GOLDEN = [
    ({}, "c27b9e2a30ecbaefbd7cd4bb88a1d661"),
    ({"seed": 7}, "797d27efaf9aaead6b232b112c850c9f"),
    ({"groups": FAMILIES}, "c24fb96045a0182e64a0e2f73c1f6d0e"),
    ({"strata": STRATA}, "352d2938eb49aaa6126d3670ae8417c3"),
    ({"groups": FAMILIES, "strata": STRATA}, "71e0e6bad0081d8771f3f1c1d14ae820"),
    (
        {"groups": FAMILIES, "strata": STRATA, "fractions": (0.5, 0.0, 0.5), "seed": 123456789012345},
        "39033feead0c330461d3aa98e74c80a6",
    ),
    ({"strata": STRATA, "fractions": (0.6, 0.2, 0.2), "seed": -3}, "286d67750f28a5891ca48703bfb80f9e"),
]


@pytest.mark.parametrize(("options", "expected"), GOLDEN)
def test_golden_splits(options: dict[str, Any], expected: str) -> None:
    assert make_split(COHORT, **options).hash == expected


GOLDEN_FILE = """{
 "hash": "26358852cba6e35933687cb074e797d8",
 "train": ["0000", "0001", "0002", "0003", "0004", "0009"],
 "val": ["0005", "0008"],
 "test": ["0006", "0007"],
 "rule": {"fractions": [0.6, 0.2, 0.2], "group": "family", "stratify": null},
 "seed": 1,
 "counts": {"train": {"": 6}, "val": {"": 2}, "test": {"": 2}}
}"""


def test_golden_file_is_written_and_read() -> None:
    split = Split.from_json(GOLDEN_FILE, "golden")
    assert (split.val, split.seed, split.counts["test"]) == (("0005", "0008"), 1, {"": 2})
    assert split.to_json() == json.dumps(json.loads(GOLDEN_FILE), indent=1) + "\n"


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


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values | {"counts": 3},
        lambda values: values | {"rule": None},
        lambda values: values | {"seed": float("inf")},
        lambda values: values | {"train": 7},
        lambda values: values["train"],
    ],
)
def test_a_file_of_another_shape_is_no_split(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(damage(json.loads(GOLDEN_FILE))))
    with pytest.raises(UsageError, match="not a split file"):
        load_split(path)


def test_a_split_is_published_once_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "split.json"
    split = make_split(SUBJECTS)
    assert publish_splits({path: split}) == [path]
    before = path.stat().st_mtime_ns
    assert publish_splits({path: split}) == []
    for other, why in ((make_split(SUBJECTS, seed=1), "another split"), (make_split(SUBJECTS, rule={"a": 1}), "rule")):
        with pytest.raises(ConfigDiffersError, match=why):
            publish_splits({tmp_path / "new.json": split, path: other})
    assert path.stat().st_mtime_ns == before and not (tmp_path / "new.json").exists()


def test_a_file_that_is_no_split_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[1]")
    with pytest.raises(OutputError, match="nothing was overwritten"):
        publish_splits({tmp_path / "notes.json": make_split(SUBJECTS)})
    with pytest.raises(OutputError, match="another folder"):
        publish_splits({tmp_path / "notes.json" / "split.json": make_split(SUBJECTS)})


def _split(train: str, val: str, test: str, **rule: Any) -> Split:
    parts = {"train": train.split(), "val": val.split(), "test": test.split()}
    return fixed_split(parts, [name for names in parts.values() for name in names], rule=rule)


def test_a_divided_family_is_refused_by_name() -> None:
    split = _split("00 01", "02", "03 04")
    check_groups(split, {"00": "a", "01": "a", "03": "b", "04": "b"}, "split.json", "family")
    with pytest.raises(MismatchError, match=r"divides a of the column family: train has 00; test has 03, 04; relat"):
        check_groups(split, {"00": "a", "03": "a", "04": "a"}, "split.json", "family")
    with pytest.raises(MismatchError, match="1 more groups cross"):
        check_groups(split, {"00": "a", "03": "a", "01": "b", "04": "b"}, "split.json", "family")


PARTICIPANTS = "participant_id\tfamily\tmother\nsub-00\tA\tX\nsub-01\tA\tY\nsub-02\tB\tZ\n"


@pytest.fixture
def shard_set(tmp_path: Path, make_shard_set) -> ShardSet:
    """A set of subjects 00, 01 and 02; the first two are a family."""
    make_shard_set(tmp_path / "set", participants=PARTICIPANTS)
    return ShardSet(tmp_path / "set")


def test_a_set_with_a_family_column_refuses_a_split_that_divides_one(shard_set: ShardSet) -> None:
    with pytest.raises(MismatchError, match=r"here: divides A of the column family: train has 00; test has 01"):
        check_split(_split("00", "02", "01"), shard_set, "here")
    assert check_split(_split("00 01", "", "02"), shard_set, "here").group == "family"


def test_the_column_of_the_rule_is_checked_unless_another_is_asked_for(shard_set: ShardSet) -> None:
    split = _split("00", "02", "01", group="mother")
    assert check_split(split, shard_set, "here").group == "mother"
    with pytest.raises(MismatchError, match="column family"):
        check_split(split, shard_set, "here", "family")
    assert check_split(split, shard_set, "here", "none").group is None
    with pytest.raises(UsageError, match="no column 'father'"):
        check_split(split, shard_set, "here", "father")


def test_a_split_made_without_groups_on_purpose_is_warned_about(shard_set: ShardSet, caplog) -> None:
    split = _split("00", "02", "01", group=None)
    check_split(split, shard_set, "here")
    assert "divides 1 groups of column family" in caplog.text
    with pytest.raises(MismatchError, match="divides A"):
        check_split(split, shard_set, "here", "family")


def test_a_column_that_the_set_lost_is_said_not_to_be_checked(shard_set: ShardSet, caplog) -> None:
    assert check_split(_split("00", "02", "01", group="Pedigree_ID"), shard_set, "here").group is None
    assert "Pedigree_ID, a column that the shard set does not have" in caplog.text


def test_subjects_in_no_part_and_absent_ones_are_counted_and_logged(shard_set: ShardSet, caplog) -> None:
    caplog.set_level("INFO")
    split = _split("02", "77", "78")
    fit = check_split(split, shard_set, "here")
    assert (fit.unused, fit.absent) == (("00", "01"), ("77", "78"))
    assert "2 subjects of the shard set are in no part: 00, 01" in caplog.text
    assert split.runs(shard_set, "train") == [2]


def test_a_split_of_another_set_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(MismatchError, match="none of its 3 subjects"):
        check_split(_split("77", "78", "79"), shard_set, "here")


@pytest.mark.parametrize(
    "text",
    [
        "01\nsub-02\n",
        "\ufeff01\r\nsub-02\r\n",
        "# HCP\n\nsub-02\n 01 \n02",
        "participant_id\n02\n01\n",
        "Subject\n01\n02",
    ],
)
def test_lists_as_people_keep_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert read_list(tmp_path / "list.txt") == ("01", "02")


@pytest.mark.parametrize(("data", "why"), [(b"", "no subject"), (b"01\n02 03\n", "line 2"), (b"\xff\xfe1", "UTF-8")])
def test_lists_that_cannot_be_read(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UsageError, match=why):
        read_list(tmp_path / "list.txt")
    with pytest.raises(UsageError, match="No such file"):
        read_list(tmp_path / "absent.txt")


def test_a_table_of_parts(tmp_path: Path) -> None:
    path = tmp_path / "parts.tsv"
    path.write_text("participant_id\tage\tpart\nsub-007\t3\ttrain\n008\t4\ttest\nsub-009\t5\tn/a\n")
    assert read_parts(path) == {"train": ("007",), "val": (), "test": ("008",)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("participant_id\tset\n01\ttrain\n", "no column part"),
        ("", "no column part and participant_id"),
        ("participant_id\tpart\n01\tdev\n", "line 2: part 'dev'"),
        ("participant_id\tpart\n01\ttrain\nsub-01\ttrain\n", "line 3: stands twice: 01"),
        ("participant_id\tpart\n\ttrain\n", "line 2: no participant_id"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "parts.tsv"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        read_parts(path)


def test_fixed_lists_keep_who_they_name_and_leave_the_others_unused() -> None:
    split = fixed_split({"train": ["01"], "test": ["02"]}, ["01", "02", "03"], strata={"01": ("a", "x")})
    assert (split.train, split.val, split.test) == (("01",), (), ("02",))
    assert split.counts == {"train": {"a, x": 1}, "val": {}, "test": {"": 1}}


def test_listed_subjects_that_the_set_lacks_are_refused_or_left_out() -> None:
    lists = {"train": ["01", "77"], "val": [], "test": ["02", "78"]}
    with pytest.raises(
        MismatchError, match=r"2 of 4 listed subjects are not in the shard set: 77, 78.*--allow-unknown"
    ):
        fixed_split(lists, ["01", "02"])
    split = fixed_split(lists, ["01", "02"], allow_unknown=True)
    assert (split.train, split.test, split.rule["unknown_left_out"]) == (("01",), ("02",), 2)
    with pytest.raises(UsageError, match="train names no subject"):
        fixed_split({"train": ["77"], "test": ["01"]}, ["01"], allow_unknown=True)


def test_a_subject_on_two_lists_is_refused() -> None:
    with pytest.raises(UsageError, match="lists of train and test, first 01"):
        fixed_split({"train": ["01", "03"], "val": ["02"], "test": ["01"]}, ["01", "02", "03"])
