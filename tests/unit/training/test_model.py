"""The assembled models of the three phases: shapes, isolation of frames and windows, units."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.loader import WindowLoader
from shards.reader import ShardSet
from training.networks.model import BoldModel, inputs_of
from training.presets import Architecture
from training.pretraining.objectives import elementwise

SIZE = Architecture(latent=6, channels=(8, 16), blocks=1, width=32, depth=2, heads=2, dropout=0.0)
POOLS = ["cls", "mean", "moments"]


def build(mask: NDArray[np.bool_], phase: int, *, pool: str = "moments", stir: bool = True) -> BoldModel:
    """A model in evaluation mode, every parameter away from its start if stirred."""
    torch.manual_seed(0)
    outputs = 3 if phase == 3 else 0
    model = BoldModel(size=SIZE, mask_XYZ=mask, phase=phase, pool=pool, num_outputs=outputs).eval()
    if stir:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def windows(
    num_voxels: int, num_frames: int = 8, num_valid: tuple[int, ...] = (8, 8), seed: int = 0
) -> dict[str, Tensor]:
    """Arguments of `forward` with int8 values; frames past `num_valid` are zero, as the loader leaves them."""
    rng = np.random.default_rng(seed)
    count = len(num_valid)
    q = rng.integers(-60, 61, (count, num_frames, num_voxels)).astype(np.int8)
    q[np.arange(num_frames) >= np.array(num_valid)[:, None]] = 0
    return {
        "q": torch.from_numpy(q),
        "gain": torch.from_numpy(rng.uniform(0.03, 0.06, (count, num_voxels)).astype("f4")),
        "shift": None,
        "num_valid": torch.tensor(num_valid),
        "tr_s": torch.from_numpy(rng.choice([0.72, 2.0, 3.0], count).astype("f4")),
    }


def rows(inputs: dict[str, Tensor], where: slice) -> dict[str, Tensor]:
    return {name: None if value is None else value[where] for name, value in inputs.items()}


@pytest.mark.parametrize("phase", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 10, 10), (40, 20, 1), (1, 9, 7), (1, 1, 1)])
def test_any_grid_trains_in_every_phase(shape: tuple[int, int, int], phase: int) -> None:
    model = build(np.ones(shape, bool), phase).train()
    inputs = windows(int(np.prod(shape)), num_frames=5, num_valid=(5, 3))
    out = model(**inputs)
    if phase == 3:
        assert out["output"].shape == (2, 3)
        loss = out["output"].square().mean()
    else:
        assert out["reconstruction"].shape == out["residual"].shape == inputs["q"].shape
        assert out["latent"].shape == out["context"].shape == (2, 5, SIZE.latent)
        loss = elementwise("huber", out["reconstruction"], out["residual"]).mean()
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["encoder.stem.weight"].abs().max() > 0


def test_a_whole_brain_grid_with_odd_axes_trains() -> None:
    mask = np.random.default_rng(2).random((34, 40, 33)) > 0.6
    model = build(mask, 2).train()
    out = model(**windows(int(mask.sum()), num_frames=2, num_valid=(2,)), hidden=torch.tensor([[False, True]]))
    elementwise("huber", out["reconstruction"], out["residual"]).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_phase_two_starts_as_phase_one_does(mask: NDArray[np.bool_]) -> None:
    first, second = build(mask, 1), build(mask, 2, stir=False)
    missing, unexpected = second.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected and {name.split(".")[0] for name in missing} == {"sequence"}
    inputs = windows(int(mask.sum()))
    with torch.no_grad():
        before, after = first(**inputs), second(**inputs)
    torch.testing.assert_close(after["reconstruction"], before["reconstruction"])


def test_phase_one_encodes_each_frame_by_itself(mask: NDArray[np.bool_]) -> None:
    model, inputs = build(mask, 1), windows(int(mask.sum()))
    with torch.no_grad():
        whole = model(**inputs)["latent"]
        single = torch.cat([model(**(inputs | {"q": inputs["q"][:, t : t + 1]}))["latent"] for t in range(8)], dim=1)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-4)


def test_voxels_of_hidden_frames_reach_no_output_but_the_truth(mask: NDArray[np.bool_]) -> None:
    model, inputs = build(mask, 2), windows(int(mask.sum()))
    hidden = torch.zeros(2, 8, dtype=torch.bool)
    hidden[0, 2:5] = hidden[1, 0] = True
    other = inputs | {"q": torch.where(hidden[..., None], windows(int(mask.sum()), seed=1)["q"], inputs["q"])}
    with torch.no_grad():
        first, second = model(**inputs, hidden=hidden), model(**other, hidden=hidden)
        seen = model(**other)
    assert not torch.equal(first["residual"], second["residual"])
    torch.testing.assert_close(second["context"], first["context"], rtol=0, atol=1e-6)
    torch.testing.assert_close(second["reconstruction"], first["reconstruction"], rtol=0, atol=1e-6)
    assert (seen["context"] - second["context"]).abs().max() > 0.01


def test_padding_changes_nothing_at_real_frames(mask: NDArray[np.bool_]) -> None:
    model = build(mask, 2)
    long = windows(int(mask.sum()), num_valid=(5, 5))
    long["q"][:, 5:] = 77
    short = long | {"q": long["q"][:, :5]}
    with torch.no_grad():
        padded, plain = model(**long), model(**short)
    for name in ("context", "reconstruction"):
        torch.testing.assert_close(padded[name][:, :5], plain[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_padding_does_not_change_the_output(mask: NDArray[np.bool_], pool: str) -> None:
    model = build(mask, 3, pool=pool)
    long = windows(int(mask.sum()), num_valid=(5, 5))
    long["q"][:, 5:] = 77
    with torch.no_grad():
        padded, plain = model(**long), model(**(long | {"q": long["q"][:, :5]}))
    torch.testing.assert_close(padded["output"], plain["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_a_window_gives_the_same_output_in_any_batch(mask: NDArray[np.bool_], pool: str) -> None:
    model, inputs = build(mask, 3, pool=pool), windows(int(mask.sum()), num_valid=(8, 6, 1, 8))
    with torch.no_grad():
        together = model(**inputs)["output"]
        alone = torch.cat([model(**rows(inputs, slice(k, k + 1)))["output"] for k in range(4)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert together.std(0).min() > 1e-3


@pytest.mark.parametrize("pool", POOLS)
def test_before_training_the_output_is_the_shift(mask: NDArray[np.bool_], pool: str) -> None:
    model = build(mask, 3, pool=pool, stir=False)
    model.output_scale.fill_(12.0)
    model.output_shift.copy_(torch.tensor([40.0, 50.0, 60.0]))
    inputs = windows(int(mask.sum()))
    with torch.no_grad():
        assert model(**inputs)["output"].tolist() == [[40.0, 50.0, 60.0]] * 2
        model.head.bias.fill_(0.5)
        assert model(**inputs)["output"].tolist() == [[46.0, 56.0, 66.0]] * 2


def test_tokens_are_what_the_head_is_fed(mask: NDArray[np.bool_]) -> None:
    model, inputs = build(mask, 3), windows(int(mask.sum()), num_valid=(8, 5))
    with torch.no_grad():
        context, cls = model.tokens(**inputs)
        features = model.pool(context, cls, inputs["num_valid"])
        torch.testing.assert_close(model.head(features), model(**inputs)["output"])


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_stored_weights_rebuild_the_model(mask: NDArray[np.bool_], phase: int) -> None:
    model, fresh = build(mask, phase), build(mask, phase, stir=False)
    fresh.load_state_dict(model.state_dict())
    inputs = windows(int(mask.sum()))
    with torch.no_grad():
        before, after = model(**inputs), fresh(**inputs)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_batch_of_the_loader_is_what_forward_takes(tmp_path: Path, make_shard_set: Callable, dtype: str) -> None:
    make_shard_set(tmp_path, dtype=dtype)
    with ShardSet(tmp_path) as shard_set:
        model = build(shard_set.mask, 1)
        loader = WindowLoader(shard_set, runs=None, window=20, batch_size=4, mode="tile")
        errors = []
        for batch in loader:
            with torch.no_grad():
                out = model(**inputs_of(batch, torch.device("cpu")))
            for row in np.flatnonzero(batch.run.numpy() >= 0):
                valid = int(batch.num_valid[row])
                truth = shard_set.residual(int(batch.run[row]), int(batch.start[row]), valid)
                errors.append(np.abs(out["residual"][row, :valid].numpy() - truth).max())
        assert len(errors) == 2 + 8 + 5 and max(errors) < 1e-3
