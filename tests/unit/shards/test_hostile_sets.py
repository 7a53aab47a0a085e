"""Sets made to harm: every hash is right, the tables are not. Only our errors, no hang, bounded memory."""

from __future__ import annotations

import gzip
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from forged_sets import PARTICIPANT_TABLE, SHARD, edit_file, edit_manifest, edit_rows, replace_mask, tiny_set

from shards.errors import CorruptShardError, FormatVersionError, ShardError, UsageError
from shards.format import MANIFEST, MASK, PARTICIPANTS, RUNS, Manifest
from shards.reader import ShardSet
from shards.verify import verify_set

HUGE = 10**400


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def refusal(folder: Path) -> str:
    """The message with which the reader refuses to open a set, as `verify` does; one line of readable length."""
    with pytest.raises(CorruptShardError) as caught:
        ShardSet(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800
    assert verify_set(folder, threads=1).findings
    return message


def put(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of a manifest: the value at the end of some keys."""

    def change(manifest: dict[str, Any]) -> None:
        inner: Any = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def short(value: object) -> str:
    """Name of a case."""
    return ascii(value)[:12]


# manifest.json


@pytest.mark.parametrize("value", [-1, 0.5, 12.0, True, "12", None, [], {}, HUGE, 2**63, 1e308], ids=short)
@pytest.mark.parametrize(
    "keys",
    [
        ("num_voxels",),
        ("num_runs",),
        ("num_subjects",),
        ("num_frames",),
        ("grid", "shape", 0),
        ("shards", 0, "num_bytes"),
        ("shards", 0, "num_runs"),
    ],
    ids=lambda keys: keys[-1],
)
def test_numbers_of_the_manifest(folder: Path, keys: tuple[str | int, ...], value: object) -> None:
    edit_manifest(folder, put(*keys, value=value))
    refusal(folder)


@pytest.mark.parametrize("value", [1, None, True, [], ["x"], {"a": 1}, "", "\ud800", "x" * 10**6], ids=short)
@pytest.mark.parametrize(
    "keys", [("name",), ("dtype",), ("mask_hash",), ("shards", 0, "xxh3"), ("tables", RUNS)], ids=lambda keys: keys[-1]
)
def test_names_of_the_manifest(folder: Path, keys: tuple[str | int, ...], value: object) -> None:
    edit_manifest(folder, put(*keys, value=value))
    refusal(folder)


@pytest.mark.parametrize("key", ["grid", "shards", "tables", "codec", "cleaning", "config", "software", "mask_source"])
@pytest.mark.parametrize("value", [1, True, None, 2.5, [1], [[]]], ids=repr)
def test_wrong_types_in_the_manifest(folder: Path, key: str, value: object) -> None:
    edit_manifest(folder, put(key, value=value))
    refusal(folder)


@pytest.mark.parametrize("key", [*Manifest.__dataclass_fields__, "set_hash", "format", "version"])
def test_a_missing_key_is_named(folder: Path, key: str) -> None:
    edit_manifest(folder, lambda manifest: manifest.pop(key), rehash=False)
    assert key in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../tiny-000000.tar",
        "/dev/zero",
        "/srv/tiny-000000.tar",
        "a/tiny-000000.tar",
        "..\\tiny-000000.tar",
        "tiny-000000.tar\0",
        "tiny-\uff10\uff10\uff10\uff10\uff10\uff10.tar",
        "tiny-000000.tar\n",
        ".tar",
        "other-000000.tar",
        "manifest.json",
    ],
)
def test_names_of_shards(folder: Path, name: str) -> None:
    edit_manifest(folder, put("shards", 0, "name", value=name))
    assert "shard" in refusal(folder)


def test_a_shard_that_is_listed_twice(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["shards"].append(manifest["shards"][0]))
    edit_manifest(folder, put("num_runs", value=4))
    assert "twice" in refusal(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "failures.tsv", "participants.tsv/"])
def test_other_tables_are_not_read(folder: Path, name: str) -> None:
    edit_manifest(folder, put("tables", name, value="0" * 32))
    assert "tables" in refusal(folder)


@pytest.mark.parametrize(
    "shape",
    [[0, 2, 2], [3, 2], [3, 2, 2, 1], [32767] * 3, [2**21] * 3, [2**31, 2**31, 4], [2**62, 2, 1], [1, 1, 2**32]],
)
def test_grids_that_overflow_or_ask_for_terabytes(folder: Path, shape: list[int]) -> None:
    edit_manifest(folder, put("grid", "shape", value=shape))
    assert "grid" in refusal(folder)


@pytest.mark.parametrize(
    "row", [[0, 0, 0], ["0", 0, 0, 1], [True, 0, 0, 1], [HUGE, 0, 0, 1], None, "0001", [[], 0, 0, 1]], ids=short
)
def test_affines(folder: Path, row: object) -> None:
    edit_manifest(folder, put("grid", "affine", 3, value=row))
    refusal(folder)


def insert(text: str) -> Callable[[str], str]:
    """A change of a manifest's text: this before its last bracket."""
    return lambda old: old.rstrip().removesuffix("}") + f', "x": {text}}}'


@pytest.mark.parametrize(
    "change",
    [
        insert("NaN"),
        insert("-Infinity"),
        insert("1e999"),
        insert("9" * 5000),
        insert("[" * 100_000 + "]" * 100_000),
        insert("[" * 100 + "]" * 100),
        insert('{"a": 1, "a": 1}'),
        insert("1, 2"),
        lambda old: old.replace('"num_runs"', '"version": 1, "num_runs"', 1),
        lambda old: "\ufeff" + old,
        lambda old: old + old,
        lambda old: f"[{old}]",
        lambda old: old[:-10],
        lambda old: "",
        lambda old: "null",
        lambda old: old.replace('"all"', '"\t"'),
    ],
    ids=str,
)
def test_json_that_is_none_or_not_ours(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / MANIFEST
    path.write_text(change(path.read_text()), encoding="utf-8")
    refusal(folder)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "latin-1"])
def test_other_encodings(folder: Path, encoding: str) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_text().replace("all", "\u00e9").encode(encoding))
    refusal(folder)


@pytest.mark.parametrize("version", [2, 0, -1, "1", True, 1.0, [1], None, HUGE // 10**380, {"a": 1}], ids=repr)
def test_other_versions_are_refused_by_name(folder: Path, version: object) -> None:
    edit_manifest(folder, put("version", value=version))
    with pytest.raises(FormatVersionError, match=r"version .*this reader knows 'boldstream-shards' version 1"):
        ShardSet(folder)
    with pytest.raises(FormatVersionError):
        verify_set(folder)


@pytest.mark.parametrize("key", ["set_hash", "config_hash", "manifest_hash"])
def test_hashes_of_the_manifest(folder: Path, key: str) -> None:
    edit_manifest(folder, put(key, value="0" * 32), rehash=False)
    assert key in refusal(folder)


def test_a_manifest_of_brackets_costs_no_memory(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b'{"a":[' + b"[]," * 3_000_000 + b"1]}")
    tracemalloc.start()
    refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # the text, as bytes and as text


def test_a_manifest_beyond_the_limit_is_not_read(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as file:
        file.truncate(300 * 1024**2)
    tracemalloc.start()
    assert "allowed" in refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


# runs.tsv


def set_cell(column: str, value: str, row: int = 0) -> Callable[[list[dict[str, str]]], None]:
    """A change of `runs.tsv`: one cell."""
    return lambda rows: rows[row].update({column: value})


INTEGERS = ["num_frames", "offset", "num_bytes", "bold_offset", "bold_bytes", "source_bytes", "num_wide_voxels"]
NUMBERS = ["tr_s", "error_max", "error_rms", "error_rms_rel", "grid_slope", "grid_inter", "tsnr_median", "mean_fd_mm"]


@pytest.mark.parametrize(
    "cell", ["-1", "1_000", " 5", "5 ", "+5", "05", "5.0", "", "\uff15", "9" * 5000, "0x5", "n/a", "9" * 19]
)
@pytest.mark.parametrize("column", INTEGERS)
def test_cells_of_whole_numbers(folder: Path, column: str, cell: str) -> None:
    edit_rows(folder, set_cell(column, cell, 1))
    assert "line 3" in refusal(folder) or not cell.isascii()


@pytest.mark.parametrize(
    "cell", ["inf", "-inf", "nan", "NaN", "1e999", "1_0.0", " 1.0", "", "0x1p3", "1,5", "infinity", "--1"]
)
@pytest.mark.parametrize("column", NUMBERS)
def test_cells_of_numbers(folder: Path, column: str, cell: str) -> None:
    edit_rows(folder, set_cell(column, cell, 1))
    assert f"line 3: {column}" in refusal(folder)


@pytest.mark.parametrize(
    "column, cell",
    [
        ("run_id", "../sub-01"),
        ("run_id", ""),
        ("run_id", "a" * 91),
        ("run_id", "zub-01"),
        ("subject", ""),
        ("subject", "a/b"),
        ("subject", "%00"),
        ("session", "%0A"),
        ("task", "%1B[2J"),
        ("source", "%zz"),
        ("source", "\x7f"),
        ("source_xxh3", "x"),
        ("shard", "../tiny-000000.tar"),
        ("shard", "/dev/zero"),
        ("shard", "tiny-000001.tar"),
        ("lossless", "2"),
        ("lossless", "true"),
        ("lossless", "1"),
        ("tr_s", "0.0"),
        ("tr_s", "-2.0"),
        ("tr_s", "n/a"),
        ("num_frames", "0"),
        ("num_wide_voxels", "13"),
        ("num_frames", "16777217"),
    ],
)
def test_cells_that_mean_nothing(folder: Path, column: str, cell: str) -> None:
    edit_rows(folder, set_cell(column, cell))
    assert RUNS in refusal(folder)


def move(**by: int) -> Callable[[list[dict[str, str]]], None]:
    """A change of `runs.tsv`: numbers of the second run, by so much."""
    return lambda rows: rows[1].update({name: str(int(rows[1][name]) + step) for name, step in by.items()})


@pytest.mark.parametrize(
    "change",
    [
        move(offset=1),
        move(offset=512),
        move(offset=-512, num_bytes=512),
        move(num_bytes=512),
        move(offset=512, bold_offset=512),
        move(bold_offset=512),
        move(bold_bytes=512),
        move(bold_bytes=2**40, num_bytes=2**40),
        move(bold_bytes=2**61, num_bytes=2**61),
        move(num_frames=10_923 * 10),
        move(num_frames=16_000_000),
        lambda rows: rows[1].update(rows[0]),
        lambda rows: rows[1].update(rows[0] | {"run_id": "sub-02_task-rest", "subject": "02"}),
        lambda rows: rows.reverse(),
        lambda rows: rows.pop(),
        lambda rows: rows.append(rows[1] | {"run_id": "sub-03"}),
        lambda rows: rows[1].update({"subject": "01"}),
        lambda rows: rows[1].update({"more": "x"}),
        lambda rows: rows[1].popitem(),
    ],
)
def test_runs_that_cannot_lie_there(folder: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    edit_rows(folder, change)
    assert RUNS in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data + b"\n",
        lambda data: data.replace(b"rest", b"r\0st"),
        lambda data: data.replace(b"rest", b"r\xffst"),
        lambda data: data.decode().encode("utf-16"),
        lambda data: data.replace(b"tr_s", b"tr"),
        lambda data: bytearray(b"\n"),
        lambda data: data + b"\t" * 10**6 + b"\n",
    ],
)
def test_tables_that_are_none(folder: Path, change: Callable[[bytearray], bytes]) -> None:
    edit_file(folder, RUNS, change)
    assert RUNS in refusal(folder)


# participants.tsv


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"\n\n",
        b"\xff\xfe",
        b"age\n31\n",
        b"participant_id\tage\nsub-01\n",
        b"participant_id\tage\nsub-01\t31\t5\n",
        b"participant_id\tage\tage\nsub-01\t31\t5\n",
        PARTICIPANT_TABLE + b"sub-01\t31\n",
    ],
)
def test_participants_that_are_none(folder: Path, table: bytes) -> None:
    edit_file(folder, PARTICIPANTS, lambda _: table or b" ")
    with ShardSet(folder) as opened, pytest.raises(CorruptShardError, match=r"participants\.tsv"):
        opened.phenotype("age")
    assert verify_set(folder, threads=1).findings


@pytest.mark.parametrize("cell", [b"x" * 200_000, b'"', b"a\0b", "é\u2603".encode()], ids=short)
def test_odd_phenotypes_are_only_text(folder: Path, cell: bytes) -> None:
    edit_file(folder, PARTICIPANTS, lambda _: b"participant_id\tage\n\nsub-01\t" + cell + b"\n\n")
    with ShardSet(folder) as opened:
        assert opened.phenotype("age") == {"01": cell.decode()}


# mask.nii.gz


def nifti(
    shape: tuple[int, ...] = (3, 2, 2), dtype: str = "u1", fill: int = 1, order: str = "<", **fields: object
) -> bytes:
    """An image on the grid of the tiny set, header fields by keyword."""
    head = nibabel.Nifti1Header(endianness=order)
    head.set_data_shape(shape)
    head.set_data_dtype(np.dtype(dtype))
    head.set_sform([[4, 0, 0, -4], [0, 4, 0, -2], [0, 0, 4, -2], [0, 0, 0, 1]], 1)
    head["vox_offset"], head["magic"] = 352, b"n+1"
    for name, value in fields.items():
        head[name] = value
    return head.binaryblock + bytes(4) + np.full(shape, fill, dtype).tobytes()


@pytest.mark.parametrize(
    "image",
    [
        nifti((3, 2, 3)),
        nifti((2, 3, 2)),
        nifti((12,)),
        nifti((3, 2, 2, 1)),
        nifti(dtype="<f4"),
        nifti(dtype="<i2"),
        nifti(fill=0),
        nifti(fill=2),
        nifti(vox_offset=np.nan),
        nifti(vox_offset=np.inf),
        nifti(vox_offset=0),
        nifti(vox_offset=-352),
        nifti(vox_offset=1e30),
        nifti(vox_offset=353),
        nifti(magic=b"ni1"),
        nifti(datatype=9999),
        nifti(srow_x=[8, 0, 0, -4]),
        nifti(srow_x=[np.nan, 0, 0, -4]),
        nifti(dim=[3, -3, 2, 2, 1, 1, 1, 1]),
        nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        nifti(dim=[-1, 3, 2, 2, 1, 1, 1, 1]),
        nifti()[:-1],
        nifti()[:100],
        b"",
        bytes(400),
    ],
)
def test_masks_that_are_none(folder: Path, image: bytes) -> None:
    replace_mask(folder, gzip.compress(image))
    assert MASK in refusal(folder)


@pytest.mark.parametrize("data", [b"", b"junk", nifti(), gzip.compress(nifti())[:-4], gzip.compress(nifti()) + b"x"])
def test_masks_that_are_not_gzipped_as_a_whole(folder: Path, data: bytes) -> None:
    replace_mask(folder, data or b" ")
    assert MASK in refusal(folder)


@pytest.mark.parametrize("order", ["<", ">"])
def test_other_writers_masks_are_read(folder: Path, order: str) -> None:
    replace_mask(folder, gzip.compress(nifti(order=order)))
    with ShardSet(folder) as opened:
        assert opened.mask.all() and opened.mask.shape == (3, 2, 2)


def test_a_mask_that_decompresses_without_end_costs_no_memory(folder: Path) -> None:
    replace_mask(folder, gzip.compress(nifti() + bytes(300_000_000), compresslevel=1))
    tracemalloc.start()
    assert "more than" in refusal(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


# files that are none


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [fifo, device, loop, dangling, Path.mkdir])
@pytest.mark.parametrize("name", [MANIFEST, RUNS, MASK, SHARD])
def test_files_that_are_none_are_refused_at_once(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    make(folder / name)
    begin = time.monotonic()
    with pytest.raises((ShardError, UsageError)), ShardSet(folder) as opened:
        opened.read_window(0, 0, 2)
    if name == MANIFEST:
        with pytest.raises((ShardError, UsageError)):
            verify_set(folder, threads=1)
    else:
        assert {finding.file for finding in verify_set(folder, threads=1).findings} == {name}
    assert time.monotonic() - begin < 5


def test_links_to_files_and_folders_are_followed(folder: Path) -> None:
    store = folder / "annex"
    store.mkdir()
    for name in (MANIFEST, RUNS, MASK, SHARD):
        (folder / name).rename(store / name)
        (folder / name).symlink_to(store / name)
    link = folder.parent / (folder.name + "-link")
    link.symlink_to(folder)
    with ShardSet(link) as opened:
        assert opened.read_window(1, 0, 5).shape == (5, 12)
    assert verify_set(link).findings == ()
