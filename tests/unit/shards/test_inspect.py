"""The command inspect-fmri: what it prints for people and machines, and how it refuses."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from shards.errors import EXIT_INTERRUPTED, EXIT_OUTPUT, EXIT_USAGE, EXIT_VERIFICATION
from shards.inspect.cli import EXIT_PIPE, main
from shards.inspect.runs import COLUMNS
from shards.inspect.summary import summary
from shards.reader import ShardSet

COMMAND = [sys.executable, "-m", "shards.inspect.cli"]
PARTICIPANTS = "participant_id\tsex\tage\nsub-00\tF\tn/a\nsub-01\tM\t30\nsub-07\tn/a\t\n"
FAILURES = (
    "run_id\tsource\tstage\tclass\treason\tremedy\n"
    "sub-8\ta.nii\theader\ttruncated\tx\ty\nsub-9\tb.nii\theader\ttruncated\tx\ty\nsub-9\tc.nii\tvalues\tnot-finite\tx\ty\n"
)

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shard_set(tmp_path: Path, make_shard_set) -> str:
    folder = tmp_path / "set"
    make_shard_set(folder, tr_s=[0.72, 2.0, 2.0], participants=PARTICIPANTS)
    return str(folder)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Return a function that runs the command here: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def at_terminal(columns: int, *arguments: str) -> str:
    """What the command shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([*COMMAND, *arguments], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # Linux says so when the other side is closed
        os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


# --- summary ----------------------------------------------------------------------------------------------------


def test_summary_for_machines(shard_set: str, say: Say) -> None:
    (Path(shard_set) / "failures.tsv").write_text(FAILURES)
    code, out, _ = say("summary", shard_set, "--json")
    facts = json.loads(out)
    with ShardSet(shard_set) as opened:
        sizes = [path.stat().st_size for path in Path(shard_set).glob("*.tar")]
        dense = 4 * 270 * math.prod(opened.mask.shape)
        assert facts["set_hash"] == opened.manifest.set_hash
        assert facts["mask"]["num_voxels"] == int(opened.mask.sum())
    assert code == 0
    assert facts["grid"]["shape"] == [7, 8, 6] and facts["grid"]["voxel_mm"] == [4, 4, 4]
    assert (facts["num_runs"], facts["num_subjects"], facts["num_frames"]) == (3, 3, 270)
    assert facts["tasks"] == {"rest": 3} and facts["tr_s"] == {"0.72": 1, "2": 2}
    assert facts["frames_per_run"] == {"min": 37, "median": 83, "max": 150}
    assert facts["hours"] == pytest.approx((37 * 0.72 + 150 * 2 + 83 * 2) / 3600)
    assert facts["storage"]["num_bytes"] == sum(sizes)
    assert facts["storage"]["shard_bytes"] == {"min": min(sizes), "median": sum(sizes) / 2, "max": max(sizes)}
    assert facts["storage"]["float32_dense_ratio"] == pytest.approx(dense / sum(sizes))
    assert facts["participants"] == {
        "num_rows": 3, "num_subjects_without_a_row": 1, "columns": {"sex": 1, "age": 2},
    }  # fmt: skip
    assert facts["failures"] == {"truncated": 2, "not-finite": 1}


def test_the_keys_of_the_summary_stay(shard_set: str) -> None:
    with ShardSet(shard_set) as opened:
        assert list(summary(opened)) == [
            "location", "name", "format", "set_hash", "grid", "mask", "dtype", "cleaning", "num_runs",
            "num_lossless_runs", "num_subjects", "num_sessions", "tasks", "tr_s", "num_frames", "frames_per_run",
            "hours", "quality", "storage", "participants", "failures", "software",
        ]  # fmt: skip


def test_summary_without_phenotypes_and_failures(tmp_path: Path, make_shard_set, say: Say) -> None:
    make_shard_set(tmp_path)
    _, out, _ = say("summary", tmp_path, "--json")
    assert json.loads(out)["participants"] is None and json.loads(out)["failures"] is None
    _, out, _ = say("summary", tmp_path)
    assert re.search(r"^participants +no table$", out, re.M) and re.search(r"^failures +none recorded$", out, re.M)


def test_a_damaged_table_of_failures_is_named(shard_set: str, say: Say) -> None:
    (Path(shard_set) / "failures.tsv").write_text("run_id\treason\na\tb\n")
    code, out, err = say("summary", shard_set)
    assert code == EXIT_VERIFICATION and out == "" and "failures.tsv" in err and err.count("\n") == 1


def test_summary_in_a_pipe_is_one_plain_line_a_fact(shard_set: str, say: Say) -> None:
    _, out, _ = say("summary", shard_set)
    assert "\x1b" not in out
    assert re.search(r"^runs +3 runs of 3 subjects$", out, re.M)
    assert re.search(r"^participants +3 rows, 1 subject of the set without one: sex \(1 missing\), age", out, re.M)


@pytest.mark.parametrize("arguments", [("summary",), ("runs",), ("run", "sub-01")])
def test_a_terminal_of_80_columns_is_enough(shard_set: str, arguments: tuple[str, ...]) -> None:
    shown = at_terminal(80, arguments[0], shard_set, *arguments[1:])
    assert "sub-01" in shown or "3 runs of 3 subjects" in shown
    folded = shown.replace(shard_set, "")
    assert max(len(line.rstrip()) for line in folded.splitlines()) <= 80


def test_what_a_table_says_cannot_steer_the_terminal(tmp_path: Path, make_shard_set, say: Say) -> None:
    make_shard_set(tmp_path, participants="participant_id\t[red]x\x1b[2J\nsub-00\t1\n")
    _, out, _ = say("summary", tmp_path)
    assert "[red]x\\x1b[2J" in out
    assert "[red]x\\x1b[2J" in at_terminal(80, "summary", str(tmp_path))


# --- runs -------------------------------------------------------------------------------------------------------


def test_runs_as_a_table(shard_set: str, say: Say) -> None:
    _, out, _ = say("runs", shard_set)
    lines = out.splitlines()
    assert lines[0].split() == ["run", "TR", "s", "frames", "min", "shard", "err", "%", "tSNR", "FD", "mm"]
    assert lines[2].split()[:5] == ["sub-01_task-rest", "2", "150", "5.0", "000000"]
    assert lines[3].split()[4] == "000001" and len(lines) == 4


def test_runs_for_machines(shard_set: str, say: Say) -> None:
    _, out, _ = say("runs", shard_set, "--json")
    rows = json.loads(out)
    _, out, _ = say("runs", shard_set, "--tsv")
    header, *lines = (line.split("\t") for line in out.splitlines())
    assert tuple(header) == COLUMNS and [tuple(row) for row in rows] == [COLUMNS] * 3
    for row, cells in zip(rows, lines, strict=True):
        assert [str(int(value) if isinstance(value, bool) else value) for value in row.values()] == cells
    with ShardSet(shard_set) as opened:
        assert [row["error_max"] for row in rows] == [entry.error_max for entry in opened.runs]


@pytest.mark.parametrize(
    ("flags", "frames"),
    [
        (("--sort", "num_frames"), [37, 83, 150]),
        (("--sort", "num_frames", "--reverse"), [150, 83, 37]),
        (("--sort", "num_frames", "--limit", "2"), [37, 83]),
        (("--subject", "02", "sub-00"), [37, 83]),
        (("--task", "rest", "--limit", "0"), [37, 150, 83]),
    ],
)
def test_runs_are_chosen_and_sorted(shard_set: str, say: Say, flags: tuple[str, ...], frames: list[int]) -> None:
    _, out, _ = say("runs", shard_set, "--json", *flags)
    assert [row["num_frames"] for row in json.loads(out)] == frames


def test_runs_without_a_value_come_last(tmp_path: Path, publish_without_quality: None, say: Say) -> None:
    for flags in ([], ["--reverse"]):
        _, out, _ = say("runs", tmp_path, "--json", "--sort", "tsnr_median", *flags)
        assert [row["tsnr_median"] for row in json.loads(out)][-1] is None
    _, out, _ = say("runs", tmp_path)
    assert out.splitlines()[1].split()[-2:] == ["n/a", "n/a"]


@pytest.fixture
def publish_without_quality(tmp_path: Path, make_shard_set) -> None:
    import dataclasses

    from shards.publish import publish_set

    make_shard_set(tmp_path)
    with ShardSet(tmp_path) as opened:
        missing = {"tsnr_median": math.nan, "mean_fd_mm": math.nan}
        rows = [dataclasses.replace(opened.runs[0], **missing), *opened.runs[1:]]
        about = {name: getattr(opened.manifest, name) for name in ("name", "dtype", "grid", "shards")}
        publish_set(tmp_path, mask=opened.mask, entries=rows, **about)


def test_a_terminal_shows_the_first_runs_and_says_so(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, frames=[8] * 45)
    shown = at_terminal(80, "runs", str(tmp_path))
    assert shown.count("_task-rest") == 40 and "40 of 45 runs; --limit 0 shows all" in shown
    assert at_terminal(80, "runs", str(tmp_path), "--limit", "0").count("_task-rest") == 45


# --- run --------------------------------------------------------------------------------------------------------


def test_one_run_for_machines(shard_set: str, say: Say) -> None:
    import tarfile

    _, out, _ = say("run", shard_set, "sub-01_task-rest", "--json")
    facts = json.loads(out)
    with tarfile.open(Path(shard_set) / "toy-000000.tar") as tar:
        sizes = {member.name: member.size for member in tar if member.name.startswith("sub-01")}
    assert {f"sub-01_task-rest.{name}": size for name, size in facts["members"].items()} == sizes
    assert facts["num_frames"] == 150 and facts["json"]["entities"] == {}
    with ShardSet(shard_set) as opened:
        assert facts["std_median"] == pytest.approx(float(np.median(opened.statistics(1).std)))


@pytest.mark.parametrize("text", ["sub-01_task-rest", "sub-01", "1_t", "01"])
def test_a_part_of_the_id_is_enough(shard_set: str, say: Say, text: str) -> None:
    code, out, _ = say("run", shard_set, text)
    assert code == 0 and re.match(r"run +sub-01_task-rest\n", out)


def test_an_exact_id_is_meant_also_where_it_begins_another(tmp_path: Path, make_shard_set, say: Say) -> None:
    voxels = make_shard_set(tmp_path / "any")["sub-00_task-rest"].shape[1]
    signal = np.random.default_rng(0).standard_normal((9, voxels)).astype("f4")
    make_shard_set(tmp_path / "set", signals={"sub-1": signal, "sub-1_run-2": signal})
    assert "sub-1\n" in say("run", tmp_path / "set", "sub-1")[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sub-0", "fits 3 runs: sub-00_task-rest, sub-01"),
        ("sub-01_task-rset", "nearest: sub-01_task-rest"),
        ("", "fits 3"),
    ],
)
def test_ids_that_name_no_run_or_several(shard_set: str, say: Say, text: str, said: str) -> None:
    code, out, err = say("run", shard_set, text)
    assert code == EXIT_USAGE and out == "" and said in err and err.count("\n") == 1


def test_a_damaged_header_of_a_member_is_named(shard_set: str, say: Say) -> None:
    path = Path(shard_set) / "toy-000000.tar"
    stored = bytearray(path.read_bytes())
    with ShardSet(shard_set) as opened:
        stored[opened.runs[1].offset + 3] ^= 1
    path.write_bytes(stored)
    code, _, err = say("run", shard_set, "sub-01")
    assert code == EXIT_VERIFICATION and "sub-01_task-rest" in err and err.count("\n") == 1


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_run_is_drawn(shard_set: str, say: Say, tmp_path: Path, kind: str) -> None:
    code, _, _ = say("run", shard_set, "sub-01", "--out", tmp_path / f"run.{kind}")
    assert code == 0
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert (tmp_path / f"run.{kind}").read_bytes().startswith(magic)


def test_a_picture_that_exists_is_kept(shard_set: str, say: Say, tmp_path: Path) -> None:
    (tmp_path / "run.png").write_text("precious")
    code, _, err = say("run", shard_set, "sub-01", "--out", tmp_path / "run.png")
    assert code == EXIT_OUTPUT and "--overwrite" in err
    assert (tmp_path / "run.png").read_text() == "precious"


# --- verify -----------------------------------------------------------------------------------------------------


def test_a_whole_set_is_said_to_be_whole(shard_set: str, say: Say) -> None:
    code, out, _ = say("verify", shard_set, "--threads", 2)
    assert code == 0 and re.fullmatch(rf"{shard_set}: whole; 6 files, .* read in .* s, .* GB/s\n", out)


@pytest.mark.parametrize("flags", [(), ("--decode",)])
def test_findings_are_a_line_each_and_exit_code_7(shard_set: str, say: Say, flags: tuple[str, ...]) -> None:
    path = Path(shard_set) / "toy-000001.tar"
    stored = bytearray(path.read_bytes())
    with ShardSet(shard_set) as opened:
        stored[opened.runs[2].bold_offset + 9] ^= 1
    path.write_bytes(stored)
    (Path(shard_set) / "participants.tsv").unlink()
    code, out, _ = say("verify", shard_set, *flags)
    assert code == EXIT_VERIFICATION
    *findings, verdict = out.splitlines()
    assert any(line.startswith("participants.tsv: ") for line in findings)
    assert any(line.startswith("toy-000001.tar (sub-02_task-rest): ") for line in findings)
    assert f"DAMAGED, {len(findings)} findings" in verdict


def test_verify_for_machines(shard_set: str, say: Say) -> None:
    (Path(shard_set) / "toy-000001.tar").unlink()
    code, out, _ = say("verify", shard_set, "--json")
    found = json.loads(out)
    assert code == EXIT_VERIFICATION and found["seconds"] > 0
    assert [finding["file"] for finding in found["findings"]] == ["toy-000001.tar"]
    assert {"num_files", "num_bytes"} < found.keys() and found["findings"][0].keys() == {"file", "run_id", "message"}


def test_verify_of_a_damaged_manifest(shard_set: str, say: Say) -> None:
    (Path(shard_set) / "manifest.json").write_text("{")
    code, out, _ = say("verify", shard_set)
    assert code == EXIT_VERIFICATION and out.startswith("manifest.json: ")


# --- export -----------------------------------------------------------------------------------------------------


def test_export_writes_what_is_asked_for(shard_set: str, say: Say, tmp_path: Path) -> None:
    out = tmp_path / "x.nii.gz"
    code, said, _ = say("export", shard_set, "sub-01", "--out", out, "--start", 10, "--frames", 5, "--what", "residual")
    assert code == 0 and said.startswith(f"{out}: residual of sub-01_task-rest, 5 frames, ")
    with ShardSet(shard_set) as opened:
        found = np.asanyarray(nibabel.load(out).dataobj)[opened.mask].T
        np.testing.assert_array_equal(found, opened.residual(1, 10, 5))


def test_export_refuses_to_overwrite(shard_set: str, say: Say, tmp_path: Path) -> None:
    arguments = ("export", shard_set, "sub-01", "--what", "mean", "--out", tmp_path / "x.nii")
    assert say(*arguments)[0] == 0
    assert say(*arguments)[0] == EXIT_OUTPUT
    assert say(*arguments, "--overwrite")[0] == 0


# --- errors, pipes, interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], EXIT_USAGE, "expected one of"),
        (["sumup", "SET"], EXIT_USAGE, "sumup"),
        (["runs"], EXIT_USAGE, "missing from inspect-fmri runs"),
        (["summary", "nowhere"], EXIT_USAGE, "nowhere: no such folder"),
        (["summary", "."], EXIT_USAGE, "no manifest.json"),
        (["runs", "SET", "--sort", "tsnr"], EXIT_USAGE, "tsnr_median"),
        (["runs", "SET", "--subject", "3"], EXIT_USAGE, "--subject 3"),
        (["runs", "SET", "--task", "rset"], EXIT_USAGE, "nearest: rest"),
        (["runs", "SET", "--json", "--tsv"], EXIT_USAGE, "give one of them"),
        (["runs", "SET", "--limit", "-1"], EXIT_USAGE, "0 for all"),
        (["run", "SET", "sub-01", "--out", "x.jpeg2"], EXIT_USAGE, ".png, .pdf, .svg"),
        (["run", "SET", "sub-01", "--out", "no/such/x.png"], EXIT_OUTPUT, "no/such/x.png"),
        (["export", "SET", "sub-01", "--out", "x.mgz"], EXIT_USAGE, ".nii.gz"),
        (["export", "SET", "sub-01", "--out", "no/such/x.nii"], EXIT_OUTPUT, "no/such/x.nii"),
        (["export", "SET", "sub-01", "--out", "x.nii", "--start", "140", "--frames", "20"], EXIT_USAGE, "has 150"),
        (["export", "SET", "sub-01", "--out", "x.nii", "--frames", "0"], EXIT_USAGE, "at least 1"),
        (["export", "SET", "sub-01", "--out", "x.nii", "--what", "fc"], EXIT_USAGE, "residual"),
        (["verify", "SET", "--threads", "0"], EXIT_USAGE, "at least 1"),
    ],
)
def test_mistakes_are_one_line(
    shard_set: str,
    say: Say,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = say(*(shard_set if argument == "SET" else argument for argument in arguments))
    assert found == code and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("arguments", [("summary",), ("runs",), ("run", "sub-01")])
def test_damage_is_exit_code_7(shard_set: str, say: Say, arguments: tuple[str, ...]) -> None:
    (Path(shard_set) / "runs.tsv").write_text("?")
    code, out, err = say(arguments[0], shard_set, *arguments[1:])
    assert code == EXIT_VERIFICATION and out == "" and "runs.tsv" in err and err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(shard_set: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run([*COMMAND, "runs", shard_set], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert process.returncode == EXIT_PIPE and process.stderr == b""


def test_a_full_disk_is_one_line(shard_set: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run([*COMMAND, "runs", shard_set], stdout=full, stderr=subprocess.PIPE, check=False)
    assert process.returncode == EXIT_OUTPUT
    assert process.stderr.startswith(b"error: ") and process.stderr.count(b"\n") == 1


def test_an_interruption_leaves_nothing_behind(
    shard_set: str, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ShardSet, "read_signal", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # dask_jobqueue, once imported, sets another
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    (tmp_path / "out").mkdir()
    code, out, err = say("export", shard_set, "sub-01", "--out", tmp_path / "out" / "x.nii.gz")
    assert code == EXIT_INTERRUPTED and out == "" and err.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["summary", "--help"], ["export", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    heavy = ["torch", "dask", "matplotlib", "zarr", "pandas", "nibabel", "scipy", "fsspec"]
    program = (
        "import sys\nfrom shards.inspect.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stderr == "[]\n" and "usage: inspect-fmri" in process.stdout
