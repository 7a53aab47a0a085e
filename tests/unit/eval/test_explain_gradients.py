"""Attributions against closed forms, and against a fine sum along the path."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.explain.choice import Window
from eval.explain.gradients import NOISE_SD, answers, attribute, integrated_gradients
from eval.explain.randomised import randomised
from training.networks.model import BoldModel
from training.presets import Architecture

L, V = 6, 5


class Polynomial(nn.Module):
    """Outputs x'Qx + b'x + c and the sum of cubes, of the values of a window in one row."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.tensor(rng.standard_normal((L * V, L * V)), dtype=torch.float32))
        self.b = nn.Parameter(torch.tensor(rng.standard_normal(L * V), dtype=torch.float32))

    def forward(self, q: Tensor, gain: Tensor, **_: Any) -> dict[str, Tensor]:
        x = (q * gain[:, None]).flatten(1)
        square = torch.einsum("pi,ij,pj->p", x, self.q, x) + x @ self.b + 7
        return {"output": torch.stack([square, x.pow(3).sum(1)], dim=1)}


def window(rng: np.random.Generator, frames: int = L, voxels: int = V, **intensity: Any) -> Window:
    residual = rng.standard_normal((frames, voxels)).astype(np.float32)
    return Window(run=0, start=0, tr_s=2.0, residual_LV=residual, **intensity)


def tiny(mask: NDArray[np.bool_], *, intensity: bool = False, num_outputs: int = 1) -> BoldModel:
    size = Architecture(
        latent=8, channels=(8, 8), blocks=1, width=16, depth=2, heads=2, dropout=0.0, causal=True, intensity=intensity
    )
    torch.manual_seed(3)
    model = BoldModel(size=size, mask_XYZ=mask, phase=3, num_outputs=num_outputs).eval()
    for part in (model.head.weight, model.sequence.onward.weight):
        nn.init.normal_(part)
    return model


def test_polynomials_have_their_closed_form() -> None:
    rng = np.random.default_rng(0)
    model, found = Polynomial(rng), window(rng)
    x = found.residual_LV.ravel().astype(float)
    q, b = model.q.detach().double().numpy(), model.b.detach().double().numpy()
    ig = integrated_gradients(model, found, torch.from_numpy(found.residual_LV), steps=2, batch_size=8).numpy()
    np.testing.assert_allclose(ig[0].ravel(), x * ((q + q.T) @ x / 2 + b), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ig[1].ravel(), x**3, rtol=1e-4, atol=1e-5)


def test_attributions_of_a_trained_architecture_add_up_to_the_change_of_its_output(mask: NDArray[np.bool_]) -> None:
    rng = np.random.default_rng(1)
    model, found = tiny(mask, num_outputs=3), window(rng, 12, int(mask.sum()))
    result = attribute(model, found, [1, 0, 0], steps=24, noise_samples=0, batch_size=8, seed=0)
    np.testing.assert_allclose(result.signed_KV.sum(1), result.change_K, rtol=1e-2, atol=1e-3)
    assert np.abs(result.change_K).min() > 0.01


def test_attributions_are_the_fine_sum_along_the_path(mask: NDArray[np.bool_]) -> None:
    rng = np.random.default_rng(2)
    model, found = tiny(mask), window(rng, 8, int(mask.sum()))
    x = torch.from_numpy(found.residual_LV)
    gradient = torch.zeros_like(x)
    for k in range(60):
        point = (((k + 0.5) / 60) * x)[None].requires_grad_()
        gradient += torch.autograd.grad(answers(model, found, point).sum(), point)[0][0] / 60
    expected = (x * gradient).numpy()
    ours = integrated_gradients(model, found, x, steps=24, batch_size=5)[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=0.01 * np.abs(expected).max())


def test_the_batch_size_does_not_matter(mask: NDArray[np.bool_]) -> None:
    rng = np.random.default_rng(4)
    model, found = tiny(mask), window(rng, 8, int(mask.sum()))
    options: dict[str, Any] = {"steps": 5, "noise_samples": 2, "seed": 1}
    one, many = (attribute(model, found, [1], batch_size=size, **options) for size in (1, 16))
    np.testing.assert_allclose(one.signed_KV, many.signed_KV, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.squared_V, many.squared_V, rtol=1e-4, atol=1e-7)


def test_the_model_s_own_answer_is_explained(make_shard_set: Any, tmp_path: Any, mask: NDArray[np.bool_]) -> None:
    from eval.explain.choice import read_windows
    from shards.loader import WindowLoader
    from shards.reader import ShardSet
    from training.networks.model import inputs_of

    make_shard_set(tmp_path / "set", frames=(40,))
    model = tiny(mask, intensity=True)
    with ShardSet(tmp_path / "set") as shard_set:
        cohort = SimpleNamespace(runs={"00": (0,)})
        context: Any = SimpleNamespace(shard_set=shard_set, cohort=cohort, window=10, model=model)
        windows = read_windows(context, "00", 2)
        loader = WindowLoader(shard_set, window=10, batch_size=4, mode="tile", intensity=True)
        with torch.no_grad():
            expected = model(**inputs_of(next(iter(loader)), torch.device("cpu")))["output"]
    assert [each.start for each in windows] == [10, 30]
    for each, row in zip(windows, (1, 3), strict=True):
        found = attribute(model, each, [1], steps=2, noise_samples=0, batch_size=2, seed=0)
        np.testing.assert_allclose(found.output_K, expected[row].numpy(), rtol=1e-4)


def test_smoothgrad_squared_of_a_linear_model_is_the_square_plus_the_noise() -> None:
    rng = np.random.default_rng(5)
    model, found = Polynomial(rng), window(rng)
    with torch.no_grad():
        model.q.zero_()
    result = attribute(model, found, [2, 0], steps=1, noise_samples=500, batch_size=8, seed=0)
    b = model.b.detach().double().numpy().reshape(L, V)
    expected = (4 * b**2 * (found.residual_LV.astype(float) ** 2 + NOISE_SD**2)).sum(0)
    np.testing.assert_allclose(result.squared_V, expected, rtol=0.1)


@pytest.mark.parametrize("level", ["readout", "everything"])
def test_shuffled_weights_keep_their_values_and_lose_their_places(mask: NDArray[np.bool_], level: Any) -> None:
    model = tiny(mask)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    twin = dict(randomised(model, level, seed=0).named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
        assert torch.equal(twin[name].flatten().sort()[0], weight.flatten().sort()[0])
    assert not torch.equal(twin["head.weight"], before["head.weight"])
    assert torch.equal(twin["encoder.stem.weight"], before["encoder.stem.weight"]) == (level == "readout")
