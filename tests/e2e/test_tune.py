"""Hyper-parameter search: who runs which trial, what is recorded, and what happens when somebody is stopped."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

ROOT = Path(__file__).resolve().parents[2]
TUNE = ROOT / "scripts" / "tune.py"
FAKE = """
import argparse, json, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path)
parser.add_argument("--lr", type=float)
options, _ = parser.parse_known_args()
plan = json.loads(Path("plan.json").read_text()).get(str(int(options.out.name[-5:])), {})
options.out.mkdir(exist_ok=True)
def note(text):
    with (options.out / "starts").open("a") as file:
        file.write(text + "\\n")
def stopped(*_):
    note("stopped")
    sys.exit(85)
signal.signal(signal.SIGTERM, stopped)
again = (options.out / "starts").exists()
note("started")
with (options.out / "log.jsonl").open("a") as file:
    for step, value in enumerate(plan.get("values", [options.lr])):
        print(json.dumps({"event": "val", "step": step, "score": value, "mse": value}), file=file, flush=True)
if "code" in plan:
    print("a warning\\nerror: sub-01: the loss is nan", file=sys.stderr)
    sys.exit(plan["code"])
time.sleep(0 if again else plan.get("sleep", 0))
(options.out / "model.json").write_text(json.dumps({"val_score": plan.get("values", [options.lr])[-1]}))
"""
PHASE_1 = ("python", "train.py", "--phase", "1", "--shards", "shards")
PHASE_3 = ("python", "train.py", "--phase", "3", "--init", "none", "--target", "sex", "--shards", "shards")
Search = Callable[..., int]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a train.py that trains nothing."""
    (tmp_path / "train.py").write_text(FAKE)
    plan(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tuning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `tune`, looking at its trials all the time."""
    monkeypatch.syspath_prepend(str(TUNE.parent))
    import tune
    from tuning import running, study

    monkeypatch.setattr(running, "POLL_S", 0.02)
    monkeypatch.setattr(study, "BEAT_S", 0.1)
    return tune


@pytest.fixture
def search(tuning: Any) -> Search:
    """Search in this process; returns the exit code."""

    def search(*flags: str, command: tuple[str, ...] = PHASE_3, space: str = "lr=1e-4:1:log") -> int:
        code: int = tuning.main(["--out", "tuned", "--search", *space.split(), *flags, "--", *command])
        return code

    return search


def plan(folder: Path, **trials: dict[str, Any]) -> None:
    """What the trials, t0, t1, ..., do."""
    (folder / "plan.json").write_text(json.dumps({name.removeprefix("t"): what for name, what in trials.items()}))


def worker(*flags: str) -> subprocess.Popen[str]:
    """A worker as a process of its own."""
    command = [sys.executable, str(TUNE), "--out", "tuned", "--search", "lr=1e-4:1:log", *flags, "--", *PHASE_3]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def table() -> list[dict[str, str]]:
    with Path("tuned/trials.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def starts(number: int = 0) -> list[str]:
    return Path(f"tuned/trial-{number:05d}/starts").read_text().split()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def dead_worker(place: Path) -> Iterator[None]:
    """A worker that was killed while its trial ran, which then lasts for ever."""
    plan(place, t0={"sleep": 600})
    process = worker("--trials", "1")
    wait_until(Path("tuned/trial-00000/log.jsonl").exists)
    process.kill()
    process.communicate()
    yield


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("lr", "flag=low:high"),
        ("lr=0:1:log", "above 0"),
        ("lr=1:0.1", "below"),
        ("lr=a:b", "a number"),
        ("rate=0:1", "no flag --rate"),
        ("depth=1.5:3", "a whole number"),
        ("dropout=0:1.5", "[0, 1)"),
        ("channels=32+64,64+12", "multiple of 8"),
        ("channels=32:64", "not a number"),
        ("pool=cls,maen", "'maen'"),
        ("batch_size=4,4", "all different"),
        ("class_weights=yes,no", "true,false"),
        ("seed=0:9", "not be comparable"),
        ("split_seed=0:9", "not be comparable"),
        ("target=sex,age", "not be comparable"),
        ("lr=1e-3:1 lr=1e-3:1", "twice"),
    ],
)
def test_a_search_that_train_py_would_not_take_is_one_line(
    space: str, words: str, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("--trials", "2", space=space) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not Path("tuned").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), "behind --"),
        (("python", "other.py"), "no train.py"),
        ((*PHASE_1, "--learning_rate", "1"), "--learning_rate"),
        ((*PHASE_1, "--out", "run"), "--out"),
        ((*PHASE_1, "--lr=0.1"), "gives --lr already"),
        (("python", "train.py", "--phase", "3", "--shards", "shards"), "--target"),
    ],
)
def test_a_command_that_cannot_train_is_one_line(
    command: tuple[str, ...], words: str, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("--trials", "2", command=command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_what_phase_2_is_measured_by_cannot_be_searched(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("python", "train.py", "--phase", "2", "--init", "none", "--shards", "shards")
    assert search("--trials", "2", space="mask_fraction=0.1:0.5", command=command) == 2
    assert "not be comparable" in capsys.readouterr().err


def test_flags_reach_the_command_in_the_form_that_train_py_takes(tuning: Any) -> None:
    from tuning.space import read_command, read_space

    command = read_command(PHASE_3)
    space = "depth=2:12 channels=32+64,64+128 class_weights=true,false intensity=True,False dropout=0:0.5"
    assert [dimension.kind for dimension in read_space(space.split(), command)] == [int, str, str, str, float]
    values = {"depth": "3", "channels": "32+64", "class_weights": "true", "intensity": "False", "dropout": "0.25"}
    words = command.with_flags(values, Path("tuned/trial-00000"))
    flags = "--depth 3 --channels 32 64 --class_weights --intensity False --dropout 0.25 --out tuned/trial-00000"
    assert words == [*PHASE_3, *flags.split()]
    assert "--class_weights" not in command.with_flags(values | {"class_weights": "false"}, Path("tuned"))


def test_the_best_score_wins_and_its_command_repeats_it(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--trials", "4") == 0
    rows = table()
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert [float(row["value"]) for row in rows] == [float(row["lr"]) for row in rows]
    best = max(rows, key=lambda row: float(row["value"]))
    told = capsys.readouterr().out
    assert f"best: trial {best['trial']}, validation {best['value']}, tuned/{best['folder']}" in told
    (again,) = [line.removeprefix("again: ") for line in told.splitlines() if line.startswith("again: ")]
    assert shlex.split(again) == [*PHASE_3, "--lr", best["lr"], "--out", "tuned/best"]


def test_phases_1_and_2_are_judged_by_their_lowest_error(place: Path, search: Search) -> None:
    plan(place, t0={"values": [3.0, 1.0, 2.0]}, t1={"values": [1.5, 1.2, 1.1]})
    assert search("--trials", "2", command=PHASE_1) == 0
    assert [float(row["value"]) for row in table()] == [1.0, 1.1]


def test_more_trials_later_repeat_none(search: Search) -> None:
    assert search("--trials", "2") == 0
    before = table()
    assert search("--trials", "4") == 0
    assert table()[:2] == before and len(table()) == 4
    assert starts(0) == ["started"]
    assert search("--trials", "4") == 0
    assert len(table()) == 4


def test_the_seed_alone_decides_what_is_tried(search: Search, place: Path) -> None:
    tried = []
    for steps in (["3"], ["1", "2", "3"]):
        for trials in steps:
            assert search("--trials", trials, "--seed", "5") == 0
        tried.append([row["lr"] for row in table()])
        Path("tuned").rename(f"before-{steps[0]}")
    assert tried[0] == tried[1] and len(set(tried[0])) == 3


def test_another_search_in_the_folder_is_refused(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--trials", "1") == 0
    before = {path: path.read_bytes() for path in Path("tuned").iterdir() if path.is_file()}
    assert search("--trials", "2", space="lr=1e-5:1:log") == 6
    assert "search: found ['lr=1e-4:1:log'], now ['lr=1e-5:1:log']" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("tuned").iterdir() if path.is_file()} == before


def test_a_folder_of_somebody_else_is_refused(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tuned").mkdir()
    Path("tuned/thesis.txt").write_text("chapter 1")
    assert search("--trials", "1") == 5
    assert "other files" in capsys.readouterr().err
    assert [path.name for path in Path("tuned").iterdir()] == ["thesis.txt"]


def test_a_failed_trial_is_recorded_and_the_next_one_runs(place: Path, search: Search) -> None:
    plan(place, t0={"code": 8}, t1={"values": [0.7]})
    assert search("--trials", "2") == 0
    failed, complete = table()
    assert (failed["state"], failed["value"], complete["value"]) == ("fail", "n/a", "0.7")
    assert failed["error"] == "exit code 8: error: sub-01: the loss is nan"


def test_where_every_trial_failed_the_search_has_failed(place: Path, search: Search) -> None:
    plan(place, t0={"code": 2}, t1={"code": 1})
    assert search("--trials", "2") == 4
    assert [row["state"] for row in table()] == ["fail", "fail"]


def test_a_trial_worse_than_the_median_is_stopped(place: Path, search: Search) -> None:
    good = {f"t{k}": {"values": [0.5, 0.6, 0.7]} for k in range(5)}
    plan(place, **good, t5={"values": [0.1], "sleep": 600})
    assert search("--trials", "6", "--prune") == 0
    assert [row["state"] for row in table()] == ["complete"] * 5 + ["pruned"]
    assert starts(5) == ["started", "stopped"]


@pytest.mark.distributed
def test_two_workers_share_the_trials_and_run_none_twice(place: Path) -> None:
    plan(place, **{f"t{k}": {"sleep": 0.5, "values": [k / 10]} for k in range(6)})
    workers = [worker("--trials", "6") for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in workers]
    assert [process.returncode for process in workers] == [0, 0], told
    assert [row["state"] for row in table()] == ["complete"] * 6
    assert all(starts(k) == ["started"] for k in range(6))
    assert all(text.count(" starts: ") for text in told)
    assert not Path("tuned/trial-00006").exists()


@pytest.mark.distributed
def test_a_trial_of_a_killed_worker_is_continued(dead_worker: None, search: Search) -> None:
    wait_until(lambda: starts() == ["started", "stopped"])  # the training does not outlive its worker
    assert search("--trials", "1") == 0
    assert starts() == ["started", "stopped", "started"]
    assert [row["state"] for row in table()] == ["complete"]


@pytest.mark.distributed
def test_a_trial_that_kills_its_workers_has_failed(dead_worker: None, search: Search) -> None:
    assert search("--trials", "1", "--retries", "0") == 4
    (row,) = table()
    assert row["state"] == "fail" and "killed 1 times" in row["error"]


@pytest.mark.distributed
def test_a_worker_that_is_told_to_stop_leaves_its_trial_to_be_continued(place: Path, search: Search) -> None:
    plan(place, t0={"sleep": 600})
    process = worker("--trials", "1")
    wait_until(Path("tuned/trial-00000/log.jsonl").exists)
    process.send_signal(signal.SIGUSR1)
    assert "the same command continues" in process.communicate(timeout=60)[0]
    assert process.returncode == 85
    assert starts() == ["started", "stopped"]
    assert search("--trials", "1", "--retries", "0") == 0  # being stopped is not being killed
    assert [row["state"] for row in table()] == ["complete"]


def test_a_trial_that_was_preempted_stops_its_worker(place: Path, search: Search) -> None:
    plan(place, t0={"code": 85})
    assert search("--trials", "1") == 85
    plan(place)
    assert search("--trials", "1") == 0
    assert starts() == ["started", "started"]


def test_a_silent_worker_loses_its_trial(tuning: Any, place: Path) -> None:
    from tuning.space import read_command, read_space
    from tuning.study import Study

    (place / "tuned").mkdir()
    space = read_space(["lr=1e-4:1:log"], read_command(PHASE_3))
    slow, other = (Study(place / "tuned", space, num_trials=1, maximise=True, stale_s=60) for _ in range(2))
    other._me = "elsewhere 1"
    trial = slow.take()
    assert trial is not None and other.take() is None
    long_ago = time.time() - 61
    os.utime(place / "tuned" / "trial-00000.alive", (long_ago, long_ago))
    taken = other.take()
    assert taken is not None and taken.values == trial.values
    wait_until(lambda: not slow.beat(trial))


@pytest.mark.distributed
def test_the_real_training_is_searched(
    place: Path, make_shard_set: Callable[..., Any], search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shard_set(place / "shards", frames=(24,) * 8, runs_per_shard=8)
    small = (
        "--preset tiny --steps 4 --latent 8 --width 16 --heads 2 --window 10 --pca_frames 0 --val_runs 2 --threads 1"
    )
    command = (sys.executable, str(ROOT / "train.py"), "--phase", "1", "--shards", "shards", *small.split())
    code = search("--trials", "1", "--prune", command=command, space="lr=1e-3:1e-2:log channels=8+8,8+16")
    assert code == 0, capsys.readouterr()
    for row in table():
        lines = (place / "tuned" / row["folder"] / "log.jsonl").read_text().splitlines()
        errors = [record["mse"] for record in map(json.loads, lines) if record["event"] == "val"]
        assert float(row["value"]) == pytest.approx(min(errors), rel=1e-5)
        config = json.loads((place / "tuned" / row["folder"] / "config.json").read_text())
        assert "+".join(map(str, config["channels"])) == row["channels"]
        assert config["lr"] == float(row["lr"])
