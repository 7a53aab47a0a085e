"""Which parameters learn, how fast and when, against rates worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from shards.errors import UsageError
from training.config import TrainConfig, resolve
from training.engine.deepspeed_config import BETAS
from training.engine.parameter_groups import check_scheduler, layers, parameter_groups, rate, schedule
from training.networks.ancestor import AncestorEncoder, AncestorSequence
from training.networks.model import BoldModel
from training.presets import Architecture

SIZE = Architecture(latent=5, channels=(8, 8, 8), blocks=1, width=16, depth=2, heads=2, dropout=0.5)
FROM_THE_HEAD = [
    {"head.weight", "head.bias"},
    {"sequence.outward.weight", "sequence.outward.bias"},
    {"sequence.blocks.1", "sequence.norm.weight", "sequence.norm.bias"},
    {"sequence.blocks.0"},
    {"sequence.inward.weight", "sequence.inward.bias", "sequence.cls", "sequence.mask_latent"},
    {"encoder.to_latent.weight", "encoder.to_latent.bias"},
    {"encoder.tower.3"},
    {"encoder.tower.2.weight", "encoder.tower.2.bias"},
    {"encoder.tower.1"},
    {"encoder.tower.0.weight", "encoder.tower.0.bias"},
    {"encoder.trunk.weight", "encoder.trunk.bias"},
    {"encoder.stem.weight", "encoder.stem.bias"},
]
BLOCKS = ("sequence.blocks.0", "sequence.blocks.1", "encoder.tower.1", "encoder.tower.3")


def config(phase: int = 3, **flags: Any) -> TrainConfig:
    start: dict[str, Any] = {} if phase == 1 else {"init": "none"}
    if phase == 3:
        start["target"] = "sex"
    return resolve(TrainConfig(phase=phase, shards=("s",), out=Path("o"), preset="tiny", lr=1.0, **start, **flags))


@pytest.fixture
def model(mask: NDArray[np.bool_]) -> BoldModel:
    return BoldModel(size=SIZE, mask_XYZ=mask, phase=3, pool="mean", num_outputs=1)


def rates(model: BoldModel, groups: list[dict[str, Any]]) -> dict[str, float]:
    """Name of each parameter that learns, and its rate."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_layers_run_from_the_head_to_the_stem(model: BoldModel) -> None:
    found = []
    for layer in layers(model):
        inside = {block for block in BLOCKS for name, _ in layer if name.startswith(f"{block}.")}
        rest = {name for name, _ in layer if not name.startswith(tuple(f"{block}." for block in BLOCKS))}
        found.append(inside | rest)
    assert found == FROM_THE_HEAD


def test_every_parameter_is_in_one_layer(model: BoldModel) -> None:
    found = [name for layer in layers(model) for name, _ in layer]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())


def test_layers_of_the_ancestors_are_found_without_their_names() -> None:
    parts = nn.Module()
    with torch.device("meta"):
        parts.encoder = AncestorEncoder(
            box=(16, 16, 16), input_channels=1, channels=(4, 8, 16, 32), latent=16, dropout=0.0
        )
        parts.sequence = AncestorSequence(width=16, depth=3, heads=2, positions=30, dropout=0.0)
        parts.head = nn.Linear(16, 1)
    depth = {name: k for k, layer in enumerate(layers(parts)) for name, _ in layer}
    assert sorted(depth) == sorted(name for name, _ in parts.named_parameters())
    last, middle, first = (depth[f"sequence.blocks.{k}.query.weight"] for k in (2, 1, 0))
    assert 0 == depth["head.weight"] < last < middle < first
    assert (middle - last, first - middle) == (1, 1)
    late, early = (min(d for name, d in depth.items() if name.startswith(f"encoder.stages.{k}.")) for k in (3, 0))
    assert first < late < early < depth["encoder.stem.weight"] == max(depth.values())


def test_each_layer_further_from_the_head_learns_at_a_share_of_the_next_ones_rate(model: BoldModel) -> None:
    flags = {"layer_decay": 0.5, "sequence_lr_scale": 0.8, "encoder_lr_scale": 0.1}
    found = rates(model, parameter_groups(model, config(**flags)))
    assert len(found) == len(list(model.parameters()))
    expected = {
        "head.weight": 1.0,
        "sequence.outward.bias": 0.4,
        "sequence.norm.weight": 0.2,
        "sequence.blocks.1.mlp.0.weight": 0.2,
        "sequence.blocks.0.attention.qkv.weight": 0.1,
        "sequence.cls": 0.05,
        "encoder.to_latent.weight": 0.1 / 32,
        "encoder.tower.3.branch.2.weight": 0.1 / 64,
        "encoder.stem.bias": 0.1 / 2048,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_by_default_the_head_alone_learns_and_the_rest_holds_still(model: BoldModel) -> None:
    found = rates(model, parameter_groups(model, config()))
    assert found == {"head.weight": 1.0, "head.bias": 1.0}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    model.train()
    assert model.head.training
    assert not any(module.training for part in (model.encoder, model.sequence) for module in part.modules())


def test_what_learns_has_dropout_again(model: BoldModel) -> None:
    parameter_groups(model, config(sequence_lr_scale=1.0))
    model.train()
    assert all(module.training for module in model.sequence.modules())
    assert not any(module.training for module in model.encoder.modules())


@pytest.mark.parametrize("phase", [1, 2])
def test_the_label_free_phases_have_one_rate(mask: NDArray[np.bool_], phase: int) -> None:
    model = BoldModel(size=SIZE, mask_XYZ=mask, phase=phase)
    groups = parameter_groups(model, config(phase))
    assert set(rates(model, groups).values()) == {1.0}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["weight_decay"]: {p.ndim > 1 for p in group["params"]} for group in groups} == {
        0.01: {True},
        0.0: {False},
    }


@pytest.mark.parametrize(
    ("step", "start", "expected"),
    [
        (0, 0, 0.5),  # 2 of 10 steps warm up
        (1, 0, 1.0),
        (2, 0, 1.0),
        (6, 0, 0.5),  # half way down the cosine
        (10, 0, 0.0),
        (5, 6, 0.0),
        (6, 6, 0.5 * 0.5),  # its own warm-up, on the common cosine
        (7, 6, 0.5 * (1 + np.cos(np.pi * 5 / 8))),
    ],
)
def test_rate_of_a_step(step: int, start: int, expected: float) -> None:
    assert rate(step, 10, 0.2, start) == pytest.approx(expected, abs=1e-12)


def test_until_it_thaws_a_layer_neither_moves_nor_decays(model: BoldModel) -> None:
    flags = config(sequence_lr_scale=0.5, thaw_at=0.5, warmup=0.0, weight_decay=0.1)
    optimizer = torch.optim.AdamW(parameter_groups(model, flags), lr=1.0, betas=BETAS)
    scheduler = schedule(4, flags)(optimizer)
    before = model.sequence.inward.weight.detach().clone()
    moved, head = [], []
    for _ in range(4):
        head.append(optimizer.param_groups[0]["lr"])
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scheduler.step()
        moved.append(not torch.equal(model.sequence.inward.weight, before))
    assert moved == [False, False, True, True]
    assert head == pytest.approx([1.0, 1.0, 0.75, 0.25])


def test_a_scheduler_that_would_flatten_the_rates_is_refused(model: BoldModel) -> None:
    flat = parameter_groups(model, config())
    layered = parameter_groups(model, config(sequence_lr_scale=0.5, layer_decay=0.5))
    thawing = parameter_groups(model, config(sequence_lr_scale=0.5, thaw_at=0.5))
    check_scheduler(layered, None)
    check_scheduler(flat, {"type": "WarmupLR"})
    check_scheduler(layered, {"type": "WarmupCosineLR"})
    with pytest.raises(UsageError, match=r"WarmupLR gives all parameters one learning rate.*0.0312"):
        check_scheduler(layered, {"type": "WarmupLR"})
    with pytest.raises(UsageError, match="--thaw_at"):
        check_scheduler(thawing, {"type": "WarmupCosineLR"})
