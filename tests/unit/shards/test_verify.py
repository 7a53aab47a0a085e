"""`verify`: whole sets pass, and each thing that is wrong inside a shard whose hashes are right is found."""

from __future__ import annotations

import re
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forged_sets import (
    BLOCK,
    SHARD,
    bold_of,
    edit_file,
    edit_rows,
    header,
    replace_bold,
    rows,
    tiny_set,
)
from numcodecs import zstd
from numpy.typing import NDArray

from shards import shard_check, writer
from shards.chunks import decode_chunk, parse_index
from shards.errors import CorruptShardError, UsageError
from shards.format import MASK, RUNS, frames_per_chunk
from shards.reader import ShardSet
from shards.values import Encoded
from shards.verify import verify_set

CHUNK = frames_per_chunk(12, 1)
NAMES = ("json", "mean.f32", "std.f32", "scale.f32", "bold")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def found(folder: Path, *, decode: bool = False) -> str:
    """Messages of `verify`, all of them about the shard."""
    findings = verify_set(folder, threads=1, decode=decode).findings
    assert {finding.file for finding in findings} == {SHARD}
    return " | ".join(finding.message for finding in findings)


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
@pytest.mark.parametrize("decode", [False, True])
def test_whole_sets_pass(tmp_path: Path, make_shard_set, dtype: str, decode: bool) -> None:
    make_shard_set(tmp_path, dtype=dtype, num_wide=3, participants="participant_id\tage\nsub-00\t31\n")
    told: list[int] = []
    result = verify_set(tmp_path, threads=2, decode=decode, progress=told.append)
    assert result.findings == ()
    assert result.num_files == len(list(tmp_path.iterdir()))
    assert result.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sum(told) == result.num_bytes - (tmp_path / "manifest.json").stat().st_size


@pytest.mark.parametrize("piece", [512, 1000, 4096])
def test_pieces_of_any_size_give_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(shard_check, "_PIECE", piece)
    assert verify_set(folder, decode=True).findings == ()


def test_lossless_and_constant_voxels_pass(tmp_path: Path, make_shard_set, mask: NDArray[np.bool_]) -> None:
    signal = np.random.default_rng(0).integers(90, 110, (40, mask.sum())).astype("i2")
    signal[:, :5] = 7
    make_shard_set(tmp_path, signals={"sub-01": signal})
    assert verify_set(tmp_path, decode=True).findings == ()


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_sets_of_the_first_build_pass(dtype: str) -> None:
    assert verify_set(Path(__file__).parent / "sets" / "format-1" / dtype, decode=True).findings == ()


def test_a_folder_without_a_set_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        verify_set(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        verify_set(tmp_path / "absent")


def test_findings_of_a_file_are_bounded(tmp_path: Path, make_shard_set) -> None:
    signals = {f"sub-{k:03d}": np.arange(60, dtype="f4").reshape(6, 10) ** 1.5 for k in range(30)}
    mask = np.zeros((7, 8, 6), bool)
    mask[0, 0, :] = mask[0, 1, :4] = True
    make_shard_set(tmp_path, signals=signals, runs_per_shard=30, mask=mask)
    edit_rows(tmp_path, lambda cells: [row.update({"tr_s": "3.0"}) for row in cells])
    findings = verify_set(tmp_path).findings
    assert len(findings) == 21 and findings[-1].message == "10 more"


def test_missing_cut_and_other_files_are_named(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, runs_per_shard=1)
    (tmp_path / RUNS).unlink()
    (tmp_path / MASK).write_bytes(b"x")
    (tmp_path / "toy-000000.tar").unlink()
    path = tmp_path / "toy-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    files = [finding.file for finding in verify_set(tmp_path).findings]
    assert sorted(set(files)) == [MASK, RUNS, "toy-000000.tar", "toy-000001.tar"]


def test_a_flipped_byte_names_chunk_and_run(tmp_path: Path, make_shard_set, mask: NDArray[np.bool_]) -> None:
    signal = np.random.default_rng(0).standard_normal((1500, mask.sum())).astype("f4")
    make_shard_set(tmp_path, signals={"sub-01": signal, "sub-02": signal.copy()})
    entry = ShardSet(tmp_path).runs[1]
    path = tmp_path / entry.shard
    data = bytearray(path.read_bytes())
    data[entry.bold_offset + entry.bold_bytes // 2] ^= 4
    path.write_bytes(data)
    findings = verify_set(tmp_path).findings
    assert [finding.run_id for finding in findings] == ["sub-02", None]
    first = frames_per_chunk(int(mask.sum()), 1)
    assert findings[0].message.startswith(f"chunk 1 (from frame {first}): its checksum fails")
    assert "its hash is" in findings[1].message


def test_an_interruption_ends_the_other_threads(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, frames=(40,) * 8, runs_per_shard=1)

    def interrupt(num_bytes: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_set(tmp_path, threads=2, progress=interrupt)
    assert not any(thread.name.startswith("verify") for thread in threading.enumerate() if thread.is_alive())


# tar


def member_at(folder: Path, suffix: str) -> int:
    """Where the header of a member of the first run lies."""
    place = rows(folder)[0]
    step = BLOCK + BLOCK
    bold = int(place["bold_offset"]) - BLOCK
    return {"bold": bold, "json": int(place["offset"])}.get(suffix, bold - (4 - NAMES.index(suffix)) * step)


def rewrite(at: int, new: bytes) -> Callable[[bytearray], None]:
    """A change of a shard: these bytes there."""

    def change(data: bytearray) -> None:
        data[at : at + len(new)] = new

    return change


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"type": b"1", "linkname": "/etc/passwd"}, "type"),
        ({"type": b"2", "linkname": "x"}, "type"),
        ({"type": b"3"}, "type"),
        ({"type": b"4"}, "type"),
        ({"type": b"5"}, "type"),
        ({"type": b"6"}, "type"),
        ({"type": b"x"}, "type"),
        ({"type": b"g"}, "type"),
        ({"type": b"L"}, "type"),
        ({"type": b"\0"}, "type"),
        ({"mode": 0o777}, "mode"),
        ({"mode": 0o4755}, "mode"),
        ({"uid": 1000}, "uid"),
        ({"gid": 5}, "gid"),
        ({"mtime": 1}, "mtime"),
        ({"uname": "root"}, "owner"),
        ({"linkname": "x"}, "link"),
        ({"size": 49}, "bytes"),
        ({"size": 8**11 - 1}, "bytes"),
        ({"name": "../../etc/cron.d/x"}, "member"),
        ({"name": "/sub-01_task-rest.mean.f32"}, "member"),
        ({"name": "sub-01_task-rest.bold"}, "member"),
        ({"name": "sub-02_task-rest.mean.f32"}, "member"),
        ({"name": "sub-01_task-rest.mean.f32/" + "x" * 90}, "prefix"),
    ],
    ids=str,
)
def test_members_that_are_not_plain_files(folder: Path, fields: dict, said: str) -> None:
    at = member_at(folder, "mean.f32")
    assert (folder / SHARD).read_bytes()[at:].startswith(b"sub-01_task-rest.mean.f32")
    name, size = fields.pop("name", "sub-01_task-rest.mean.f32"), fields.pop("size", 48)
    edit_file(folder, SHARD, rewrite(at, header(name, size, **fields)))
    assert said in found(folder)


@pytest.mark.parametrize(
    "at, new, said",
    [
        (148, b"7", "checksum"),
        (257, b"ustar  \0", "no ustar"),
        (124, b"\x80", "checksum"),
        (500, b"x", "checksum"),
    ],
)
def test_damaged_headers(folder: Path, at: int, new: bytes, said: str) -> None:
    edit_file(folder, SHARD, rewrite(member_at(folder, "std.f32") + at, new))
    assert said in found(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data: data + bytes(512), "zero block"),
        (lambda data: data[:-512], "zero block|ends"),
        (lambda data: data[:-1024] + header("sub-03.json", 0) + bytes(1024), "no ustar"),
        (lambda data: data[:-512] + b"x" * 512, "zero block"),
        (lambda data: data[:-1024] + data[: len(data) - 1024] + bytes(1024), "after run"),
        (lambda data: bytes(len(data)), "zero block"),
    ],
)
def test_ends_and_duplicates(folder: Path, change: Callable[[bytearray], bytes], said: str) -> None:
    edit_file(folder, SHARD, change)
    messages = " ".join(finding.message for finding in verify_set(folder, threads=1).findings)
    assert re.search(said, messages)


def test_padding_that_is_not_zero(folder: Path) -> None:
    edit_file(folder, SHARD, rewrite(member_at(folder, "scale.f32") + BLOCK + 100, b"x"))
    assert found(folder) == "padding of sub-01_task-rest.scale.f32 is not zero"


def test_a_run_that_the_table_does_not_have(folder: Path) -> None:
    edit_rows(folder, lambda cells: cells[0].update({"run_id": "sub-00_task-rest"}))
    findings = verify_set(folder).findings
    assert [finding.run_id for finding in findings] == ["sub-01_task-rest", "sub-00_task-rest"]


# the JSON and the statistics of a run


@pytest.mark.parametrize(
    "old, new, said",
    [
        (b'"tr_s": 2.0', b'"tr_s": 3.0', "tr_s"),
        (b'"tr_s": 2.0', b'"tr_s": NaN', "NaN"),
        (b'"num_frames": 6', b'"num_frames": 7', "num_frames"),
        (b'"num_voxels": 12', b'"num_voxels": 13', "num_voxels"),
        (b'"dtype": "int8"', b'"dtype": "int9"', "dtype"),
        (b'"run_id": "sub-01_task-rest", "ses', b'"run_id": "sub-02_task-rest", "ses', "run_id"),
        (b'"subject": "01"', b'"subject": "02"', "subject"),
        (b'"lossless": false', b'"lossless":  true', "lossless"),
        (b'"grid_slope": null', b'"grid_slope": 1.25', "grid_slope"),
        (b'"chunk_shape": [10923, 12]', b'"chunk_shape": [10924, 12]', "zarr"),
        (b'"index_location": "end"', b'"index_location": "eod"', "zarr"),
        (b'"level": 1', b'"level": 2', "zarr"),
        (b'"fill_value": 0', b'"fill_value": 1', "zarr"),
        (b'{"dtype"', b'{"dtypf"', "missing"),
        (b'{"dtype"', b'["dtype"', "JSON|json"),
        (b'"grid_inter": null', b'"grid_slope": null', "twice"),
        (b'"statistics_xxh3": "', b'"statistics_xxh3": "0', "statistics"),
    ],
)
def test_json_that_tells_something_else(folder: Path, old: bytes, new: bytes, said: str) -> None:
    def change(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(new)] = new

    edit_file(folder, SHARD, change)
    assert re.search(said, found(folder))


@pytest.mark.parametrize(
    "suffix, value, said",
    [
        ("mean.f32", np.nan, "finite"),
        ("std.f32", np.inf, "finite"),
        ("std.f32", -1.0, "below 0"),
        ("scale.f32", -1.0, "below 0"),
        ("scale.f32", 3.0, "statistics_xxh3"),
        ("mean.f32", 0.0, "statistics_xxh3"),
    ],
)
def test_statistics_that_cannot_be(folder: Path, suffix: str, value: float, said: str) -> None:
    edit_file(folder, SHARD, rewrite(member_at(folder, suffix) + BLOCK, np.float32(value).tobytes()))
    assert said in found(folder)
    with ShardSet(folder) as opened, pytest.raises(CorruptShardError, match="sub-01"):
        opened.statistics(0)


def test_wide_voxels_are_counted(folder: Path) -> None:
    edit_rows(folder, lambda cells: cells[1].update({"num_wide_voxels": "1"}))
    assert "wide voxels, runs.tsv says 1" in found(folder)


# .bold


def frames(num_bytes: int, value: int = 1) -> bytes:
    """A zstd frame of that many equal bytes."""
    return zstd.compress(np.full(num_bytes, value, "i1"), 1)


def chunk(num_frames: int, value: int = 1) -> bytes:
    """A chunk that holds so many frames, and zeros behind them."""
    data = np.zeros((CHUNK, 12), "i1")
    data[:num_frames] = value
    return zstd.compress(data, 1)


@pytest.fixture(scope="module")
def whole_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ones = np.ones(12, "f4")
    run = Encoded(q=np.ones((2 * CHUNK + 10, 12), "i1"), mean=ones, std=16 * ones, scale=ones)
    return tiny_set(tmp_path_factory.mktemp("three"), [run])


@pytest.fixture
def three(whole_three: Path, tmp_path: Path) -> Path:
    """A set whose one run has three chunks, the last of 10 frames."""
    return Path(shutil.copytree(whole_three, tmp_path / "three"))


def refuses(folder: Path) -> None:
    """The reader refuses to read the run as a whole, and its first and last frames."""
    with ShardSet(folder) as opened, pytest.raises(CorruptShardError):
        opened.read_window(0, 0, opened.runs[0].num_frames)


def test_three_chunks_pass(three: Path) -> None:
    assert verify_set(three, decode=True).findings == ()
    with ShardSet(three) as opened:
        assert (opened.read_window(0, CHUNK - 1, CHUNK + 11) == 1).all()


@pytest.mark.parametrize("num_bytes", [12 * CHUNK - 1, 12 * CHUNK + 1, 12, 64 * 1024 * 1024])
def test_chunks_that_decompress_to_another_size(three: Path, num_bytes: int) -> None:
    replace_bold(three, bold_of([chunk(CHUNK), frames(num_bytes), chunk(10)]))
    assert "chunk 1" in found(three, decode=True)
    refuses(three)


@pytest.mark.parametrize("num_bytes", [12 * CHUNK - 1, 12 * CHUNK + 1, 12])
def test_so_they_are_where_no_compiled_code_runs(num_bytes: int) -> None:
    stored = bold_of([frames(num_bytes)])[:-20]
    with pytest.raises(CorruptShardError):
        decode_chunk(memoryview(stored), np.empty((CHUNK, 12), "i1"), "here")


@pytest.mark.parametrize("payload", [b"", b"x", b"junk" * 100, chunk(CHUNK)[:-3], chunk(CHUNK) + b"tail"])
def test_chunks_that_are_no_zstd_frame(three: Path, payload: bytes) -> None:
    replace_bold(three, bold_of([chunk(CHUNK), payload, chunk(10)]))
    assert found(three, decode=True)
    refuses(three)


def test_values_beyond_the_limit_and_padding_frames_are_found(three: Path) -> None:
    replace_bold(three, bold_of([chunk(CHUNK, -128), chunk(CHUNK), chunk(11)]))
    said = found(three, decode=True)
    assert "chunk 0 (from frame 0): holds -128" in said and "what fills up the last chunk is not zero" in said


def test_a_constant_voxel_is_zero(tmp_path: Path) -> None:
    std = np.arange(12, dtype="f4")
    run = Encoded(q=np.ones((6, 12), "i1"), mean=std, std=std, scale=std / 16)
    assert "a constant voxel is not 0" in found(tiny_set(tmp_path / "set", [run]), decode=True)


SIZES = [len(chunk(CHUNK)) + 4, len(chunk(CHUNK)) + 4, len(chunk(10)) + 4]
ENDS = np.cumsum(SIZES).tolist()
WHOLE_INDEX = [0, SIZES[0], ENDS[0], SIZES[1], ENDS[1], SIZES[2]]


@pytest.mark.parametrize(
    "index",
    [
        [1, *WHOLE_INDEX[1:]],
        [0, SIZES[0], 0, SIZES[1], ENDS[1], SIZES[2]],
        [ENDS[0], SIZES[1], 0, SIZES[0], ENDS[1], SIZES[2]],
        [0, SIZES[0] - 1, ENDS[0], SIZES[1] + 1, ENDS[1], SIZES[2]],
        [0, ENDS[1], ENDS[1], 0, ENDS[1], SIZES[2]],
        [0, ENDS[1] - 4, ENDS[1] - 4, 4, ENDS[1], SIZES[2]],
        [*WHOLE_INDEX[:5], SIZES[2] + 1],
        [*WHOLE_INDEX[:5], 2**64 - 1],
        [2**64 - 1] * 6,
        [0, 2**40, 2**40, 2**64 - 2**40 + ENDS[1], ENDS[1], SIZES[2]],
        [0, 2**31, 2**31, 2**64 - 2**31 + ENDS[1], ENDS[1], SIZES[2]],
        [0, 2**63, 2**63, 2**63 + ENDS[1], ENDS[1], SIZES[2]],
        [0, 2**64 - 2**12, 2**64 - 2**12, 2**12 + ENDS[1], ENDS[1], SIZES[2]],
    ],
    ids=str,
)
def test_indices_that_point_elsewhere(three: Path, index: list[int]) -> None:
    table = struct.pack("<6Q", *index)
    bold = bold_of([chunk(CHUNK), chunk(CHUNK), chunk(10)], index)
    try:
        bounds = parse_index(bold[-len(table) - 4 :], len(bold), "here")
    except CorruptShardError:
        pass
    else:  # the reader hands it to compiled code, so look first
        assert (np.diff(bounds) > 4).all() and bounds[0] == 0 and bounds[-1] == ENDS[2]
    replace_bold(three, bold)
    assert found(three)
    refuses(three)


def test_a_list_of_wide_voxels_that_is_not_that_of_the_statistics_is_found(
    tmp_path: Path, make_shard_set: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard_set(tmp_path / "right", num_wide=5, frames=(150,))
    assert verify_set(tmp_path / "right").findings == ()
    listed = writer.list_wide
    monkeypatch.setattr(writer, "list_wide", lambda gain, n: listed(replace(gain, own=gain.own * 2), n))
    make_shard_set(tmp_path / "wrong", num_wide=5, frames=(150,))
    said = [finding.message for finding in verify_set(tmp_path / "wrong").findings]
    assert said == ["wide in .json does not list the gains of the statistics"]
