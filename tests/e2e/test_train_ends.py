"""How a training ends besides well, what it tells on the way, and that the default preset trains at all."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_training import Trainings

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
CONFIGS = TRAIN.parent / "deepspeed_configs"
COMMON = ["--phase", "1", "--shards", "shards", "--window", "10", "--batch_size", "4"]
SIZE = ["--latent", "8", "--channels", "8", "8", "--width", "16", "--depth", "1", "--heads", "2"]
SMALL = ["--preset", "tiny", *SIZE, "--pca_frames", "64", "--val_runs", "2"]
# W&B as far as DeepSpeed calls it; what it is told goes to a file
WANDB = """
import json
def init(**given): log({"init": given})
def log(data, **given):
    with open("wandb.jsonl", "a") as file:
        file.write(json.dumps([data, given]) + "\\n")
"""
# one rank alone finds something wrong while the other waits for it in a collective
ONE_RANK_FAILS = """
import os, sys
from shards.errors import CorruptShardError
from training.cli import main
def validate(*_):
    if os.environ["RANK"] == "1":
        raise CorruptShardError("toy-000003.tar: byte 77: crc32c differs")
    return 0.0
raise SystemExit(main(sys.argv[1:], validate=validate))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("ends")


@pytest.fixture(scope="module")
def trainings(place: Path) -> Iterator[Trainings]:
    """What starts trainings in `place`."""
    with Trainings(place) as started:
        yield started


@pytest.fixture
def study(place: Path, make_shard_set: Callable[..., Any]) -> Path:
    """`place`, with a small shard set of two groups."""
    table = "participant_id\tgroup\n" + "".join(f"sub-{k:02d}\t{'ab'[k % 2]}\n" for k in range(16))
    if not (place / "shards").exists():
        make_shard_set(place / "shards", frames=(40,) * 16, runs_per_shard=16, participants=table)
    return place


def log(run: Path, event: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def test_a_loss_that_is_not_finite_stops_with_8_names_runs_and_keeps_the_checkpoint(
    study: Path, trainings: Trainings
) -> None:
    flags = [
        *COMMON,
        *SMALL,
        "--steps",
        "40",
        "--lr",
        "1e20",
        "--clip",
        "0",
        "--save_every",
        "1",
        "--val_every",
        "1000",
    ]
    told = trainings.run("diverged", [*flags, "--out", "diverged"], expect=8)
    last = told.strip().splitlines()[-1]
    assert last.startswith("error: step ") and "sub-" in last and "--lr" in last
    tag = (study / "diverged" / "checkpoints" / "latest").read_text().strip()
    step = int(last.split()[2].rstrip(":"))
    assert tag == f"step{step:08d}" and (study / "diverged" / "checkpoints" / tag).is_dir()
    assert not (study / "diverged" / "model.json").exists()


def test_the_default_preset_trains(study: Path, trainings: Trainings) -> None:
    trainings.run("base", [*COMMON, "--out", "base", "--steps", "2", "--log_every", "1"])
    assert len(log(study / "base", "train")) == 2
    assert json.loads((study / "base" / "model.json").read_text())["architecture"]["channels"] == [64, 128, 256]


def test_monitors_are_told_what_the_log_is_told_over_samples(study: Path, trainings: Trainings) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (study / "wandb.py").write_text(WANDB)
    values = json.loads((CONFIGS / "zero1_fp32.json").read_text())
    values |= {name: {"enabled": True} for name in ("tensorboard", "csv_monitor", "wandb")}
    (study / "monitored.json").write_text(json.dumps(values))
    flags = ["--out", "run", "--steps", "6", "--log_every", "2", "--accumulation", "2", "--active_weight", "0.5"]
    command = [*COMMON, *SMALL, *flags, "--deepspeed_config", "monitored.json"]
    trainings.run("run", command, before="import sys; sys.path.insert(0, '.')")
    records = log(study / "run", "train")
    told = {name for name in records[0] if name not in ("event", "step", "time")}
    assert {"loss", "reconstruction", "active", "lr", "grad_norm", "frames_per_s", "data_wait", "memory_gb"} <= told

    events = EventAccumulator(str(study / "run" / "tensorboard")).Reload()
    for name in told:
        scalars = events.Scalars(f"Train/{name}")
        assert [scalar.step for scalar in scalars] == [record["step"] * 4 * 2 for record in records]
        np.testing.assert_allclose(
            [scalar.value for scalar in scalars], [record[name] for record in records], rtol=1e-6
        )
    (last,) = [record for record in log(study / "run", "val") if record["step"] == 6]
    assert events.Scalars("Val/mse")[-1].value == pytest.approx(last["mse"])

    with (study / "run" / "csv" / "Train_loss.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "loss"] and [float(row[1]) for row in rows[1:]] == [record["loss"] for record in records]

    lines = [json.loads(line) for line in (study / "wandb.jsonl").read_text().splitlines()]
    assert lines[0][0] == {"init": {"project": "boldstream", "group": "run", "entity": None}}
    steps = [given["step"] for _, given in lines[1:]]
    assert steps == sorted(steps), "W&B drops what goes back"
    assert {"Train/loss": records[0]["loss"]} in [data for data, _ in lines]


@pytest.mark.distributed
def test_a_rank_that_fails_alone_ends_the_others_each_with_one_line(study: Path) -> None:
    (study / "one_fails.py").write_text(ONE_RANK_FAILS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = ["--phase", "3", "--init", "none", "--target", "group", "--steps", "4", "--out", "alone"]
    command = [sys.executable, "one_fails.py", *flags, *COMMON[2:], *SMALL, "--split_fractions", "0.5", "0.25", "0.25"]
    processes = []
    for rank in ("0", "1"):
        env = {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=study, env=env, **pipes))
    told = [process.communicate(timeout=200)[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [1, 7]
    assert told[0][-1].startswith("error: another rank has ended (Connection ")
    assert told[1][-1].startswith("error on rank 1 (") and told[1][-1].endswith("byte 77: crc32c differs")
    assert not [line for line in [*told[0], *told[1]] if "Traceback" in line]
