"""The reader against the source, and against plain webdataset, zarr and dask."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

import shards
from shards.errors import CorruptShardError, ShardError, UsageError
from shards.reader import ShardSet

DTYPES = ["int8", "int16", "float16", "float32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_come_back_within_the_recorded_error(tmp_path: Path, make_shard_set, dtype: str) -> None:
    sources = make_shard_set(tmp_path, dtype=dtype)
    with ShardSet(tmp_path) as opened:
        for number, entry in enumerate(opened.runs):
            error = np.abs(opened.read_run(number).astype("f8") - sources[entry.run_id])
            assert error.max() <= entry.error_max
            if dtype.startswith("int"):
                assert entry.error_max <= opened.statistics(number).scale.max() * 0.51


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_window_equals_the_slice_of_the_run(tmp_path: Path, make_shard_set, dtype: str) -> None:
    make_shard_set(tmp_path, dtype=dtype)
    rng = np.random.default_rng(0)
    with ShardSet(tmp_path) as opened:
        whole = [opened.read_window(k, 0, entry.num_frames) for k, entry in enumerate(opened.runs)]
        for _ in range(60):
            run = int(rng.integers(len(whole)))
            start, stop = sorted(rng.choice(len(whole[run]) + 1, 2, replace=False).tolist())
            np.testing.assert_array_equal(opened.read_window(run, start, stop - start), whole[run][start:stop])


@pytest.mark.parametrize("window", [(-1, 5), (0, 0), (30, 8), (37, 1)])
def test_windows_outside_the_run_are_refused(tmp_path: Path, make_shard_set, window: tuple[int, int]) -> None:
    make_shard_set(tmp_path)
    with ShardSet(tmp_path) as opened, pytest.raises(UsageError, match="the run has 37"):
        opened.read_window(0, *window)


def test_a_window_is_one_read(tmp_path: Path, make_shard_set, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shard_set(tmp_path)
    with ShardSet(tmp_path) as opened:
        opened.read_window(1, 0, 1)  # brings the index of the run into memory
        calls = []
        read = opened.storage.read_into
        monkeypatch.setattr(opened.storage, "read_into", lambda *a: calls.append(a) or read(*a))
        opened.read_window(1, 17, 90)
        assert len(calls) == 1


def test_statistics_and_residual(tmp_path: Path, make_shard_set) -> None:
    sources = make_shard_set(tmp_path, num_wide=4)
    with ShardSet(tmp_path) as opened:
        x = sources[opened.runs[2].run_id]
        stats = opened.statistics(2)
        np.testing.assert_allclose(stats.mean, x.mean(0, dtype="f8"), rtol=1e-6)
        residual = opened.residual(2, 0, len(x))
        expected = (x - x.mean(0)) / x.std(0)
        assert np.abs(residual - expected)[:, 4:].max() < 0.04


def test_unmask_puts_voxels_where_the_mask_is(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    with ShardSet(tmp_path) as opened:
        flat = np.arange(2 * opened.num_voxels).reshape(2, -1)
        dense = opened.unmask(flat)
        assert dense.shape == (*opened.mask.shape, 2)
        np.testing.assert_array_equal(dense[opened.mask].T, flat)
        assert (dense[~opened.mask] == 0).all()


def test_threads_read_the_same_values(tmp_path: Path, make_shard_set, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shard_set(tmp_path, runs_per_shard=1)
    with ShardSet(tmp_path) as opened:
        monkeypatch.setattr(opened.storage, "_limit", 1)  # every other read closes somebody's file
        expected = [opened.read_window(k, 3, 20) for k in range(3)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda k: opened.read_window(k % 3, 3, 20), range(120)))
        for k, window in enumerate(found):
            np.testing.assert_array_equal(window, expected[k % 3])


def test_the_mask_is_an_ordinary_nifti(tmp_path: Path, make_shard_set, mask: NDArray[np.bool_]) -> None:
    make_shard_set(tmp_path)
    image = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj) == 1, mask)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_zarr_and_dask_read_the_same_values(tmp_path: Path, make_shard_set, dtype: str) -> None:
    import dask.array

    make_shard_set(tmp_path, dtype=dtype)
    group = shards.open_zarr(tmp_path)
    with ShardSet(tmp_path) as opened:
        assert sorted(group.array_keys()) == [entry.run_id for entry in opened.runs]
        for number, entry in enumerate(opened.runs):
            array = group[entry.run_id]
            assert array.metadata.dimension_names == ("time", "voxel")
            np.testing.assert_array_equal(array[:], opened.read_window(number, 0, entry.num_frames))
            np.testing.assert_array_equal(array[11:30, 3:9], opened.read_window(number, 11, 19)[:, 3:9])
            lazy = dask.array.from_zarr(array)
            np.testing.assert_array_equal(lazy[-1].compute(), opened.read_window(number, entry.num_frames - 1, 1)[0])


def test_zarr_refuses_to_write(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    group = shards.open_zarr(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        next(iter(group.arrays()))[1][0] = 1


def test_plain_webdataset_and_zarr_codecs_read_a_shard_with_no_code_of_ours(tmp_path: Path, make_shard_set) -> None:
    import webdataset
    import zarr

    sources = make_shard_set(tmp_path)
    seen = {}
    pattern = str(tmp_path / "toy-{000000..000001}.tar")
    for sample in webdataset.WebDataset(pattern, shardshuffle=False):
        meta = json.loads(sample["json"])
        folder = tmp_path / "unpacked" / sample["__key__"]
        (folder / "c" / "0").mkdir(parents=True)
        (folder / "zarr.json").write_text(json.dumps(meta["zarr"]))
        (folder / "c" / "0" / "0").write_bytes(sample["bold"])
        q = zarr.open_array(folder, mode="r")[:]
        mean, scale = (np.frombuffer(sample[name], "<f4") for name in ("mean.f32", "scale.f32"))
        seen[sample["__key__"]] = mean + scale * q
    assert set(seen) == set(sources)
    for name, signal in sources.items():
        assert np.abs(seen[name] - signal).max() < signal.std(0).max() / 16


def test_tars_are_plain_ustar_without_time_or_owner(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    data = (tmp_path / "toy-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [m.name.split(".", 1)[1] for m in members[:5]] == ["json", "mean.f32", "std.f32", "scale.f32", "bold"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert data[257:265] == b"ustar\x0000"


def test_a_cut_or_missing_shard_is_named(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    path = tmp_path / "toy-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with ShardSet(tmp_path) as opened:
        with pytest.raises(CorruptShardError, match=r"toy-000001\.tar: \d+ bytes, the manifest says"):
            opened.read_window(2, 0, 5)
        path.unlink()
        with pytest.raises(CorruptShardError, match="restore the file"):
            opened.read_window(2, 0, 5)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_of_what_is_read_raises(tmp_path: Path, make_shard_set, seed: int) -> None:
    make_shard_set(tmp_path)
    path = tmp_path / "toy-000000.tar"
    rng = np.random.default_rng(seed)
    entry = ShardSet(tmp_path).runs[0]
    data = bytearray(path.read_bytes())
    where = entry.bold_offset + int(rng.integers(entry.bold_bytes))
    data[where] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    with ShardSet(tmp_path) as opened, pytest.raises(ShardError):
        opened.read_window(0, 0, entry.num_frames)


def test_commands_may_open_as_many_files_as_the_hard_limit_allows() -> None:
    code = (
        "import resource; from shards.storage.local import raise_open_files_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 500)); raise_open_files_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(500, 500)\n"
