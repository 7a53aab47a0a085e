"""A training of seconds, and the losses of one process that nobody disturbs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NUM_STEPS = 60
FLAGS = (
    f"--preset tiny --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2 --window 10"
    " --pca_frames 64 --val_runs 2 --log_every 1 --save_every 10 --val_every 20 --split_fractions 0.5 0.25 0.25"
)
Losses = dict[str, list[float]]
"""Those losses, once they are known."""


def losses(run: Path) -> list[float]:
    """The loss of each step that a run has logged so far."""
    log = run / "log.jsonl"
    lines = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []  # the last may be half there
    records = [json.loads(line) for line in lines]
    return [record["loss"] for record in records if record["event"] == "train"]


def expected(known: Losses) -> list[float]:
    """The losses of one process that nobody disturbs."""
    if "losses" not in known:
        command = f"train.py --phase 1 --shards shards --out one --batch_size 4 {FLAGS}".split()
        env = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"}
        done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        known["losses"] = losses(Path("one"))
    return known["losses"]


def assert_same_curve(run: Path, known: Losses) -> None:
    """Compare a run with one process that nobody disturbs, step for step."""
    one = expected(known)
    assert len(one) == NUM_STEPS and max(one) - min(one) > 1e-3
    assert losses(run) == pytest.approx(one, rel=0, abs=1e-5)
