"""The command line of train.py: quick to help, one line when it refuses."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from training.cli import main
from training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "deepspeed", "dask", "nibabel", "sklearn", "matplotlib", "zarr")
HELP = f"""
import runpy, sys
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("imported:", *[name for name in {HEAVY!r} if name in sys.modules])
"""


def never(*_: object) -> float:
    raise AssertionError("a refused start must not validate")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)


def test_help_imports_nothing_heavy() -> None:
    assert python("-c", HELP).stdout.splitlines()[-1] == "imported:"


def test_help_takes_less_than_half_a_second() -> None:
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python("train.py", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 0.5, spent


def test_help_shows_every_flag_and_the_exit_codes() -> None:
    text = python("train.py", "--help").stdout
    assert {field.name for field in fields(TrainConfig)} <= set(re.findall(r"--([a-z0-9_]+)", text))
    for code in ("2 usage", "6 something differs", "85 stopped"):
        assert code in " ".join(text.replace("│", " ").split())


REFUSALS = [
    (["--phase", "3"], "--target"),
    (["--phase", "2"], "--init"),
    (["--phase", "1", "--steps", "3", "--epochs", "1"], "--epochs"),
    (["--phase", "1", "--channels", "8"], "--channels"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS)
def test_a_refusal_is_one_line_on_standard_error(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*arguments, "--shards", "shards", "--out", str(out)], validate=never) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not out.exists()


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_another_rank_tells_why_with_its_number_and_later(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("training.engine.environment.time.sleep", waited.append)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(variable, "1")
    assert main(["--phase", "3", "--shards", "shards", "--out", "out"], validate=never) == 2
    assert waited and capsys.readouterr().err.startswith("error on rank 1 (")


@pytest.mark.parametrize(
    "arguments", [["--phase", "4"], ["--phase", "1", "--learning_rate", "1"], ["--phase", "1", "--batch_size", "many"]]
)
def test_a_flag_that_does_not_parse_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--shards", "shards", "--out", "out"], validate=never) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and arguments[-2] in said[0]


def test_flags_reach_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("training.cli._train", lambda config, validate: asked.append((config, validate)) or 85)
    monkeypatch.setattr("training.cli._log_to_stderr", lambda first: None)
    arguments = "--phase 3 --shards s --out o --init none --target sex --window 16s --channels 16 8 --class_weights"
    split = "--split_fractions 0.5 0.25 0.25 --local_rank=1 --split_group none"
    assert main([*arguments.split(), *split.split()], validate=never) == 85
    ((config, validate),) = asked
    assert validate is never
    expected = TrainConfig(
        phase=3,
        shards=("s",),
        out=Path("o"),
        init="none",
        target="sex",
        window="16s",
        channels=(16, 8),
        class_weights=True,
        split_fractions=(0.5, 0.25, 0.25),
        split_group="none",
        local_rank=1,
    )
    assert config == expected
