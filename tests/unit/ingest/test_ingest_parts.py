"""`--part i/N` and `--merge`: the same set as one call makes, whoever builds what, and whenever."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.cli import main
from ingest.parts import PLAN, Part
from shards.errors import UsageError

SMALL = ("--shard-size", "10kB", "--workers", "0")


@pytest.fixture
def source(make_bids):
    return make_bids([f"{k:02d}" for k in range(1, 9)])


@pytest.fixture
def whole(source, tmp_path):
    """What one call makes."""
    out = tmp_path / "whole"
    assert call(source, out) == 0
    return contents(out)


def call(src: Path, out: Path, *flags: str) -> int:
    return main(["--src", str(src), "--out", str(out), *SMALL, *flags])


def contents(folder: Path) -> dict[str, bytes]:
    """All but what says when and how it was made."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in ("ledger.jsonl", "report.html")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [1, 3, 5, 40])
def test_parts_in_any_order_merge_to_the_same_bytes(source, whole, tmp_path, count):
    out = tmp_path / "out"
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    assert [call(source, out, "--part", f"{index}/{count}") for index in order] == [0] * count
    assert not (out / "manifest.json").exists()
    assert call(source, out, "--merge") == 0
    assert contents(out) == whole


def test_a_second_merge_and_a_plain_call_find_nothing_to_do(source, whole, tmp_path, capsys):
    out = tmp_path / "out"
    for flags in (("--part", "1/2"), ("--part", "2/2"), ("--merge",)):
        assert call(source, out, *flags) == 0
    capsys.readouterr()
    assert call(source, out, "--merge") == call(source, out) == 0
    assert capsys.readouterr().out.count("nothing to do: 8 runs in 8 shards") == 2
    assert contents(out) == whole


def test_a_part_done_again_builds_nothing(source, tmp_path):
    out = tmp_path / "out"
    assert call(source, out, "--part", "2/3") == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert call(source, out, "--part", "2/3") == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_shard_of_a_part_that_is_gone_is_built_again(source, whole, tmp_path):
    out = tmp_path / "out"
    for index in (1, 2):
        assert call(source, out, "--part", f"{index}/2") == 0
    min(out.glob("*.tar")).unlink()
    assert call(source, out, "--merge") == 4
    assert call(source, out, "--part", "1/2") == 0
    assert call(source, out, "--merge") == 0
    assert contents(out) == whole


def test_merging_names_the_parts_that_are_missing_and_changes_nothing(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(source, out, "--part", "2/4") == 0
    before = contents(out)
    assert call(source, out, "--merge") == 4
    assert "3 parts of 4 not finished (1/4, 3/4, 4/4); run --part for each" in capsys.readouterr().err
    assert contents(out) == before


def test_other_settings_or_another_number_of_parts_are_refused(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(source, out, "--part", "1/2") == 0
    assert call(source, out, "--part", "1/3") == 5
    assert "found 2 parts, now --part 1/3" in capsys.readouterr().err
    assert call(source, out, "--part", "2/2", "--dtype", "int16") == 6
    assert "--dtype found int8, now int16" in capsys.readouterr().err
    assert call(source, out) == 5
    assert "built in parts that are not merged yet" in capsys.readouterr().err
    assert call(source, tmp_path / "none", "--merge") == 5
    assert "no parts in" in capsys.readouterr().err


def test_overwriting_removes_parts_with_their_shards(source, whole, tmp_path):
    out = tmp_path / "out"
    assert call(source, out, "--part", "1/2") == 0
    (out / "notes.txt").write_text("mine")
    assert call(source, out, "--overwrite") == 0
    assert contents(out) == {**whole, "notes.txt": b"mine"}


def test_new_subjects_are_added_in_parts_as_one_call_adds_them(make_bids, tmp_path):
    src = make_bids(["01", "02", "03"])
    outs = [tmp_path / "whole", tmp_path / "parts"]
    assert [call(src, out) for out in outs] == [0, 0]
    make_bids(["04", "05", "06", "07"])
    assert call(src, outs[0]) == 0
    for flags in (("--part", "2/2"), ("--part", "1/2"), ("--merge",)):
        assert call(src, outs[1], *flags) == 0
    assert contents(outs[1]) == contents(outs[0])


def test_all_parts_follow_the_plan_of_the_first(make_bids, tmp_path):
    """Subjects that come in between wait for the next call; no part may shift what another one builds."""
    src, out = make_bids(["02", "03"]), tmp_path / "out"
    assert call(src, out, "--part", "1/2") == 0
    make_bids(["01"])
    assert call(src, out, "--part", "2/2") == 0
    assert call(src, out, "--merge") == 0
    assert "sub-01" not in (out / "runs.tsv").read_text()
    assert call(src, out) == 0
    assert "sub-01" in (out / "runs.tsv").read_text()


def test_a_bad_run_fails_in_its_part_and_is_on_record_after_merging(source, tmp_path, capsys):
    bad = next(source.glob("sub-03/func/*_bold.nii.gz"))
    bad.write_bytes(bad.read_bytes()[:-20])
    outs = [tmp_path / "whole", tmp_path / "parts"]
    assert call(source, outs[0]) == 4
    codes = [call(source, outs[1], "--part", f"{index}/4") for index in range(1, 5)]
    assert sorted(codes) == [0, 0, 0, 4]
    assert call(source, outs[1], "--merge") == 4
    assert contents(outs[1]) == contents(outs[0])
    assert "sub-03" in (outs[1] / "failures.tsv").read_text()


def test_a_merge_that_was_cut_short_goes_on(source, whole, tmp_path):
    out = tmp_path / "out"
    for index in (1, 2):
        assert call(source, out, "--part", f"{index}/2") == 0
    kept = {path: path.read_bytes() for path in (out / PLAN, *out.glob("part-*.jsonl"))}
    assert call(source, out, "--merge") == 0
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:30])  # killed in the middle of a line
    for name in ("manifest.json", "runs.tsv"):
        (out / name).unlink()
    for path, data in kept.items():
        path.write_bytes(data)
    assert call(source, out, "--part", "1/2") == 5, "parts do not go on under a merge"
    assert call(source, out, "--merge") == 0
    assert contents(out) == whole
    assert not (out / PLAN).exists()


@pytest.mark.distributed
def test_parts_at_the_same_time_killed_and_started_again_lose_nothing(source, whole, tmp_path):
    out = tmp_path / "out"
    code = "import sys; from ingest.cli import main; sys.exit(main(sys.argv[1:]))"

    def start(index: int) -> subprocess.Popen[bytes]:
        flags = ["--src", str(source), "--out", str(out), *SMALL, "--part", f"{index}/3"]
        return subprocess.Popen([sys.executable, "-c", code, *flags], stderr=subprocess.PIPE, start_new_session=True)

    first = [start(index) for index in (1, 2, 3)]
    deadline = time.monotonic() + 120
    while not list(out.glob("*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in first:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    again = [start(index) for index in (1, 2, 3)]
    assert [(process.communicate(timeout=240)[1], process.returncode)[1] for process in again] == [0, 0, 0]
    assert call(source, out, "--merge") == 0
    assert contents(out) == whole


def test_a_damaged_plan_is_refused_in_one_line(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(source, out, "--part", "1/2") == 0
    plan = json.loads((out / PLAN).read_text())
    del plan["parts"]
    (out / PLAN).write_text(json.dumps(plan) + "\n")
    assert call(source, out, "--part", "2/2") == 5
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "-1/4", "1/0", "1/4/2"])
def test_shares_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match="such as 3/16"):
        Part.parse(text)


@pytest.mark.parametrize(
    "flags", [("--merge", "--overwrite"), ("--part", "1/2", "--merge"), ("--part", "1/2", "--dry-run")]
)
def test_flags_that_contradict_each_other_are_refused(source, tmp_path, capsys, flags):
    assert call(source, tmp_path / "out", *flags) == 2
    assert "do not go together" in capsys.readouterr().err
