"""Several shard sets as one: the same bytes under other names, and refusals where they do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from shards import order
from shards.errors import CorruptShardError, MismatchError, UsageError
from shards.loader import WindowLoader
from shards.reader import ShardSet
from shards.union import ShardUnion, open_sets

TABLE = "participant_id\tsex\nsub-00\tF\nsub-01\tM\nsub-02\tM\n"
OTHER = "participant_id\tsex\tage\nsub-00\tF\t31\nsub-01\tM\tn/a\n"


@pytest.fixture
def folders(tmp_path: Path, make_shard_set) -> list[Path]:
    make_shard_set(tmp_path / "a", frames=(40, 90, 60), seed=1, participants=TABLE)
    make_shard_set(tmp_path / "b", frames=(50, 45), seed=2, participants=OTHER)
    return [tmp_path / "a", tmp_path / "b"]


def test_every_window_is_that_of_its_set(folders: list[Path]) -> None:
    with ShardUnion(folders) as union:
        assert union.set_of_run.tolist() == [0, 0, 0, 1, 1]
        assert [entry.run_id for entry in union.runs][2:4] == ["toy-1:sub-02_task-rest", "toy-2:sub-00_task-rest"]
        number = 0
        for folder in folders:
            with ShardSet(folder) as opened:
                for k in range(len(opened.runs)):
                    np.testing.assert_array_equal(union.read_window(number, 7, 20), opened.read_window(k, 7, 20))
                    np.testing.assert_array_equal(union.statistics(number).mean, opened.statistics(k).mean)
                    np.testing.assert_array_equal(union.residual(number, 0, 9), opened.residual(k, 0, 9))
                    number += 1


def test_cohorts_are_mixed_by_weight(folders: list[Path]) -> None:
    with ShardUnion(folders) as union:
        counts = order.natural_counts([entry.num_frames for entry in union.runs], [10] * 5)
        weights = order.shares(counts, union.set_of_run, [1.0, 3.0])
        loader = WindowLoader(union, window=10, batch_size=1, weights=weights)
        drawn = [int(union.set_of_run[int(batch.run[0])]) for _ in range(20) for batch in loader]
        assert len(drawn) == 20 * counts.sum()
        assert abs(np.mean(drawn) - 0.75) < 0.01


def test_a_union_goes_through_pickle(folders: list[Path]) -> None:
    with ShardUnion(folders, subjects="distinct") as union:
        again = pickle.loads(pickle.dumps(union))
        assert again.manifest == union.manifest and again.runs == union.runs
        np.testing.assert_array_equal(again.read_window(4, 3, 5), union.read_window(4, 3, 5))


def test_shared_labels_are_one_person(folders: list[Path]) -> None:
    union = ShardUnion(folders)
    assert union.phenotype("sex") == {"00": "F", "01": "M", "02": "M"}
    assert union.phenotype("age") == {"00": "31"}
    assert union.manifest.num_subjects == 3
    assert union.participants is not None
    assert union.participants.set_index("participant_id").loc["sub-00", "age"] == "31"


def test_distinct_labels_are_not(folders: list[Path]) -> None:
    union = ShardUnion(folders, subjects="distinct")
    assert union.phenotype("sex") == {
        "toy-1:00": "F",
        "toy-1:01": "M",
        "toy-1:02": "M",
        "toy-2:00": "F",
        "toy-2:01": "M",
    }
    assert {entry.subject for entry in union.runs} == set(union.phenotype("sex"))


def test_tables_that_disagree_about_a_person_are_refused(tmp_path: Path, folders: list[Path], make_shard_set) -> None:
    make_shard_set(tmp_path / "c", frames=(50,), seed=3, participants="participant_id\tsex\nsub-00\tM\n")
    with pytest.raises(UsageError, match=r"sex of subject 00: 'F' in one set, 'M' in .*distinct"):
        ShardUnion([folders[0], tmp_path / "c"]).phenotype("sex")
    with pytest.raises(UsageError, match="no column 'iq'"):
        ShardUnion(folders).phenotype("iq")


def test_sets_that_do_not_fit_are_refused_with_both_hashes(
    tmp_path: Path, folders: list[Path], make_shard_set, mask
) -> None:
    make_shard_set(tmp_path / "mask", mask=~mask, frames=(50,))
    make_shard_set(tmp_path / "dtype", dtype="int16", frames=(50,))
    own, other = (ShardSet(folder).manifest.mask_hash for folder in (folders[0], tmp_path / "mask"))
    with pytest.raises(MismatchError, match=f"{other}.*{own}"):
        ShardUnion([folders[0], tmp_path / "mask"])
    with pytest.raises(MismatchError, match="dtype int16"):
        ShardUnion([folders[0], tmp_path / "dtype"])
    with pytest.raises(UsageError, match="the same set"):
        ShardUnion([folders[0], folders[0]])
    with pytest.raises(UsageError, match="no shard sets"):
        ShardUnion([])


def test_identity_changes_with_each_set(folders: list[Path]) -> None:
    union = ShardUnion(folders).manifest.set_hash
    assert len({union, ShardUnion(folders[::-1]).manifest.set_hash, ShardSet(folders[0]).manifest.set_hash}) == 3


def test_damage_is_named_with_the_set(folders: list[Path]) -> None:
    union = ShardUnion(folders)
    path = folders[1] / union.runs[3].shard.split("/")[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptShardError, match=str(path)):
        union.read_window(3, 0, 5)
    path = folders[0] / union.runs[0].shard.split("/")[1]
    data = bytearray(path.read_bytes())
    data[union.runs[0].bold_offset + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptShardError, match=f"{path}.*checksum"):
        union.read_window(0, 0, 5)


def test_one_location_is_an_ordinary_set(folders: list[Path]) -> None:
    assert type(open_sets(folders[:1])) is ShardSet
    assert type(open_sets(folders)) is ShardUnion
