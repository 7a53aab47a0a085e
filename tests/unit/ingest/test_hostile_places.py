"""Output folders that cannot take a set, disks that are full, and sources that change while they are read."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostile_case import BAD, GOOD, PLAIN, ZIPPED, edited, zipped
from nifti_files import bold_image, save

import ingest.run
from ingest.cli import main
from shards.reader import ShardSet

NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory) -> None:
    """Import everything before a test gives up the right to."""
    folder = tmp_path_factory.mktemp("warm")
    save(bold_image(1), folder / "run.nii")
    (folder / "run.par").write_text(20 * "0 0 0 0 0 0\n")
    (folder / "runs.tsv").write_text("subject\tbold\tconfounds\na\trun.nii\trun.par\n")
    assert call(folder / "runs.tsv", folder / "out") == 0


@pytest.fixture(autouse=True)
def without_report(monkeypatch) -> None:
    """It takes a second, and says nothing about what is tested here."""
    monkeypatch.setattr("ingest.run.bring_report_up_to_date", lambda *_: [])


@pytest.fixture
def src(tmp_path) -> Path:
    """Three runs, the one in the middle called `bad`."""
    for name, seed in GOOD.items():
        save(bold_image(seed), tmp_path / "data" / name)
    (tmp_path / "data" / BAD).write_bytes(ZIPPED)
    return tmp_path / "data"


def call(src: Path, out: Path, *flags: str) -> int:
    return main(["--src", str(src), "--out", str(out), "--workers", "0", *flags])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def tables(folder: Path) -> dict[str, bytes]:
    """All but the ledger, which says how long it took."""
    return {name: data for name, data in contents(folder).items() if name != "ledger.jsonl"}


# ---- sources that change


def failure(out: Path) -> list[str]:
    """Stage and class of the one failure."""
    (row,) = (out / "failures.tsv").read_text().splitlines()[1:]
    return row.split("\t")[2:4]


CHANGES: dict[str, tuple[Callable[[Path], object], list[str] | None]] = {
    "deleted": (Path.unlink, ["open", "missing"]),
    "emptied": (lambda path: path.write_bytes(b""), ["header", "truncated"]),
    "cut": (lambda path: path.write_bytes(ZIPPED[:-2000]), ["data", "truncated"]),
    "cut in its header": (lambda path: path.write_bytes(PLAIN[:200]), ["header", "truncated"]),
    "text now": (lambda path: path.write_text("being copied"), ["header", "not-nifti"]),
    "on another grid now": (lambda path: path.write_bytes(zipped(edited(srow_x=[2, 0, 0, 0]))), ["grid", "other-grid"]),
    "shorter now": (lambda path: path.write_bytes(edited(dim={4: 5})[: 352 + 5 * 480]), ["frames", "too-few-frames"]),
    "of another type now": (lambda path: path.write_bytes(edited(datatype=1536)), ["header", "bad-dtype"]),
    "sound again": (lambda path: path.write_bytes(PLAIN), None),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_source_that_changes_after_the_scan_fails_alone(src, tmp_path, monkeypatch, what):
    change, expected = CHANGES[what]
    plan_line = ingest.run.plan_line

    def plan_then_change(*args):
        line = plan_line(*args)
        change(src / BAD)
        return line

    monkeypatch.setattr("ingest.run.plan_line", plan_then_change)
    out = tmp_path / "out"
    assert call(src, out) == (4 if expected else 0)
    if expected:
        assert failure(out) == expected
    with ShardSet(out) as shards:
        assert {"a-good.nii.gz", "z-good.nii"} <= {entry.source for entry in shards.runs}


@pytest.mark.parametrize(
    ("data", "change", "expected"),
    [
        (PLAIN, lambda path: os.truncate(path, 3000), ["data", "truncated"]),
        (PLAIN, lambda path: os.truncate(path, 100), ["data", "truncated"]),
        (PLAIN, lambda path: os.truncate(path, 0), ["data", "truncated"]),
        (PLAIN, lambda path: path.write_bytes(PLAIN + bytes(480)), ["data", "excess-data"]),
        (ZIPPED, lambda path: os.truncate(path, 3000), ["data", "truncated"]),
        (ZIPPED, lambda path: os.truncate(path, 0), ["data", "truncated"]),
        (ZIPPED, lambda path: path.write_bytes(ZIPPED + 100 * b"and more"), ["data", "damaged"]),
        (ZIPPED, Path.unlink, ["data", "missing"]),
    ],
    ids=["cut", "cut in its header", "emptied", "grown", "cut, gz", "emptied, gz", "grown, gz", "deleted"],
)
def test_a_source_that_changes_between_header_and_data_fails_alone(src, tmp_path, monkeypatch, data, change, expected):
    import ingest.encoding

    (src / BAD).write_bytes(data)
    stream_rows = ingest.encoding.stream_rows

    def change_then_stream(path, *args):
        if path.name == BAD:
            change(path)
        return stream_rows(path, *args)

    monkeypatch.setattr("ingest.encoding.stream_rows", change_then_stream)
    out = tmp_path / "out"
    assert call(src, out) == 4
    assert failure(out) == expected
    assert len(ShardSet(out).runs) == 2


# ---- no room


@contextmanager
def no_file_beyond(num_bytes: int) -> Iterator[None]:
    """As on a full disk: a write that takes a file beyond this fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("num_bytes", [0, 50, 150, 500, 1000, 2000, 5000, 10_000, 20_000])
def test_no_room_ends_in_5_and_is_continued_to_the_same_bytes(src, tmp_path, capsys, num_bytes):
    (src / "cut.nii.gz").write_bytes(ZIPPED[:-3])
    assert call(src, tmp_path / "whole") == 4
    capsys.readouterr()
    out = tmp_path / "out"
    with no_file_beyond(num_bytes):
        code = call(src, out)
    line = the_line(capsys)
    assert code == 5 and line.startswith("error: ") and "make room" in line
    assert not list(out.glob(".partial-*")) and not (out / "manifest.json").exists()
    assert call(src, out) == 4
    assert tables(out) == tables(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A filesystem of 40 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no filesystem can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("num_bytes_left", [0, 4096, 12_288, 20_480, 28_672])
def test_a_disk_that_fills_up_ends_in_5_and_is_continued(src, small_disk, capsys, num_bytes_left):
    (small_disk / "others").write_bytes(bytes(40_960 - num_bytes_left))
    assert call(src, small_disk / "out") == 5
    assert the_line(capsys).startswith("error: ")
    (small_disk / "others").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert call(src, small_disk / "out") == 0
    assert len(ShardSet(small_disk / "out").runs) == 3


# ---- no permission


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder of a user to whom permissions apply; root becomes nobody until the test ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                pytest.skip("the folder for temporary files is closed to other users")
            for run, seed in GOOD.items():
                save(bold_image(seed), folder / "data" / run)
            yield folder
        finally:
            os.seteuid(os.getuid())
            for path in [folder, *folder.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o777)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BAD, ["open", "unreadable"]),
        ("bad.json", ["tr", "bad-sidecar"]),
        ("bad_confounds.tsv", ["confounds", "unreadable"]),
    ],
)
def test_a_file_that_may_not_be_read_fails_its_run(unprivileged, capsys, name, expected):
    (unprivileged / "data" / BAD).write_bytes(ZIPPED)
    (unprivileged / "data" / name).touch()
    (unprivileged / "data" / name).chmod(0)
    out = unprivileged / "out"
    assert call(unprivileged / "data", out) == 4
    assert "ermission" in the_line(capsys)
    assert failure(out) == expected and len(ShardSet(out).runs) == 2
    (unprivileged / "data" / name).chmod(0o600)
    (unprivileged / "data" / name).write_bytes({BAD: ZIPPED, "bad.json": b"{}"}.get(name, b"a\n" + 20 * b"0\n"))
    assert call(unprivileged / "data", out) == 0


def test_a_folder_that_may_not_be_listed_is_said(unprivileged, capsys):
    (unprivileged / "data/closed").mkdir(mode=0)
    assert call(unprivileged / "data", unprivileged / "out") == 0
    printed = capsys.readouterr()
    assert "data/closed: Permission denied" in printed.out and printed.err == ""


@pytest.mark.parametrize("mode", [0o000, 0o600])
def test_a_folder_that_may_not_be_entered_fails_its_run(unprivileged, capsys, mode):
    (unprivileged / "data/sub").mkdir()
    (unprivileged / "data/sub" / BAD).write_bytes(ZIPPED)
    (unprivileged / "runs.tsv").write_text(f"subject\tbold\na\tdata/a-good.nii.gz\nbad\tdata/sub/{BAD}\n")
    (unprivileged / "data/sub").chmod(mode)
    assert call(unprivileged / "runs.tsv", unprivileged / "out") == 4
    assert "Permission denied" in the_line(capsys)
    assert failure(unprivileged / "out") == ["open", "unreadable"]


@pytest.mark.parametrize("flag", ["--src", "--mask", "--participants"])
@pytest.mark.parametrize("mode", [0o000, 0o700])
def test_an_argument_that_may_not_be_read_is_a_usage_error(unprivileged, capsys, flag, mode):
    """The file itself is closed, or the folder that it is in."""
    (unprivileged / "closed").mkdir()
    path = unprivileged / "closed/file.tsv"
    path.write_text("participant_id\n")
    path.chmod(0)
    (unprivileged / "closed").chmod(mode)
    flags = ["--src", str(unprivileged / "data"), "--out", str(unprivileged / "out"), "--workers", "0", flag, str(path)]
    assert main(flags) == 2
    line = the_line(capsys)
    assert line.startswith("error: ") and "file.tsv" in line


def test_participants_of_the_source_that_may_not_be_read_are_a_usage_error(unprivileged, capsys):
    (unprivileged / "data/participants.tsv").touch(mode=0)
    assert call(unprivileged / "data", unprivileged / "out") == 2
    assert "participants.tsv" in the_line(capsys)


@pytest.mark.parametrize("mode", [0o000, 0o500])
@pytest.mark.parametrize("below", ["", "out", "deep/out"])
def test_an_output_folder_that_may_not_be_written_ends_in_5(unprivileged, capsys, mode, below):
    place = unprivileged / "place"
    place.mkdir(mode=mode)
    assert call(unprivileged / "data", place / below) == 5
    assert str(place) in the_line(capsys)


@pytest.mark.parametrize("name", ["ledger.jsonl", "manifest.json", "mask.nii.gz", "runs.tsv", "failures.tsv"])
def test_a_set_of_another_user_ends_in_5(unprivileged, capsys, name):
    (unprivileged / "data" / BAD).write_bytes(ZIPPED[:-3])
    out = unprivileged / "out"
    assert call(unprivileged / "data", out) == 4
    (unprivileged / "data" / BAD).write_bytes(ZIPPED)
    (out / name).chmod(0)
    capsys.readouterr()
    assert call(unprivileged / "data", out) == 5
    line = the_line(capsys)
    assert line.startswith("error: ") and name in line


# ---- strange output folders


def test_output_inside_the_source_and_the_other_way_round(src, tmp_path):
    assert call(src, src / "derived/set") == 0
    assert call(src, src / "derived/set") == 0
    assert call(src, tmp_path) == 0
    assert [len(ShardSet(out).runs) for out in (src / "derived/set", tmp_path)] == [3, 3]


def make_loop(out: Path) -> None:
    out.symlink_to(out)


def make_below_a_file(out: Path) -> None:
    out.parent.write_text("")


def make_table_folder(out: Path) -> None:
    (out / "runs.tsv").mkdir(parents=True)


def make_ledger_folder(out: Path) -> None:
    (out / "ledger.jsonl").mkdir(parents=True)


def make_shard_folder(out: Path) -> None:
    (out / "data-000000.tar").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "out"),
    [
        (make_loop, "out"),
        (os.mkfifo, "out"),
        (make_below_a_file, "file/out"),
        (lambda out: out.symlink_to("/dev/null"), "out"),
        (lambda out: out.symlink_to("gone"), "out"),
        (make_table_folder, "out"),
        (make_ledger_folder, "out"),
        (make_shard_folder, "out"),
        (lambda out: None, "/proc/set"),
        (lambda out: None, "/dev/null/set"),
        (lambda out: None, 300 * "x"),
    ],
    ids=[
        "a loop",
        "a pipe",
        "below a file",
        "a device",
        "a broken link",
        "a folder runs.tsv",
        "a folder ledger.jsonl",
        "a folder for a shard",
        "in /proc",
        "below a device",
        "a name of 300 bytes",
    ],
)
def test_an_output_folder_that_cannot_be_ends_in_5(src, tmp_path, capsys, make, out):
    make(tmp_path / out)
    assert call(src, tmp_path / out) == 5
    assert the_line(capsys).startswith("error: ")


def test_an_unfinished_name_that_is_a_folder_does_not_end_the_call(src, tmp_path):
    (tmp_path / "out/.partial-999999999-data-000000.tar").mkdir(parents=True)
    assert call(src, tmp_path / "out") == 0


PLAN = b'{"action": "plan", "status": "ok", '
LEDGERS = {
    "cut in its first line": PLAN[:10],
    "of nothing": b"",
    "not JSON": PLAN + b"\n",
    "without a key": PLAN + b'"config": {}}\n',
    "with a list for settings": PLAN + b'"config": [], "grid": null, "mask": null, "shards": [], "failures": []}\n',
    "with a number for shards": PLAN + b'"config": {}, "grid": null, "mask": null, "shards": 3, "failures": []}\n',
    "with words for a grid": PLAN + b'"config": {}, "grid": "RAS", "mask": null, "shards": [], "failures": []}\n',
    "lists in lists": PLAN + b'"config": ' + 100_000 * b"[" + 100_000 * b"]" + b"}\n",
    "random bytes behind": PLAN + bytes(range(256)) + b"\n",
    "a number of 10,000 digits": PLAN + b'"config": 1' + 10_000 * b"0" + b"}\n",
}


@pytest.mark.parametrize("what", LEDGERS)
def test_a_hostile_ledger_ends_in_5_or_is_begun_anew(src, tmp_path, capsys, what):
    out = tmp_path / "out"
    out.mkdir()
    (out / "ledger.jsonl").write_bytes(LEDGERS[what])
    code = call(src, out)
    if LEDGERS[what].endswith(b"\n"):
        assert code == 5 and "ledger.jsonl" in the_line(capsys)
        assert (out / "ledger.jsonl").read_bytes() == LEDGERS[what]
    else:
        assert code == 0 and len(ShardSet(out).runs) == 3
