"""One optimizer step of phases 1 and 2: the same values and gradients however its windows are cut, and the verdict."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, multiprocessing
from torch import distributed as dist

from shards.batch import Batch
from training.config import TrainConfig, architecture, resolve
from training.engine.environment import Place
from training.networks.model import BoldModel, inputs_of
from training.networks.pooling import valid_frames
from training.pretraining import objectives
from training.pretraining import task as pretraining
from training.pretraining.perceptual import LAYERS
from training.pretraining.task import Pretraining

NUM_WINDOWS, NUM_FRAMES = 8, 10
RUNS = (0, 0, 1, 1, 2, 2, 0, 0)
"""Windows come in pairs of a run; run 0 has two of them."""
VALID = (10, 10, 10, 7, 10, 10, 10, 10)
EVERYTHING: dict[str, Any] = {
    "contrast_weight": 0.7,
    "pair_weight": 0.5,
    "direction_weight": 0.6,
    "active_weight": 0.3,
    "latent_weight": 0.4,
}
SIZES = {"latent": 6, "channels": (8, 8), "blocks": 1, "width": 16, "depth": 1, "heads": 2}
MASK = np.ones((6, 7, 6), bool)


def config_of(**values: Any) -> TrainConfig:
    given = {"phase": 2, "init": "none", "preset": "tiny", **SIZES, **values}
    return resolve(TrainConfig(shards=("unused",), out=Path("unused"), steps=1, **given))


def place_of(rank: int = 0, world_size: int = 1) -> Place:
    return Place(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))


def model_of(config: TrainConfig) -> BoldModel:
    """A model that is away from its start, so that every term has a gradient."""
    torch.manual_seed(0)
    model = BoldModel(
        size=architecture(config), mask_XYZ=MASK, phase=config.phase, direction=config.direction_weight > 0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def windows(first: int, last: int) -> Batch:
    """Windows of the global batch."""
    rng = np.random.default_rng(5)
    q = rng.integers(-60, 61, (NUM_WINDOWS, NUM_FRAMES, int(MASK.sum()))).astype(np.int8)
    q[np.arange(NUM_FRAMES) >= np.array(VALID)[:, None]] = 0
    gain = rng.uniform(0.02, 0.04, (NUM_WINDOWS, int(MASK.sum()))).astype("f4")
    rows = slice(first, last)
    return Batch(
        q=torch.from_numpy(q[rows]),
        gain=torch.from_numpy(gain[rows]),
        shift=None,
        run=torch.tensor(RUNS[rows]),
        start=torch.arange(NUM_WINDOWS)[rows] * 10,
        num_valid=torch.tensor(VALID[rows]),
        tr_s=torch.full((last - first,), 2.0),
    )


def one_step(config: TrainConfig, place: Place, size: int) -> tuple[Tensor, Tensor]:
    """Loss of each of a rank's windows, and the step's gradient, as the loop and DeepSpeed make it."""
    model = model_of(config)
    own = NUM_WINDOWS // place.world_size
    batches = (windows(k, k + size) for k in range(place.rank * own, (place.rank + 1) * own, size))
    values = []
    for _, losses in Pretraining(config, place, None).turns(model, reusing(batches), step=3):
        values.append(losses.per_window.detach())
        (losses.per_window.mean() / config.accumulation).backward()
    return torch.cat(values), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def reusing(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches in the same tensors again and again, as a loader gives them."""
    first = next(batches)
    yield first
    for batch in batches:
        for name in ("q", "gain", "run", "start", "num_valid", "tr_s"):
            getattr(first, name).copy_(getattr(batch, name))
        yield first


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, Any]:
    """Flags that switch every objective on."""
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for layer, (out, into) in LAYERS.items():
        weights[f"{layer}.weight"] = 0.1 * torch.randn(out, into, 3, 3, generator=generator)
        weights[f"{layer}.bias"] = torch.zeros(out)
    save_file(weights, tmp_path / "vgg.safetensors")
    return EVERYTHING | {"perceptual_weight": 0.2, "perceptual_file": tmp_path / "vgg.safetensors"}


@pytest.fixture
def whole(everything: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Values and gradient of the step on one process, in one batch."""
    return one_step(config_of(**everything, batch_size=8), place_of(), 8)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_neither_values_nor_gradient(
    everything: dict[str, Any], whole: tuple[Tensor, Tensor], accumulation: int
) -> None:
    size = NUM_WINDOWS // accumulation
    values, gradient = one_step(config_of(**everything, accumulation=accumulation), place_of(), size)
    torch.testing.assert_close(values, whole[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, whole[1], rtol=0, atol=1e-5)
    assert whole[1].abs().max() > 0.1


def rank_of_two(rank: int, folder: str, flags: dict[str, Any]) -> None:
    """What a spawned process does: a step in one batch of 4, and one in two batches of 2."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for accumulation in (1, 2):
        values, gradient = one_step(config_of(**flags, accumulation=accumulation), place_of(rank, 2), 4 // accumulation)
        everyone = [torch.empty_like(values) for _ in range(2)]
        dist.all_gather(everyone, values)
        dist.all_reduce(gradient)
        if rank == 0:
            torch.save((torch.cat(everyone), gradient / 2), f"{folder}/{accumulation}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_ranks_change_neither_values_nor_gradient(
    everything: dict[str, Any], whole: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    multiprocessing.spawn(rank_of_two, (str(tmp_path), everything), nprocs=2)
    for accumulation in (1, 2):
        values, gradient = torch.load(tmp_path / f"{accumulation}.pt")
        torch.testing.assert_close(values, whole[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(gradient, whole[1], rtol=0, atol=1e-5)


def test_the_gradient_is_that_of_the_objectives_written_down_directly() -> None:
    config = config_of(**EVERYTHING)
    values, gradient = one_step(config, place_of(), 8)
    model, batch = model_of(config), windows(0, 8)
    hidden = pretraining.hidden_frames(
        batch.num_valid.numpy(),
        np.stack([np.full(8, config.seed), np.full(8, 3), batch.run.numpy(), batch.start.numpy()], axis=1),
        num_frames=NUM_FRAMES,
        fraction=config.mask_fraction,
        span=config.mask_span,
    )
    hidden, valid = torch.from_numpy(hidden), valid_frames(batch.num_valid, NUM_FRAMES)
    out = model(**inputs_of(batch, torch.device("cpu")), hidden=hidden, reverse=True)
    error = objectives.elementwise("huber", out["reconstruction"], out["residual"])
    own = (out["context"], valid, out["context"], valid)
    direct = (
        objectives.window_mean(error.mean(2), valid)
        + objectives.window_mean(error.mean(2), hidden)
        + 0.3 * objectives.window_mean(objectives.active_error(error, out["residual"]), valid)
        + 0.4 * objectives.window_mean((out["context"] - out["latent"].detach()).square().mean(2), hidden)
        + config.ahead_weight
        * objectives.window_mean((out["expected"] - out["latent"].detach()).square().mean(2), valid)
        + 0.6 * objectives.direction_error(out["forward_score"], out["reversed_score"])
        + 0.7 * objectives.neighbour_contrast(*own, 0, 0.1)
        + 0.5 * objectives.pair_contrast(out["cls"], batch.run, out["cls"], batch.run, 0, 0.1)
    )
    direct.mean().backward()
    torch.testing.assert_close(values, direct.detach(), rtol=0, atol=1e-5)
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


def test_dropout_is_the_same_when_batches_are_seen_again() -> None:
    config = config_of(**EVERYTHING, dropout=0.4, accumulation=2)
    model, seen = model_of(config), []

    def forward(**inputs: Any) -> dict[str, Tensor]:
        out = model(**inputs)
        seen.append(out["context"].detach())
        return out

    batches = (windows(k, k + 4) for k in (0, 4))
    for _, losses in Pretraining(config, place_of(), None).turns(forward, batches, step=3):
        losses.per_window.mean().backward()
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(model(**inputs_of(windows(0, 4), torch.device("cpu")))["context"], seen[0])


def test_without_coupled_objectives_batches_go_through_the_model_once() -> None:
    config = config_of(accumulation=2)
    model, calls = model_of(config), []

    def forward(**inputs: Any) -> dict[str, Tensor]:
        calls.append(1)
        return model(**inputs)

    batches = (windows(k, k + 4) for k in (0, 4))
    assert len(list(Pretraining(config, place_of(), None).turns(forward, batches, step=0))) == 2
    assert len(calls) == 2


def test_rows_that_are_no_pairs_are_an_error_of_the_program() -> None:
    batch = replace(windows(0, 4), run=torch.tensor([0, 1, 1, 0]))
    config = config_of(pair_weight=1.0)
    with pytest.raises(AssertionError, match="pairs=True"):
        Pretraining(config, place_of(), None).losses(model_of(config), batch, 0)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("knows", "words"), [(True, "better by 100.0 %"), (False, "NOT better")])
def test_the_log_says_whether_hidden_frames_are_predicted(
    knows: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of()

    def forward(q: Tensor, gain: Tensor, hidden: Tensor, **_: Any) -> dict[str, Tensor]:
        residual = q.float() * gain[:, None]
        own = residual if knows else torch.where(hidden[..., None], -residual, residual)
        latent, context = residual[..., :6], own[..., :6]
        expected = latent if knows else -latent
        return {
            "residual": residual,
            "reconstruction": own,
            "latent": latent,
            "context": context,
            "expected": expected,
        }

    with caplog.at_level(logging.INFO, "training.pretraining.task"):
        found = Pretraining(config, place_of(), [windows(0, 4), windows(4, 8)]).validate(forward)  # type: ignore[arg-type]
    assert found["beats_trivial"] is found["latent_beats_trivial"] is found["ahead_beats_trivial"] is knows
    best = min(found[f"mse_{rule}"] for rule in ("mean", "previous", "linear"))
    assert found["better_percent"] == pytest.approx(100 * (best - found["mse"]) / best)
    assert found["context_rank"] > 2 and (found["context_variance"] == found["latent_variance"]) is knows
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"masked frames: error {found['mse']:.4f} against {best:.4f}") and words in first
    assert second.startswith("latents of masked frames") and words in second
    assert third.startswith("latents from the frames before") and words in third


@pytest.mark.usefixtures("alone")
def test_the_rules_for_frames_ahead_by_hand() -> None:
    latent = torch.tensor([[1.0, 3.0, 4.0, 9.0], [2.0, 2.0, 9.0, 9.0]])[..., None]  # of the second window two are real

    def forward(**_: Any) -> dict[str, Tensor]:
        return dict.fromkeys(("residual", "reconstruction", "latent", "context"), latent) | {"expected": latent + 1}

    batch = replace(windows(0, 2), q=torch.zeros(2, 4, 3, dtype=torch.int8), num_valid=torch.tensor([4, 2]))
    found = Pretraining(replace(config_of(), latent=1), place_of(), [batch]).validate(forward)  # type: ignore[arg-type]
    assert found["ahead_mse"] == 1
    assert found["ahead_mse_mean"] == pytest.approx((1 + 9 + 16 + 81 + 4 + 4) / 6)
    assert found["ahead_mse_previous"] == pytest.approx((1 + 4 + 1 + 25 + 4 + 0) / 6)


@pytest.mark.usefixtures("alone")
def test_validation_counts_windows_that_are_told_from_their_reversal() -> None:
    config = config_of(direction_weight=1.0)
    model = model_of(config)
    told = []
    for batch in (windows(0, 4), windows(4, 8)):
        hidden = Pretraining(config, place_of(), None)._run(model, batch, pretraining.VALIDATION_STEP)[1]
        out = model(**inputs_of(batch, torch.device("cpu")), hidden=hidden, reverse=True)
        told += (out["forward_score"] > out["reversed_score"]).tolist()
    found = Pretraining(config, place_of(), [windows(0, 4), windows(4, 8)]).validate(model)  # type: ignore[arg-type]
    assert found["direction_told"] == pytest.approx(np.mean(told)) and 0 < np.mean(told) < 1
