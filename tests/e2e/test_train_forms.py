"""The forms an engine can take: each trains, and those that only move numbers or recompute them train the same."""

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
from forked_training import Trainings
from travelling_waves import travelling_waves

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "deepspeed_configs"
NUM_STEPS = 8
COMMON = (
    f"--phase 2 --init none --preset tiny --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16"
    " --depth 2 --heads 2 --window 10 --val_runs 2 --log_every 1 --split_fractions 0.5 0.25 0.25"
    " --lr 5e-3 --val_every 1000"
).split()
# DeepSpeed trains in fp16 on CPU, but only says so where the CPU multiplies in fp16
FP16_ON_CPU = """
from deepspeed.accelerator import get_accelerator
type(get_accelerator()).is_fp16_supported = lambda self: True
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("forms")


@pytest.fixture(scope="module")
def trainings(place: Path) -> Any:
    """What starts trainings in `place`."""
    with Trainings(place) as started:
        yield started


@pytest.fixture
def losses(
    place: Path, trainings: Trainings, make_shard_set: Callable[..., Any], mask: np.ndarray
) -> Callable[..., np.ndarray]:
    """Return a function that trains in one form and gives the losses; a form that has been trained is not again."""
    if not (place / "shards").exists():
        make_shard_set(place / "shards", signals=travelling_waves(int(mask.sum())), runs_per_shard=16)

    def train(name: str, *flags: str, config: str = "zero1_fp32", ranks: int = 1, before: str = "") -> np.ndarray:
        if not (place / name).exists():
            where = CONFIGS if (CONFIGS / f"{config}.json").exists() else place
            own = ["--batch_size", str(4 // ranks), "--deepspeed_config", str(where / f"{config}.json"), "--out", name]
            trainings.run(name, [*COMMON, *own, *flags], ranks=ranks, before=before)
        return logged(place / name, "loss")

    return train


def logged(folder: Path, name: str) -> np.ndarray:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([record[name] for record in records if record["event"] == "train"], float)


def assert_falls(losses: np.ndarray) -> None:
    assert len(losses) == NUM_STEPS and np.isfinite(losses).all()
    assert losses[NUM_STEPS // 2 :].mean() < losses[: NUM_STEPS // 2].mean() - 0.02


@pytest.mark.distributed
@pytest.mark.parametrize("config", ["zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_bf16_learns_what_fp32_learns_to_its_precision(losses: Callable[..., np.ndarray], config: str) -> None:
    found = losses(config, config=config, ranks=2)
    assert_falls(found)
    np.testing.assert_allclose(found, losses("fp32"), rtol=0.02)


@pytest.mark.distributed
@pytest.mark.parametrize("config", ["zero2_offload_bf16", "zero3_offload_bf16"])
def test_offloading_changes_nothing(losses: Callable[..., np.ndarray], config: str) -> None:
    found = losses(config, config=config)
    np.testing.assert_allclose(found, losses("zero2_bf16-1", config="zero2_bf16"), rtol=2e-3)
    assert_falls(found)


def test_autocast_learns_what_fp32_learns_to_its_precision(losses: Callable[..., np.ndarray], place: Path) -> None:
    values = json.loads((CONFIGS / "zero1_fp32.json").read_text())
    values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    (place / "autocast.json").write_text(json.dumps(values))
    found = losses("autocast", config="autocast")
    assert_falls(found)
    np.testing.assert_allclose(found, losses("fp32"), rtol=0.02)
    assert not np.array_equal(found, losses("fp32"))


def test_fp16_learns_what_fp32_learns_to_its_precision(losses: Callable[..., np.ndarray], place: Path) -> None:
    found = losses("fp16", config="zero1_fp16", before=FP16_ON_CPU)
    np.testing.assert_allclose(found, losses("fp32"), rtol=0.02)
    assert not np.array_equal(found, losses("fp32")) and logged(place / "fp16", "loss_scale")[0] == 2.0**16


def test_fp16_skips_steps_that_overflow_and_goes_on(losses: Callable[..., np.ndarray], place: Path) -> None:
    values = json.loads((CONFIGS / "zero1_fp16.json").read_text())
    values["fp16"] |= {"initial_scale_power": 22, "hysteresis": 1}
    (place / "overflow.json").write_text(json.dumps(values))
    found = losses("overflow", config="overflow", before=FP16_ON_CPU)
    scale, skipped = logged(place / "overflow", "loss_scale"), logged(place / "overflow", "skipped_steps")
    norm, rate = logged(place / "overflow", "grad_norm"), logged(place / "overflow", "lr")
    assert 0 < skipped[-1] < NUM_STEPS - 1 and scale[-1] == 2.0 ** (22 - skipped[-1])
    first = int(skipped[-1])
    assert np.isnan(norm[:first]).all() and np.isfinite(norm[first:]).all()
    assert len(set(rate[:first])) == 1 and len(set(rate[first:])) == NUM_STEPS - first
    assert np.isfinite(found).all()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_recomputing_activations_changes_no_bit(losses: Callable[..., np.ndarray], stage: int) -> None:
    config = f"zero{stage}_fp32"
    usual = losses("fp32" if stage == 1 else config, config=config)
    np.testing.assert_array_equal(losses(f"recompute-{stage}", "--recompute", config=config), usual)
    assert_falls(usual)


def test_channels_last_changes_the_layout_alone(losses: Callable[..., np.ndarray]) -> None:
    np.testing.assert_allclose(losses("last", "--channels_last"), losses("fp32"), rtol=0, atol=1e-5)


def test_accumulated_halves_are_the_whole_batch(losses: Callable[..., np.ndarray]) -> None:
    halves = losses("halves", "--batch_size", "2", "--accumulation", "2")
    np.testing.assert_allclose(halves, losses("fp32"), rtol=0, atol=1e-5)


def test_clipping_bounds_the_step_and_the_log_has_the_norm_before_it(
    losses: Callable[..., np.ndarray], place: Path
) -> None:
    clipped = losses("clipped", "--clip", "1e-9", "--weight_decay", "0")
    assert logged(place / "clipped", "grad_norm").min() > 0.01
    assert np.ptp(clipped) < np.ptp(losses("fp32"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_compiled_is_what_eager_is(losses: Callable[..., np.ndarray], stage: int) -> None:
    patient = "import signal; signal.alarm(550)"
    compiled = losses(f"compiled-{stage}", "--compile", config=f"zero{stage}_fp32", before=patient)
    np.testing.assert_allclose(compiled, losses("fp32"), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable],
        ["torchrun", "--standalone", "--nproc_per_node", "2"],
        ["deepspeed", "--num_accelerators", "2", "--master_port", "29655"],
    ],
    ids=["python", "torchrun", "deepspeed"],
)
def test_the_same_script_under_every_launcher(
    losses: Callable[..., np.ndarray], place: Path, launcher: list[str]
) -> None:
    expected = losses("fp32")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    batch = "4" if launcher == [sys.executable] else "2"
    command = [
        *launcher,
        str(ROOT / "train.py"),
        *COMMON,
        "--batch_size",
        batch,
        "--out",
        f"by-{batch}-{launcher[0][-5:]}",
    ]
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(logged(place / command[-1], "loss"), expected, rtol=0, atol=1e-5)
