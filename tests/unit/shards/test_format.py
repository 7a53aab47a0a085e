"""Manifest and tables: round trips, identities, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shards.errors import CorruptShardError, FormatVersionError, ShardError, UsageError
from shards.format import Manifest, frames_per_chunk, run_id_from_entities, valid_run_id
from shards.reader import ShardSet
from shards.runs_table import runs_from_tsv, runs_to_tsv


def test_run_ids_follow_bids_order() -> None:
    entities = {"run": "2", "task": "rest", "subject": "01", "session": "a", "space": "", "zeta": "9"}
    assert run_id_from_entities(entities) == "sub-01_ses-a_task-rest_run-2_zeta-9"


@pytest.mark.parametrize("run_id", ["", "a.b", "a/b", "-a", "é", "a b", "a" * 91, "a\n"])
def test_bad_run_ids(run_id: str) -> None:
    assert not valid_run_id(run_id)


def test_chunks_hold_at_least_128_kib() -> None:
    assert frames_per_chunk(228_483, 1) == 1
    assert frames_per_chunk(1000, 1) * 1000 >= 128 * 1024 > (frames_per_chunk(1000, 1) - 1) * 1000


def test_manifest_and_runs_round_trip(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    manifest = Manifest.from_json(text, "here")
    assert manifest.to_json() == text
    runs = (tmp_path / "runs.tsv").read_text()
    assert runs_to_tsv(runs_from_tsv(runs, "here")) == runs


def test_sources_with_tabs_and_unicode_survive(tmp_path: Path, make_shard_set) -> None:
    from dataclasses import replace

    make_shard_set(tmp_path)
    entry = replace(ShardSet(tmp_path).runs[0], source="a\tb/é 100%.nii.gz", mean_fd_mm=math.nan)
    (back,) = runs_from_tsv(runs_to_tsv([entry]), "here")
    assert back.source == entry.source and math.isnan(back.mean_fd_mm)


def test_a_future_version_is_refused_by_name(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(FormatVersionError, match="version 2"):
        ShardSet(tmp_path)


@pytest.mark.parametrize(
    "key, value",
    [("num_voxels", 0), ("dtype", "O"), ("shards", [{"name": "../x.tar"}]), ("grid", {}), ("set_hash", "0" * 32)],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, make_shard_set, key: str, value: object) -> None:
    make_shard_set(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CorruptShardError):
        ShardSet(tmp_path)


@pytest.mark.parametrize("name", ["runs.tsv", "mask.nii.gz", "participants.tsv"])
def test_a_changed_table_is_refused(tmp_path: Path, make_shard_set, name: str) -> None:
    make_shard_set(tmp_path, participants="participant_id\tage\nsub-00\t31\n")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptShardError, match="checksum"):
        ShardSet(tmp_path).phenotype("age")


def test_missing_folder_and_missing_manifest_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        ShardSet(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        ShardSet(tmp_path)


def test_phenotypes(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, participants="participant_id\tage\nsub-00\t31\nsub-01\tn/a\n02\t44\n")
    with ShardSet(tmp_path) as shards:
        assert shards.phenotype("age") == {"00": "31", "02": "44"}
        with pytest.raises(UsageError, match="no column 'sex'; there are: age"):
            shards.phenotype("sex")
        assert shards.participants is not None and list(shards.participants.columns) == ["participant_id", "age"]


def test_a_ragged_participants_table_is_named(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, participants="participant_id\tage\nsub-00\n")
    with pytest.raises(ShardError, match="participants"):
        ShardSet(tmp_path).phenotype("age")
