"""Region series and amplitudes that are kept beside the shards: equal to the reader's, whole, and found again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import detrend

from eval.parcels import blocks, cache
from eval.parcels.blocks import Blocks
from eval.parcels.parcels import geometric_parcels
from eval.parcels.series import BAND_HZ, RegionSeries, amplitude_cache
from eval.ranks import Ranks
from shards.errors import CorruptShardError, OutputError
from shards.reader import ShardSet

ALONE = Ranks()


def _expected(shard_set: ShardSet, run: int) -> np.ndarray:
    labels = geometric_parcels(shard_set).labels
    residual = shard_set.residual(run, 0, shard_set.runs[run].num_frames)
    return np.stack([residual[:, labels == k].mean(axis=1) for k in range(labels.max() + 1)], axis=1)


def _series(shard_set: ShardSet, out: Path) -> RegionSeries:
    return RegionSeries(shard_set, geometric_parcels(shard_set), out)


def _ready(shard_set: ShardSet, out: Path) -> RegionSeries:
    series = _series(shard_set, out)
    series.cache.ensure(range(len(shard_set.runs)), ALONE, 2)
    return series


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("parcels-*/*.npz")}


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
def test_blocks_are_the_readers_residuals(
    make_shard_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    make_shard_set(tmp_path, dtype=dtype, num_wide=3)
    with ShardSet(tmp_path) as shard_set:
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
        lazy = Blocks(shard_set)
        for run, entry in enumerate(shard_set.runs):
            (found,) = blocks.compute([lazy.residual(run)], 2, "here")
            assert np.array_equal(found, shard_set.residual(run, 0, entry.num_frames)), entry.run_id


def test_series_are_means_of_the_readers_residuals(
    make_shard_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard_set(tmp_path / "set")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    with ShardSet(tmp_path / "set") as shard_set:
        series = _ready(shard_set, tmp_path / "out")
        for run in range(3):
            assert series.of_run(run) == pytest.approx(_expected(shard_set, run), abs=1e-5)
    assert not (tmp_path / "out").exists(), "it is kept beside the shards"


def test_what_is_kept_is_plain_numpy_with_a_name_a_run(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shard_set:
        series = _ready(shard_set, tmp_path / "out")
        (folder,) = (tmp_path / "set").glob("parcels-*")
        kept = {name: arrays[name] for path in folder.glob("*.npz") for arrays in [np.load(path)] for name in arrays}
        assert set(kept) == {entry.run_id for entry in shard_set.runs}
        assert kept[shard_set.runs[1].run_id] == pytest.approx(series.of_run(1))
    assert json.loads((folder / "about.json").read_text())["num_parcels"] == series.num_parcels


def test_a_second_call_reads_no_shard(
    make_shard_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shard_set:
        first = _ready(shard_set, tmp_path / "out").of_run(0)
    monkeypatch.setattr(cache, "compute", None)
    with ShardSet(tmp_path / "set") as shard_set:
        assert np.array_equal(_ready(shard_set, tmp_path / "out").of_run(0), first)


def test_only_the_shards_of_the_runs_that_are_needed_are_read(
    make_shard_set: Callable[..., Any], tmp_path: Path
) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shard_set:
        _series(shard_set, tmp_path / "out").cache.ensure([2], ALONE, 1)
    assert [name.split("-0")[1][:5] for name in _files(tmp_path / "set")] == ["00001"]


def test_a_stopped_call_goes_on_at_the_next_shard(
    make_shard_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard_set(tmp_path / "set", runs_per_shard=1)
    plain, calls = cache.compute, []

    def stopped(*args: Any) -> Any:
        calls.append(args[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(cache, "compute", stopped)
    with ShardSet(tmp_path / "set") as shard_set:
        with pytest.raises(KeyboardInterrupt):
            _ready(shard_set, tmp_path / "out")
        before = _files(tmp_path / "set")
        series = _ready(shard_set, tmp_path / "out")
        assert len(before) == 1 and calls[1:] == [calls[1], calls[1], f"{tmp_path}/set/toy-000002.tar"]
        assert before.items() <= _files(tmp_path / "set").items()
        assert series.of_run(2) == pytest.approx(_expected(shard_set, 2), abs=1e-5)


def test_a_set_that_grows_keeps_what_it_has(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    signals = make_shard_set(tmp_path / "set", frames=(30, 40))
    with ShardSet(tmp_path / "set") as shard_set:
        _ready(shard_set, tmp_path / "out")
    before = _files(tmp_path / "set")
    more = np.random.default_rng(0).normal(1000, 20, (25, signals["sub-00_task-rest"].shape[1])).astype("f4")
    make_shard_set(tmp_path / "set", signals=signals | {"sub-99_task-rest": more})
    with ShardSet(tmp_path / "set") as shard_set:
        series = _ready(shard_set, tmp_path / "out")
        for run in (0, 2):
            assert series.of_run(run) == pytest.approx(_expected(shard_set, run), abs=1e-5)
    after = _files(tmp_path / "set")
    assert before.items() <= after.items() and len(after) == 2


def test_a_shard_of_other_bytes_is_computed_anew(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    for seed in (0, 1):
        make_shard_set(tmp_path / "set", seed=seed)
        with ShardSet(tmp_path / "set") as shard_set:
            found = _ready(shard_set, tmp_path / "out").of_run(0)
            assert found == pytest.approx(_expected(shard_set, 0), abs=1e-5)
    assert len(_files(tmp_path / "set")) == 4


@pytest.mark.parametrize("where", ["read-only", "a file's place"])
def test_a_set_that_cannot_be_written_is_kept_for_in_the_results(
    make_shard_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    make_shard_set(tmp_path / "set")
    if where == "read-only":
        plain = os.access
        monkeypatch.setattr(cache.os, "access", lambda path, mode: "out" in str(path) and plain(path, mode))
    with ShardSet(tmp_path / "set") as shard_set:
        series = _series(shard_set, tmp_path / "out")
        if where != "read-only":
            series.cache.places[0].write_text("in the way")
        series.cache.ensure(range(3), ALONE, 1)
        assert series.of_run(0) == pytest.approx(_expected(shard_set, 0), abs=1e-5)
    assert len(_files(tmp_path / "out")) == 2 and not _files(tmp_path / "set")


def test_a_set_behind_a_url_is_kept_for_in_the_results(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(f"file://{tmp_path}/set") as shard_set:
        series = _ready(shard_set, tmp_path / "out")
        assert series.of_run(2) == pytest.approx(_expected(shard_set, 2), abs=1e-5)
    assert len(_files(tmp_path / "out")) == 2 and not _files(tmp_path / "set")


def test_nowhere_to_write_is_said(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shard_set:
        series = _series(shard_set, tmp_path / "out")
        for place in series.cache.places:
            place.parent.mkdir(exist_ok=True)
            place.write_text("in the way")
        with pytest.raises(OutputError, match="cannot be written; choose another --out"):
            series.cache.ensure(range(3), ALONE, 1)


def test_a_damaged_file_is_named_with_its_remedy(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shard_set:
        path = sorted(_ready(shard_set, tmp_path / "out").cache.places[0].glob("*.npz"))[0]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        series = _ready(shard_set, tmp_path / "out")
        with pytest.raises(CorruptShardError, match="remove it and run again"):
            [series.of_run(run) for run in range(3)]


def test_a_damaged_shard_is_named(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set")
    with ShardSet(tmp_path / "set") as shard_set:
        entry = shard_set.runs[0]
        path = tmp_path / "set" / entry.shard
        data = bytearray(path.read_bytes())
        data[entry.bold_offset + entry.bold_bytes // 3] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptShardError, match=f"{entry.shard}"):
            _ready(shard_set, tmp_path / "out")
    assert len(_files(tmp_path / "set")) == 0


def test_ranks_share_the_shards_and_write_the_same_bytes(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    """Two ranks one after the other, each with its own half of what is missing at the start."""
    make_shard_set(tmp_path / "set", runs_per_shard=1)
    with ShardSet(tmp_path / "set") as shard_set:
        _ready(shard_set, tmp_path / "out")
        (folder,) = (tmp_path / "set").glob("parcels-*")
        expected = {path.name: path.read_bytes() for path in folder.glob("*.npz")}
        for path in folder.glob("*.npz"):
            path.unlink()
        series = _series(shard_set, tmp_path / "out")
        missing, members = sorted(series.cache._shards), {f"toy-{k:06d}.tar": [k] for k in range(3)}
        for rank in (1, 0):
            series.cache._work(Ranks(rank=rank, world_size=2).mine(missing), members, folder, 1)
            assert len(list(folder.glob("*.npz"))) == (1 if rank else 3)
        assert {path.name: path.read_bytes() for path in folder.glob("*.npz")} == expected


def test_amplitude_is_that_of_scipys_detrended_spectrum(
    make_shard_set: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard_set(tmp_path / "set", tr_s=[2.0, 0.8, 3.0])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    with ShardSet(tmp_path / "set") as shard_set:
        kept = amplitude_cache(shard_set, tmp_path / "out")
        kept.ensure(range(3), ALONE, 2)
        for run, entry in enumerate(shard_set.runs):
            series = detrend(shard_set.residual(run, 0, entry.num_frames).astype(float), axis=0)
            frequencies = np.fft.rfftfreq(entry.num_frames, entry.tr_s)
            power = 2 * entry.tr_s / entry.num_frames * np.abs(np.fft.rfft(series, axis=0)) ** 2
            inside = (frequencies >= BAND_HZ[0]) & (frequencies <= BAND_HZ[1])
            assert inside.sum() >= 3
            assert kept.read(run) == pytest.approx(np.sqrt(power[inside]).mean(axis=0), abs=1e-4)


def test_amplitude_does_not_depend_on_the_length_of_a_run(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path / "set", frames=(100, 400))
    with ShardSet(tmp_path / "set") as shard_set:
        kept = amplitude_cache(shard_set, tmp_path / "out")
        kept.ensure(range(2), ALONE, 1)
        short, long = (kept.read(run).mean() for run in range(2))
    assert short == pytest.approx(long, rel=0.05)
