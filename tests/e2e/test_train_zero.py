"""ZeRO stages and ranks change where numbers live, not what is learnt: plain torch learns the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_training import Trainings
from torch import Tensor
from torch.nn import functional as F

from shards.loader import Batch, WindowLoader
from shards.reader import ShardSet
from training.checkpoints.export import load_model
from training.config import TrainConfig, resolve
from training.engine.environment import Place
from training.networks.model import BoldModel, inputs_of
from training.pretraining.task import Pretraining

CONFIGS = Path(__file__).resolve().parents[2] / "deepspeed_configs"
STAGES = (0, 1, 2, 3)
RANKS = (1, 2)
NUM_STEPS, WINDOW, BATCH_SIZE = 20, 10, 4
LR, WARM_UP, WEIGHT_DECAY, CLIP = 2e-3, 4, 0.01, 0.1
COMMON: dict[str, Any] = {"preset": "tiny", "latent": 8, "channels": (8, 8), "width": 16, "depth": 1, "heads": 2}
COMMON |= {"steps": NUM_STEPS, "window": str(WINDOW), "pca_frames": 64, "val_runs": 2, "val_every": NUM_STEPS}
COMMON |= {"lr": LR, "warmup": WARM_UP / NUM_STEPS, "weight_decay": WEIGHT_DECAY, "clip": CLIP, "log_every": 1}
PHASES: dict[int, dict[str, Any]] = {
    1: {"active_weight": 0.5, "split_fractions": (0.5, 0.25, 0.25)},
    2: {"init": "start-1", "contrast_weight": 0.3, "accumulation": 2, "encoder_lr_scale": 1.0, "latent_weight": 0.5},
    3: {"init": "start-2", "target": "group", "encoder_lr_scale": 1.0, "sequence_lr_scale": 1.0, "patience": 99},
}
# a run that learns nothing, whose weights are therefore where all runs of its phase start
STILL: dict[int, dict[str, Any]] = {1: {"steps": 1, "lr": 1e-30}, 2: {"steps": 1, "lr": 1e-30}, 3: {"steps": 0}}


def values_of(phase: int) -> dict[str, Any]:
    return {"phase": phase, **COMMON, **PHASES[phase]}


def flags(values: dict[str, Any], out: str, ranks: int = 1) -> list[str]:
    values = {**values, "shards": ("shards",), "out": out, "batch_size": BATCH_SIZE // ranks}
    found = []
    for name, value in values.items():
        found += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("zero")


@pytest.fixture
def runs(place: Path, make_shard_set: Callable[..., Any]) -> Path:
    """Each phase by each ZeRO stage on one process and on two, from one start; all made once."""
    if (place / "shards").exists():
        return place
    table = "participant_id\tgroup\n" + "".join(f"sub-{k:02d}\t{'ab'[k % 2]}\n" for k in range(16))
    make_shard_set(place / "shards", frames=(40,) * 16, runs_per_shard=16, participants=table)
    starts = [flags(values_of(phase) | still, f"start-{phase}") for phase, still in STILL.items()]
    repeated = [flags(values_of(1), "again"), flags(values_of(1) | {"seed": 1}, "other-seed")]
    with Trainings(place) as trainings:
        run_all(trainings, "one", 1, [*starts, *repeated, *by_every_stage(1)])
        run_all(trainings, "two", 2, by_every_stage(2))
    return place


def by_every_stage(ranks: int) -> list[list[str]]:
    found = []
    for phase in PHASES:
        for stage in STAGES:
            config = ["--deepspeed_config", str(CONFIGS / f"zero{stage}_fp32.json")]
            found.append([*flags(values_of(phase), f"phase{phase}-zero{stage}-{ranks}", ranks), *config])
    return found


def run_all(trainings: Trainings, name: str, ranks: int, commands: list[list[str]]) -> None:
    """One after the other in the same processes: most of a short run is its start."""
    before = f"""
import signal
from forked_training import validate
from training.cli import main
signal.alarm(500)
for arguments in {commands[:-1]!r}:
    assert main(arguments, validate=validate) == 0, arguments
"""
    trainings.run(name, commands[-1], ranks=ranks, before=before)


def plain_torch(place: Path, phase: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of one process without DeepSpeed: BoldModel, torch's AdamW, a schedule, clipping."""
    model = load_model(place / f"start-{phase}").model.train()
    shard_set = ShardSet(place / "shards")
    train = json.loads((place / f"start-{phase}" / "split.json").read_text())["train"]
    numbers = [number for number, run in enumerate(shard_set.runs) if run.subject in train]
    loader = WindowLoader(shard_set, runs=numbers, window=WINDOW, batch_size=BATCH_SIZE, mode="train", seed=0)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    batches = forever(loader)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        falling = (1 + math.cos(math.pi * (step - WARM_UP) / (NUM_STEPS - WARM_UP))) / 2
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARM_UP, 1.0 if step < WARM_UP else falling)
        optimizer.zero_grad()
        parts = []
        for loss in losses_of(place, phase, model, shard_set, batches, step):
            share = loss / values_of(phase).get("accumulation", 1)
            share.backward()
            parts.append(float(share.detach()))
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        losses.append(sum(parts))
    return losses, norms


def forever(loader: WindowLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def losses_of(
    place: Path, phase: int, model: BoldModel, shard_set: ShardSet, batches: Iterator[Batch], step: int
) -> Iterator[Tensor]:
    """The loss of each batch of a step; phase 3's is written out here: group b is 1, odd subjects are in it."""
    if phase < 3:
        values = {**values_of(phase), "shards": ("shards",), "out": Path("none"), "batch_size": BATCH_SIZE}
        alone = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
        task = Pretraining(resolve(TrainConfig(**values)), alone, None)
        yield from (losses.per_window.mean() for _, losses in task.turns(model, batches, step))
        return
    batch = next(batches)
    out = model(**inputs_of(batch, torch.device("cpu")))
    truth_B = torch.tensor([float(int(shard_set.runs[run].subject[-2:]) % 2) for run in batch.run.tolist()])
    train = json.loads((place / "start-1" / "split.json").read_text())["train"]
    num_b = sum(int(subject) % 2 for subject in train)
    prior = math.log(num_b / (len(train) - num_b))
    yield F.binary_cross_entropy_with_logits(prior + out["window_scale"] * (out["output"][:, 0] - prior), truth_B)


def logged(folder: Path, event: str, name: str) -> np.ndarray:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([record[name] for record in records if record["event"] == event], float)


@pytest.mark.distributed
@pytest.mark.parametrize("phase", list(PHASES))
def test_every_stage_learns_what_plain_torch_learns(runs: Path, phase: int) -> None:
    expected, norms = plain_torch(runs, phase)
    assert len(expected) == NUM_STEPS and np.ptp(expected) > 1e-3
    assert max(norms) > CLIP
    for stage in STAGES:
        for ranks in RANKS:
            out = runs / f"phase{phase}-zero{stage}-{ranks}"
            assert json.loads((out / "deepspeed.json").read_text())["zero_optimization"]["stage"] == stage
            found = logged(out, "train", "loss")
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=out.name)
            if stage:
                np.testing.assert_allclose(logged(out, "train", "grad_norm"), norms, rtol=1e-3, err_msg=out.name)


@pytest.mark.distributed
@pytest.mark.parametrize("phase", list(PHASES))
def test_validation_and_the_weights_that_travel_are_whole_at_every_stage(runs: Path, phase: int) -> None:
    first = runs / f"phase{phase}-zero1-1"
    expected = load_model(first).model.state_dict()
    figure = "score" if phase == 3 else "mse"
    for stage in STAGES:
        for ranks in RANKS:
            out = runs / f"phase{phase}-zero{stage}-{ranks}"
            found = load_model(out).model.state_dict()
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=0, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(logged(out, "val", figure), logged(first, "val", figure), rtol=0, atol=1e-5)


@pytest.mark.distributed
def test_the_same_seed_gives_the_same_curve_and_another_seed_another(runs: Path) -> None:
    losses = logged(runs / "phase1-zero1-1", "train", "loss")
    np.testing.assert_array_equal(logged(runs / "again", "train", "loss"), losses)
    assert not np.isclose(logged(runs / "other-seed", "train", "loss"), losses, rtol=0, atol=1e-5).any()
    first, again = ((runs / name / "model.safetensors").read_bytes() for name in ("phase1-zero1-1", "again"))
    assert first == again
