"""Attention by lag: the weights are those that the model mixed with, and lags are counted as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from eval.explain.attention import _watch, add_up, attention_matters, attention_over_time
from eval.explain.choice import Window
from training.networks.model import BoldModel
from training.presets import Architecture


def model_of(mask: NDArray[np.bool_], *, causal: bool = True, pool: str = "moments") -> BoldModel:
    size = Architecture(latent=8, channels=(8, 8), blocks=1, width=16, depth=2, heads=2, dropout=0.0, causal=causal)
    torch.manual_seed(0)
    return BoldModel(size=size, mask_XYZ=mask, phase=3, num_outputs=1, pool=pool).eval()


def window(mask: NDArray[np.bool_], frames: int, seed: int = 0) -> Window:
    residual = np.random.default_rng(seed).standard_normal((frames, int(mask.sum()))).astype(np.float32)
    return Window(run=0, start=0, tr_s=2.0, residual_LV=residual)


def test_the_weights_are_those_that_the_model_mixes_with() -> None:
    weights: list[torch.Tensor] = []
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    seen = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    with _watch(weights, []):
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(weights[0].float() @ v, mixed)


def test_a_causal_transformer_is_seen_to_look_back_only(mask: NDArray[np.bool_]) -> None:
    found = attention_over_time(model_of(mask), [window(mask, 9)])
    assert found.weight_NHG.shape == (2, 2, 17)
    assert not found.weight_NHG[..., found.lags > 0].any()
    np.testing.assert_array_equal(found.count_G[found.lags <= 0], np.arange(1, 10))
    total = found.weight_NHG.sum(-1) + found.cls_NH
    np.testing.assert_allclose(total, 9, rtol=1e-6)  # each frame has weight 1 to give


def test_a_transformer_in_both_directions_is_seen_to_look_both_ways(mask: NDArray[np.bool_]) -> None:
    found = attention_over_time(model_of(mask, causal=False), [window(mask, 9)])
    np.testing.assert_array_equal(found.count_G, [*range(1, 10), *range(8, 0, -1)])
    assert (found.weight_NHG[..., found.lags > 0].sum(-1) > 0).all()


def test_heads_that_start_looking_2_s_back_are_seen_to_do_so(mask: NDArray[np.bool_]) -> None:
    model = model_of(mask)
    with torch.no_grad():
        model.sequence.blocks[0].attention.qkv.weight.zero_()
    found = attention_over_time(model, [window(mask, 12)])
    inside = found.count_G >= 3
    assert found.lags[inside][np.argmax(found.mean_NHG[0, 0][inside])] == -1  # 2 s are one frame


def test_windows_of_different_lengths_meet_at_their_lags(mask: NDArray[np.bool_]) -> None:
    model = model_of(mask)
    long, short = window(mask, 9), window(mask, 4, seed=1)
    apart = [attention_over_time(model, [each]) for each in (long, short)]
    both = attention_over_time(model, [long, short])
    middle = slice(8 - 3, 8 + 4)
    np.testing.assert_allclose(
        both.weight_NHG[..., middle], apart[0].weight_NHG[..., middle] + apart[1].weight_NHG, rtol=1e-12
    )
    assert both.num_queries == 13
    assert np.array_equal(add_up(apart).count_G, both.count_G)


@pytest.mark.parametrize(("causal", "pool"), [(True, "moments"), (False, "mean")])
def test_a_transformer_whose_last_projection_is_zero_does_not_matter(
    mask: NDArray[np.bool_], causal: bool, pool: str
) -> None:
    model = model_of(mask, causal=causal, pool=pool)
    assert not attention_matters(model)
    nn.init.ones_(model.sequence.onward.weight if causal else model.sequence.outward.weight)
    assert attention_matters(model)
    assert attention_matters(model_of(mask, causal=causal, pool="cls"))
