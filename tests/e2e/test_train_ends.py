"""How a training ends besides well: a loss that is not finite. And that the default preset trains at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


@pytest.fixture
def train(tmp_path: Path, make_shard_set: Callable[..., Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs train.py beside a small shard set."""
    make_shard_set(tmp_path / "shards", frames=(40,) * 8, runs_per_shard=8)

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        common = ["--phase", "1", "--shards", "shards", "--out", "run", "--window", "10", "--batch_size", "4"]
        command = [sys.executable, str(TRAIN), *common, *flags]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)

    return run


def test_a_loss_that_is_not_finite_stops_with_8_and_names_runs(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("--preset", "tiny", "--steps", "20", "--lr", "1e25", "--clip", "0")
    assert done.returncode == 8, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: step ") and "sub-0" in last and "--lr" in last
    assert not (tmp_path / "run" / "model.json").exists()


def test_the_default_preset_trains(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("--steps", "2", "--log_every", "1")
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["event"] for record in log].count("train") == 2
    assert json.loads((tmp_path / "run" / "model.json").read_text())["architecture"]["channels"] == [64, 128, 256]
