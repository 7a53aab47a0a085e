"""Layer-wise rates and thawing are the same under every ZeRO stage, optimizer form and number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 6
SMALL = (
    "--preset tiny --latent 6 --channels 8 8 --width 16 --depth 2 --heads 2 --window 10 --shards shards --phase 3"
    f" --init none --target sex --split_fractions 0.5 0.25 0.25 --steps {NUM_STEPS} --lr 0.001 --log_every 1"
    f" --val_every {NUM_STEPS}"
).split()
THAWED = ["--encoder_lr_scale", "0.5", "--sequence_lr_scale", "0.5", "--layer_decay", "0.7", "--thaw_at", "0.5"]
ADAM = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True}
ONE_RANK = ("zero0", "zero1-client", "zero2", "zero3", "frozen-zero0", "frozen-zero3")
TWO_RANKS = ("zero1", "zero3")
SEVERAL = """
import json, sys
from pathlib import Path
from training.cli import main
from train import validate
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    assert main(arguments, validate=validate) == 0, arguments
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("engine")


@pytest.fixture
def shards(place: Path, make_shard_set: Callable[..., Any]) -> Path:
    """A small set with a label; nothing in it predicts the label."""
    if not (place / "shards").exists():
        rows = "".join(f"sub-{k:02d}\t{'FM'[k % 2]}\n" for k in range(16))
        make_shard_set(
            place / "shards", frames=(40,) * 16, runs_per_shard=16, participants="participant_id\tsex\n" + rows
        )
        (place / "several.py").write_text(SEVERAL)
    return place


def command(place: Path, name: str, ranks: int) -> list[str]:
    """A training whose name says its ZeRO stage and where its optimizer comes from."""
    out = f"{name}-{ranks}"
    values: dict[str, Any] = {"zero_optimization": {"stage": int(name.split("zero")[1][0])}}
    if not name.endswith("client"):
        values["optimizer"] = {"type": "AdamW", "params": ADAM}
    (place / f"{out}.json").write_text(json.dumps(values | {"steps_per_print": 1000000000}))
    rates = [] if name.startswith("frozen") else THAWED
    return [*SMALL, *rates, "--batch_size", str(4 // ranks), "--out", out, "--deepspeed_config", f"{out}.json"]


def train(place: Path, names: tuple[str, ...], ranks: int, *launcher: str) -> None:
    """All of them in one process (a rank), unless it was done."""
    done = place / f"done-{ranks}"
    if done.exists():
        return
    (place / f"{ranks}.json").write_text(json.dumps([command(place, name, ranks) for name in names]))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [*launcher, "several.py", f"{ranks}.json"], cwd=place, env=env, capture_output=True, text=True, timeout=400
    )
    assert told.returncode == 0, told.stderr[-4000:]
    done.touch()


def losses(folder: Path) -> np.ndarray:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([record["loss"] for record in records if record["event"] == "train"])


def assert_same(found: Path, expected: Path) -> None:
    assert len(losses(expected)) == NUM_STEPS and np.ptp(losses(expected)) > 1e-4
    np.testing.assert_allclose(losses(found), losses(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ONE_RANK if not name.startswith("frozen")][1:])
def test_stages_and_optimizers_learn_alike(shards: Path, name: str) -> None:
    train(shards, ONE_RANK, 1, sys.executable)
    assert_same(shards / f"{name}-1", shards / "zero0-1")


def test_a_frozen_encoder_trains_under_zero_3(shards: Path) -> None:
    train(shards, ONE_RANK, 1, sys.executable)
    assert_same(shards / "frozen-zero3-1", shards / "frozen-zero0-1")


def test_thawing_is_what_makes_the_difference_and_only_from_its_step_on(shards: Path) -> None:
    train(shards, ONE_RANK, 1, sys.executable)
    thawed, frozen = losses(shards / "zero0-1"), losses(shards / "frozen-zero0-1")
    # the third step is the last without; the gradients of what waits count in clipping, which Adam hardly sees
    np.testing.assert_allclose(thawed[:4], frozen[:4], rtol=0, atol=5e-6)
    assert np.abs(thawed[4:] - frozen[4:]).max() > 1e-5


@pytest.mark.distributed
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_learn_what_one_learns_from_twice_the_batch(shards: Path, name: str) -> None:
    train(shards, ONE_RANK, 1, sys.executable)
    train(shards, TWO_RANKS, 2, "torchrun", "--standalone", "--nproc_per_node", "2")
    assert_same(shards / f"{name}-2", shards / "zero0-1")
    assert load_file(shards / f"{name}-2" / "model.safetensors").keys()
