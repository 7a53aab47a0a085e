"""ZeRO stages and ranks change where numbers live, not what is learnt."""

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

ROOT = Path(__file__).resolve().parents[2]
STAGES = (0, 1, 2, 3)
NUM_STEPS = 6
SMALL = (
    f"--preset tiny --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2"
    " --window 10 --pca_frames 64 --val_runs 2 --log_every 1 --split_fractions 0.5 0.25 0.25"
).split()
PHASES = {
    "phase-1": ["--phase", "1", "--active_weight", "0.5"],
    "phase-2": ["--phase", "2", "--init", "none", "--contrast_weight", "0.3", "--accumulation", "2"],
}
# train.py, several times in one process: most of a short run is the start of python
SEVERAL = """
import json, sys
from pathlib import Path
from training.cli import main
def validate(*_):
    raise AssertionError("no phase 3 here")
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    assert main(arguments, validate=validate) == 0, arguments
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("zero")


@pytest.fixture
def runs(place: Path, make_shard_set: Callable[..., Any]) -> Path:
    """Each phase on one process (twice, and with another seed), and on two with every ZeRO stage; all made once."""
    if (place / "shards").exists():
        return place
    make_shard_set(place / "shards", frames=(40,) * 16, runs_per_shard=16)
    (place / "several.py").write_text(SEVERAL)
    one, two = [], []
    for phase, flags in PHASES.items():
        one.append([*SMALL, *flags, "--batch_size", "4", "--out", f"{phase}-one"])
        for stage in STAGES:
            values = json.loads((ROOT / "deepspeed_configs" / "zero0_fp32.json").read_text())
            values["zero_optimization"]["stage"] = stage
            (place / f"zero{stage}.json").write_text(json.dumps(values))
            out = ["--out", f"{phase}-zero{stage}", "--deepspeed_config", f"zero{stage}.json"]
            two.append([*SMALL, *flags, "--batch_size", "2", *out])
    first = [*SMALL, *PHASES["phase-1"], "--batch_size", "4"]
    one += [[*first, "--out", "again"], [*first, "--out", "other-seed", "--seed", "1"]]
    processes = [
        start(place, "one.json", one, sys.executable),
        start(place, "two.json", two, "torchrun", "--standalone", "--nproc_per_node", "2"),
    ]
    for process in processes:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told[-4000:]
    return place


def start(place: Path, name: str, commands: list[list[str]], *launcher: str) -> subprocess.Popen:
    (place / name).write_text(json.dumps(commands))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, "several.py", name], cwd=place, env=env, **pipes)


def logged(folder: Path, event: str, name: str) -> np.ndarray:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([record[name] for record in records if record["event"] == event], float)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("phase", list(PHASES))
def test_two_ranks_learn_what_one_learns_from_twice_the_batch(runs: Path, phase: str, stage: int) -> None:
    one, two = runs / f"{phase}-one", runs / f"{phase}-zero{stage}"
    assert json.loads((two / "deepspeed.json").read_text())["zero_optimization"]["stage"] == stage
    losses = logged(one, "train", "loss")
    assert len(losses) == NUM_STEPS and np.ptp(losses) > 1e-3
    np.testing.assert_allclose(logged(two, "train", "loss"), losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logged(two, "val", "mse"), logged(one, "val", "mse"), rtol=0, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("phase", list(PHASES))
def test_the_weights_that_travel_are_whole_at_every_stage(runs: Path, phase: str) -> None:
    from training.export import load_model

    expected = load_model(runs / f"{phase}-one").model.state_dict()
    for stage in STAGES:
        found = load_model(runs / f"{phase}-zero{stage}").model.state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.distributed
def test_the_same_seed_gives_the_same_curve_and_another_seed_another(runs: Path) -> None:
    losses = logged(runs / "phase-1-one", "train", "loss")
    np.testing.assert_array_equal(logged(runs / "again", "train", "loss"), losses)
    assert not np.isclose(logged(runs / "other-seed", "train", "loss"), losses, rtol=0, atol=1e-5).any()
    first, again = ((runs / name / "model.safetensors").read_bytes() for name in ("phase-1-one", "again"))
    assert first == again
