"""`bench-fmri`: tables of 80 columns, JSON, one line for what is wrong, and flags that lead from stream to plan."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import EXIT_OK, EXIT_USAGE
from shards.planning.cli import StreamConfig, main, plan_flags
from shards.planning.rates import Streamed

NUMBERS = ["--runs", "40000", "--frames", "1200", "--voxels", "228483", "--bytes_per_frame", "171000"]
NUMBERS += ["--decode_windows_s", "200", "--copy_gb_s", "0", "--wide_runs", "0"]


def plan(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    assert main(["plan", "--json", *NUMBERS, *flags]) == EXIT_OK
    return json.loads(capsys.readouterr().out)


def told(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["plan", *NUMBERS, *flags]) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    return " ".join(line.strip() for line in lines)


def test_the_plan_from_numbers_says_what_binds_and_for_how_long(capsys) -> None:
    flags = ["--ranks", "1024", "--ranks_per_node", "4", "--step_s", "0.1", "--bandwidth_gb_s", "100"]
    made = plan(capsys, *flags)
    step_bytes = 1024 * 8 * 20 * 171_000
    assert made["data"]["windows_per_epoch"] == 40_000 * 60
    assert made["first"]["bound"] == "filesystem, all ranks"
    assert made["first"]["step_s"] == pytest.approx(step_bytes / 100e9)
    assert made["first"]["wait"] == pytest.approx(1 - 0.1 / (step_bytes / 100e9))
    assert made["needed_bytes_s"] == pytest.approx(step_bytes / 0.1)
    assert made["steps_per_epoch"] == 2_400_000 // (1024 * 8)


def test_limits_that_are_not_given_are_null_in_json(capsys) -> None:
    made = plan(capsys, "--step_s", "0.5")
    assert made["machine"]["bandwidth"] is None
    assert made["first"]["stages"][0] == {"name": "filesystem, all ranks", "windows_s": None, "seconds": 0.0}


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--step_s", "0.01", "--threads", "1"], "4 threads per rank would do (4 a node)"),
        (["--step_s", "0.5"], "the data keep up; 1 thread per rank would do"),
        ([], "a GPU step of 0.02 s or more would not wait"),
        (["--step_s", "0.1", "--ranks", "1024", "--bandwidth_gb_s", "50"], "this filesystem feeds 182 ranks"),
        (["--step_s", "0.1", "--ranks", "64", "--node_gb_s", "0.5"], "a node's link feeds 1 rank at"),
        (["--step_s", "0.02", "--ranks", "8", "--cores_per_node", "2"], "decoding takes 8 cores of a node"),
        (["--step_s", "0.1", "--batch_size", "3000000"], "less than one global batch"),
        (["--step_s", "0.5", "--memory_gb", "0.01"], "the loaders alone fill --memory_gb"),
    ],
)
def test_the_plan_says_what_to_change(capsys, flags: list[str], advice: str) -> None:
    assert advice in told(capsys, *flags)


def test_the_page_cache_of_one_large_node_warms_the_second_epoch(capsys) -> None:
    text = told(capsys, "--step_s", "0.1", "--memory_gb", "9000", "--bandwidth_gb_s", "0.1")
    assert "the set fits, epoch 2 finds 83 % of its bytes there" in text
    assert "bound by filesystem, all ranks GPU step data wait" in " ".join(text.split())


def test_decoding_and_size_are_measured_where_they_are_not_given(capsys) -> None:
    flags = ["--runs", "10", "--frames", "100", "--voxels", "30000", "--step_s", "0.1"]
    assert main(["plan", "--json", *flags]) == EXIT_OK
    made = json.loads(capsys.readouterr().out)
    assert any("measured here" in source for source in made["sources"])
    assert 0.6 * 30_000 < made["data"]["frame_bytes"] / 24 < 0.9 * 30_000  # chunks of five frames
    assert made["machine"]["decode_windows_s"] > 10


def test_what_stream_measures_leads_to_a_plan(tmp_path: Path, make_shard_set, capsys) -> None:
    make_shard_set(tmp_path, frames=(80, 60, 90))
    flags = ["--shards", str(tmp_path), "--window", "10", "--batch_size", "4"]
    assert main(["stream", "--json", *flags, "--threads", "1", "2", "--seconds", "0.2"]) == EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert [(row["threads"], row["warm"]) for row in said["rows"]] == [(1, False), (1, True), (2, False), (2, True)]
    for row in said["rows"]:
        assert row["windows_s"] > 0 and row["decoded_bytes"] > row["num_windows"] and 0 <= row["wait"] <= 1
    assert main(["plan", "--json", *said["plan_flags"]]) == EXIT_OK
    made = json.loads(capsys.readouterr().out)
    assert made["machine"]["decode_windows_s"] == pytest.approx(said["rows"][-1]["windows_s"] / 2, rel=0.01)
    assert made["data"]["windows_per_epoch"] == 8 + 6 + 9


def test_what_a_cold_pass_takes_longer_is_the_filesystem() -> None:
    common = {"threads": 2, "seconds": 1.0, "wait_s": 1.0, "decoded_bytes": 0, "disk_bytes": 0}
    found = Streamed(**common, warm=False, num_windows=100, stored_bytes=300_000_000)
    warm = Streamed(**common, warm=True, num_windows=200, stored_bytes=600_000_000)
    flags = plan_flags(StreamConfig(shards="x", threads=(2,)), [found, warm])
    assert flags[-4:] == ["--decode_windows_s", "100", "--stream_gb_s", "0.3"]  # 10 ms to read 3 MB, 10 ms to decode


def test_an_emulated_step_shows_in_the_wait(tmp_path: Path, make_shard_set, capsys) -> None:
    make_shard_set(tmp_path, frames=(80, 60, 90))
    flags = ["--shards", str(tmp_path), "--window", "10", "--batch_size", "4", "--threads", "1", "--seconds", "0.4"]
    assert main(["stream", *flags, "--step_s", "0.05"]) == EXIT_OK
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert "--step_s 0.05" in text
    waits = [float(line.split("%")[0].split()[-1]) for line in text.splitlines()[1:3]]
    assert max(waits) < 50


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plan", "--shards DIR, or all of --runs, --frames and --voxels"),
        ("plan --shards x --runs 3 --dtype int16", "--runs, --dtype: --shards tells this"),
        ("plan --runs 3 --frames 100 --voxels 0", "--voxels 0"),
        ("plan --runs 3 --frames 100 --voxels 9 --window 16s", "--window 16s"),
        ("plan --runs 3 --frames 100 --voxels 9 --window 200", "--window 200"),
        ("plan --runs 3 --frames 100 --voxels 9 --wide_runs 2", "--wide_runs 2"),
        ("plan --runs 3 --frames 100 --voxels 9 --step_s -1", "--step_s"),
        ("plan --shards /no/such/set", "/no/such/set"),
        ("stream --shards /no/such/set", "/no/such/set"),
        ("stream --shards x --threads 0", "--threads 0"),
        ("stream --shards x --seconds 0", "--seconds 0"),
        ("stream --shards x --nonsense 1", "--nonsense"),
    ],
)
def test_what_does_not_fit_is_one_line(capsys, line: str, said: str) -> None:
    assert main(shlex.split(line)) == EXIT_USAGE
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["plan"], ["stream"]])
def test_help_imports_neither_torch_nor_numpy(command: list[str]) -> None:
    code = (
        "import sys; from shards.planning.cli import StreamConfig, main, plan_flags\n"
        f"try: main({[*command, '--help']!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'dask', 'numpy', 'nibabel'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
