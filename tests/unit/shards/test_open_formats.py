"""Plain zarr, dask, xarray and webdataset read a set and agree with our reader; what the store does with keys."""

from __future__ import annotations

import asyncio
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype

import shards
from shards.errors import CorruptShardError
from shards.reader import ShardSet
from shards.zarr_store import ShardSetStore

RUN = "sub-01_task-rest"


@pytest.fixture
def store(tmp_path: Path, make_shard_set) -> ShardSetStore:
    make_shard_set(tmp_path, tr_s=0.72)
    return ShardSetStore(ShardSet(tmp_path))


def get(store: ShardSetStore, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
    buffer = asyncio.run(store.get(key, default_buffer_prototype(), byte_range))
    return None if buffer is None else buffer.to_bytes()


def listed(store: ShardSetStore, method: str, *prefix: str) -> list[str]:
    async def collect() -> list[str]:
        return [name async for name in getattr(store, method)(*prefix)]

    return asyncio.run(collect())


# --- xarray -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
def test_xarray_gives_the_stored_values_and_statistics(tmp_path: Path, make_shard_set, dtype: str) -> None:
    import xarray

    make_shard_set(tmp_path, dtype=dtype)
    with ShardSet(tmp_path) as opened:
        for number, entry in enumerate(opened.runs):
            store = shards.open_zarr(tmp_path).store
            run = xarray.open_zarr(store, group=f"runs/{entry.run_id}", consolidated=False)
            assert run.bold.dtype == opened.dtype and run.bold.dims == ("time", "voxel")
            np.testing.assert_array_equal(run.bold, opened.read_window(number, 0, entry.num_frames))
            stats = opened.statistics(number)
            for name in ("mean", "std", "scale"):
                np.testing.assert_array_equal(run[name], getattr(stats, name))


def test_xarray_signal_is_the_readers(store: ShardSetStore, tmp_path: Path) -> None:
    import xarray

    run = xarray.open_zarr(store, group=f"runs/{RUN}", consolidated=False)
    signal = run["mean"] + run["scale"] * run.bold
    with ShardSet(tmp_path) as opened:
        np.testing.assert_allclose(signal.values.T, opened.read_run(1), rtol=1e-6)


def test_xarray_selects_by_seconds(store: ShardSetStore) -> None:
    import xarray

    run = xarray.open_zarr(store, group=f"runs/{RUN}", consolidated=False)
    assert run.time.dtype == "f8" and run.time.attrs["units"] == "s"
    np.testing.assert_allclose(run.time, 0.72 * np.arange(150))
    assert run.bold.sel(time=slice(7.1, 14.5)).sizes["time"] == 11


def test_xarray_positions_are_those_that_nibabel_reads_from_the_mask(store: ShardSetStore, tmp_path: Path) -> None:
    import xarray

    run = xarray.open_zarr(store, group=f"runs/{RUN}", consolidated=False)
    image = nibabel.load(tmp_path / "mask.nii.gz")
    indices = np.argwhere(np.asanyarray(image.dataobj))
    assert set("ijkxyz") <= set(run.bold.coords)
    np.testing.assert_array_equal(np.stack([run[name] for name in "ijk"], 1), indices)
    expected = nibabel.affines.apply_affine(image.affine, indices)
    np.testing.assert_array_equal(np.stack([run[name] for name in "xyz"], 1), expected)


def test_xarray_attributes_name_the_run(store: ShardSetStore) -> None:
    import xarray

    attributes = xarray.open_zarr(store, group=f"runs/{RUN}", consolidated=False).attrs
    signal = "mean + scale * bold"
    assert attributes == {"run_id": RUN, "subject": "01", "task": "rest", "tr_s": 0.72, "signal": signal}


def test_xarray_opens_all_runs_as_a_tree(store: ShardSetStore) -> None:
    import xarray

    tree = xarray.open_datatree(store, engine="zarr", group="runs", consolidated=False)
    assert [tree[name].bold.sizes["time"] for name in sorted(tree.children)] == [37, 150, 83]


def test_a_store_travels_to_other_processes(store: ShardSetStore) -> None:
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    np.testing.assert_array_equal(zarr.open_array(copy, path=RUN)[5], zarr.open_array(store, path=RUN)[5])


# --- zarr and dask ----------------------------------------------------------------------------------------------


def test_dask_reduces_over_all_runs(tmp_path: Path, make_shard_set) -> None:
    import dask.array

    make_shard_set(tmp_path)
    group = shards.open_zarr(tmp_path)
    lazy = dask.array.concatenate([dask.array.from_zarr(group[name]) for name in sorted(group.array_keys())])
    with ShardSet(tmp_path) as opened:
        all_of_it = np.concatenate([opened.read_window(k, 0, entry.num_frames) for k, entry in enumerate(opened.runs)])
    np.testing.assert_array_equal(lazy.astype("i8").sum(0).compute(), all_of_it.astype("i8").sum(0))


def test_dask_knows_a_set_by_place_and_hash(tmp_path: Path, make_shard_set) -> None:
    from dask.base import tokenize

    make_shard_set(tmp_path)
    tokens = {tokenize(ShardSetStore(ShardSet(tmp_path))) for _ in range(2)}
    make_shard_set(tmp_path, seed=1)
    assert len(tokens) == 1 and tokenize(ShardSetStore(ShardSet(tmp_path))) not in tokens


def test_threads_share_a_store(store: ShardSetStore, tmp_path: Path) -> None:
    array = zarr.open_array(store, path=RUN)
    with ShardSet(tmp_path) as opened:
        expected = opened.read_window(1, 0, 150)
    with ThreadPoolExecutor(4) as pool:
        for start, frames in zip(range(0, 140, 3), pool.map(lambda k: array[k : k + 7], range(0, 140, 3)), strict=True):
            np.testing.assert_array_equal(frames, expected[start : start + 7])


def test_the_members_of_root_and_groups(store: ShardSetStore) -> None:
    root = zarr.open_group(store, mode="r")
    assert sorted(root.array_keys()) == ["sub-00_task-rest", RUN, "sub-02_task-rest"]
    assert list(root.group_keys()) == ["runs"]
    assert sorted(root["runs"].group_keys()) == ["sub-00_task-rest", RUN, "sub-02_task-rest"]
    members = {name: array.shape for name, array in root[f"runs/{RUN}"].arrays()}
    voxels = root.attrs["num_voxels"]
    assert members.pop("bold") == (150, voxels) and members.pop("time") == (150,)
    assert members == dict.fromkeys(["mean", "std", "scale", *"ijkxyz"], (voxels,))


def test_a_run_called_runs_keeps_its_array(tmp_path: Path, make_shard_set) -> None:
    rng = np.random.default_rng(0)
    voxels = int(make_shard_set(tmp_path / "other")["sub-00_task-rest"].shape[1])
    signals = {name: rng.standard_normal((20, voxels)).astype("f4") for name in ("runs", "sub-1")}
    make_shard_set(tmp_path / "set", signals=signals)
    root = shards.open_zarr(tmp_path / "set")
    assert sorted(root.array_keys()) == ["runs", "sub-1"] and not list(root.group_keys())
    assert root["runs"].shape == (20, voxels)
    assert not asyncio.run(root.store.exists("runs/sub-1/zarr.json"))


# --- keys -------------------------------------------------------------------------------------------------------


def test_every_listed_key_exists_and_can_be_read(store: ShardSetStore) -> None:
    keys = listed(store, "list")
    assert len(keys) == len(set(keys)) == 2 + 3 * (2 + 3 + 2 * 10)
    assert all(asyncio.run(store.exists(key)) and get(store, key) for key in keys)


@pytest.mark.parametrize(
    "key",
    [
        "", RUN, "c/0/0", "zarr.jso", "nobody/zarr.json", "nobody/c/0/0", "../manifest.json", f"{RUN}/.zarray",
        f"{RUN}/c/0/1", f"{RUN}/c/1/0", f"{RUN}/mean/c/0", "runs/c/0/0", "runs/nobody/zarr.json", f"runs/{RUN}",
        f"runs/{RUN}/mean", f"runs/{RUN}/mean/c/1", f"runs/{RUN}/mode/c/0", f"runs/{RUN}/bold/c/0", f"runs/{RUN}/c/0/0",
    ],
)  # fmt: skip
def test_a_key_that_is_not_there_is_none(store: ShardSetStore, key: str) -> None:
    assert get(store, key) is None
    assert not asyncio.run(store.exists(key))


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("", ["runs", "sub-00_task-rest", RUN, "sub-02_task-rest", "zarr.json"]),
        (RUN, ["c", "zarr.json"]),
        (f"{RUN}/", ["c", "zarr.json"]),
        (f"{RUN}/c", ["0"]),
        (f"{RUN}/c/0", ["0"]),
        ("runs", ["sub-00_task-rest", RUN, "sub-02_task-rest", "zarr.json"]),
        (f"runs/{RUN}", sorted(["bold", "mean", "std", "scale", "time", *"ijkxyz", "zarr.json"])),
        (f"runs/{RUN}/bold", ["c", "zarr.json"]),
        (f"runs/{RUN}/mean/c", ["0"]),
        ("nobody", []),
        ("sub-0", []),
    ],
)
def test_list_dir_gives_the_names_right_below(store: ShardSetStore, folder: str, names: list[str]) -> None:
    assert sorted(listed(store, "list_dir", folder)) == names


@pytest.mark.parametrize("prefix", ["", "sub-0", RUN, f"{RUN}/", "runs", "runs/", f"runs/{RUN}", f"runs/{RUN}/b", "q"])
def test_list_prefix_gives_the_keys_that_begin_so(store: ShardSetStore, prefix: str) -> None:
    expected = [key for key in listed(store, "list") if key.startswith(prefix)]
    assert listed(store, "list_prefix", prefix) == expected


RANGES: list[ByteRequest] = [
    RangeByteRequest(0, 10), RangeByteRequest(5, 6), RangeByteRequest(17, 1 << 40), RangeByteRequest(1 << 40, 1 << 41),
    OffsetByteRequest(0), OffsetByteRequest(33), OffsetByteRequest(1 << 40),
    SuffixByteRequest(4), SuffixByteRequest(1 << 40),
]  # fmt: skip


@pytest.mark.parametrize("byte_range", RANGES, ids=repr)
@pytest.mark.parametrize("key", ["zarr.json", f"{RUN}/zarr.json", f"{RUN}/c/0/0", f"runs/{RUN}/mean/c/0"])
def test_byte_ranges_are_slices(store: ShardSetStore, key: str, byte_range: ByteRequest) -> None:
    whole = get(store, key)
    match byte_range:
        case RangeByteRequest(start, end):
            expected = whole[start:end]
        case OffsetByteRequest(offset):
            expected = whole[offset:]
        case SuffixByteRequest(suffix):
            expected = whole[-suffix:]
    assert get(store, key, byte_range) == expected


def test_statistics_are_the_bytes_of_their_members(store: ShardSetStore, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "toy-000000.tar") as tar:
        for name in ("mean", "std", "scale"):
            stored = tar.extractfile(f"{RUN}.{name}.f32").read()
            assert get(store, f"runs/{RUN}/{name}/c/0") == stored


@pytest.mark.parametrize("key", [f"{RUN}/c/0/0", f"runs/{RUN}/mean/c/0", "new"])
def test_the_store_refuses_to_write(store: ShardSetStore, key: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.set(key, cpu.Buffer.from_bytes(b"x")))
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.delete(key))


# --- damage -----------------------------------------------------------------------------------------------------


def flip(folder: Path, offset_in_bold: int, data: bytes = b"") -> None:
    """Change a byte of the second run's `.bold`, or put other bytes there."""
    with ShardSet(folder) as opened:
        entry = opened.runs[1]
    path = folder / entry.shard
    stored = bytearray(path.read_bytes())
    at = entry.bold_offset + offset_in_bold % entry.bold_bytes
    stored[at : at + max(1, len(data))] = data or bytes([stored[at] ^ 1])
    path.write_bytes(stored)


@pytest.mark.parametrize("place", [0, 1000, -1, -5, -20])
@pytest.mark.parametrize("path", [RUN, f"runs/{RUN}/bold"])
def test_damaged_chunks_raise(store: ShardSetStore, tmp_path: Path, path: str, place: int) -> None:
    flip(tmp_path, place)
    array = zarr.open_array(store, path=path)
    with pytest.raises((CorruptShardError, ValueError), match=r"checksum|crc32c"):
        array[:]


def test_an_index_that_declares_a_chunk_absent_raises_instead_of_giving_zeros(
    store: ShardSetStore, tmp_path: Path
) -> None:
    import crc32c

    with ShardSet(tmp_path) as opened:
        entry = opened.runs[1]
        size = 16 * -(-150 // (-(-131072 // opened.num_voxels))) + 4
    table = b"\xff" * (size - 4)
    flip(tmp_path, -size, table + crc32c.crc32c(table).to_bytes(4, "little"))
    array = zarr.open_array(store, path=RUN)
    with pytest.raises(CorruptShardError, match=entry.run_id):
        array[0]


def test_statistics_that_are_not_finite_raise(store: ShardSetStore, tmp_path: Path) -> None:
    with ShardSet(tmp_path) as opened:
        entry = opened.runs[1]
    path = tmp_path / entry.shard
    stored = bytearray(path.read_bytes())
    scale = entry.bold_offset - 512 - 4 * -(-zarr.open_group(store, mode="r").attrs["num_voxels"] // 128) * 128
    stored[scale : scale + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(stored)
    with pytest.raises(CorruptShardError, match="statistics"):
        zarr.open_array(store, path=f"runs/{RUN}/scale")[:]


def test_a_shard_that_is_gone_raises_instead_of_giving_zeros(store: ShardSetStore, tmp_path: Path) -> None:
    (tmp_path / "toy-000000.tar").unlink()
    with pytest.raises(CorruptShardError, match=r"toy-000000\.tar"):
        zarr.open_array(store, path=RUN)[0]


# --- webdataset -------------------------------------------------------------------------------------------------


def test_webdataset_gives_statistics_that_restore_the_signal(tmp_path: Path, make_shard_set) -> None:
    import webdataset

    make_shard_set(tmp_path, dtype="int16")
    seen = []
    with ShardSet(tmp_path) as opened:
        for sample in webdataset.WebDataset(str(tmp_path / "toy-{000000..000001}.tar"), shardshuffle=False):
            keys = {"zarr.json": json.dumps(json.loads(sample["json"])["zarr"]).encode(), "c/0/0": sample["bold"]}
            memory = zarr.storage.MemoryStore({name: cpu.Buffer.from_bytes(data) for name, data in keys.items()})
            mean, scale = (np.frombuffer(sample[f"{name}.f32"], "<f4") for name in ("mean", "scale"))
            signal = mean + scale * zarr.open_array(memory, mode="r")[:]
            run = [entry.run_id for entry in opened.runs].index(sample["__key__"])
            np.testing.assert_array_equal(signal, opened.read_run(run))
            seen.append(sample["__key__"])
        assert seen == [entry.run_id for entry in opened.runs]
