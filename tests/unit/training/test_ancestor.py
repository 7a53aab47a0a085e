"""The ancestors' networks: their authors' counts and shapes, and equality with independent implementations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shards.errors import MismatchError
from training.networks.ancestor import (
    AncestorDecoder,
    AncestorEncoder,
    AncestorSequence,
    BertLayer,
    GreenBlock,
)
from training.networks.model import BoldModel, recompute_in_backward
from training.presets import PRESETS

BOXES = {"tff": (75, 93, 81), "hackathon": (96, 96, 96)}
CHANNELS = (4, 8, 16, 32)
SMALL = replace(PRESETS["tff"].size, latent=24, width=24, heads=4, positions=9)
"""TFF's networks, 24 instead of 2640 wide."""


def on_meta(preset: str, phase: int) -> BoldModel:
    """A preset at its real size, without memory."""
    mask = np.ones(BOXES[preset], bool)
    with torch.device("meta"):
        model = BoldModel(size=PRESETS[preset].size, mask_XYZ=mask, phase=phase, pool="cls", num_outputs=1)
    return model.to("meta")


def small(phase: int, shape: tuple[int, int, int] = (10, 9, 8)) -> BoldModel:
    mask = np.random.default_rng(3).random(shape) > 0.2
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    model = BoldModel(size=SMALL, mask_XYZ=mask, phase=phase, pool="cls", num_outputs=1)
    if phase == 3:
        nn.init.normal_(model.head.weight)
    return model


def windows(model: BoldModel, num_valid: tuple[int, ...] = (5, 3), num_frames: int = 5) -> dict[str, Tensor]:
    shape = (len(num_valid), model.volume.num_voxels)
    return {
        "q": torch.randint(-60, 61, (shape[0], num_frames, shape[1]), dtype=torch.int8),
        "gain": 0.03 + 0.03 * torch.rand(shape),
        "shift": None,
        "num_valid": torch.tensor(num_valid),
        "tr_s": torch.full(shape[:1], 0.72),
        "level": torch.rand(shape),
        "spread": torch.rand(shape),
    }


def loss_of(model: BoldModel, inputs: dict[str, Tensor]) -> Tensor:
    out = model(**inputs)
    return out["output"].square().mean() if model.phase == 3 else (out["reconstruction"] - out["residual"]).abs().mean()


def count(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def shapes_of(modules: list[nn.Module], run: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Output shapes of modules in one forward pass, without the first axis."""
    found: list[tuple[int, ...]] = []
    hooks = [m.register_forward_hook(lambda _, __, out: found.append(tuple(out.shape[1:]))) for m in modules]
    run(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("preset", "phase", "parameters"),
    [
        ("tff", 1, 7_271_359),
        ("tff", 2, 109_559_023),
        ("tff", 3, 102_568_207),
        ("hackathon", 1, 18_552_787),
        ("hackathon", 2, 738_572_179),
        ("hackathon", 3, 729_426_307),
    ],
)
def test_each_phase_has_the_originals_number_of_parameters(preset: str, phase: int, parameters: int) -> None:
    assert count(on_meta(preset, phase)) == parameters


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("tff", (276_108, 1_794, 6_974_004, 19_453, 95_315_424, 6_972_240)),
        ("hackathon", (276_000, 9_128_274, 9_129_060, 19_453, 713_047_152, 6_972_240)),
    ],
)
def test_each_part_has_the_originals_number_of_parameters(preset: str, expected: tuple[int, ...]) -> None:
    model = on_meta(preset, 2)
    encoder, decoder, sequence = model.encoder, model.decoder, model.sequence
    assert (
        count(encoder.stem, encoder.stages),
        count(encoder.bottleneck),
        count(decoder.bottleneck),
        count(decoder.stages, decoder.output),
        count(sequence.embeddings, sequence.blocks, sequence.pooler),
        count(sequence.cls),
    ) == expected


def test_a_layer_of_bert_has_the_originals_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(BertLayer(2640, 16, 0.1)) == 44_125_392


@pytest.mark.parametrize(
    ("box", "extents"),
    [
        ((75, 93, 81), [(75, 93, 81), (38, 47, 41), (19, 24, 21), (10, 12, 11)]),
        ((96, 96, 96), [(96, 96, 96), (48, 48, 48), (24, 24, 24), (12, 12, 12)]),
        ((34, 40, 33), [(34, 40, 33), (17, 20, 17), (9, 10, 9), (5, 5, 5)]),
        ((10, 9, 1), [(10, 9, 1), (5, 5, 1), (3, 3, 1), (2, 2, 1)]),
    ],
)
def test_layers_have_the_originals_shapes(box: tuple[int, int, int], extents: list[tuple[int, int, int]]) -> None:
    with torch.device("meta"):
        encoder = AncestorEncoder(box=box, input_channels=2, channels=CHANNELS, latent=2640, dropout=0.2)
        decoder = AncestorDecoder(box=box, channels=CHANNELS, latent=2640, dropout=0.2)
        volume, latent = torch.zeros(3, 2, *box), torch.zeros(3, 2640)
    finest, fine, coarse, coarsest = extents
    layers = [encoder.stem, *encoder.stages, encoder.bottleneck[2], encoder]
    assert shapes_of(layers, encoder, volume) == [
        (4, *finest),
        (8, *fine),
        (16, *coarse),
        (32, *coarsest),
        (32, *coarsest),
        (2, *coarsest),
        (2640,),
    ]
    layers = [decoder.bottleneck[1], decoder.bottleneck, *decoder.stages, *decoder.output]
    assert shapes_of(layers, decoder, latent) == [
        (2, *coarsest),
        (32, *coarsest),
        (16, *coarse),
        (8, *fine),
        (4, *finest),
        (4, *finest),
        (1, *finest),
    ]


def test_a_linear_layer_reaches_the_latent_only_where_the_bottleneck_is_another_size() -> None:
    last = [on_meta(preset, 1).encoder.bottleneck[-1] for preset in ("tff", "hackathon")]
    assert isinstance(last[0], nn.Identity)
    assert (last[1].in_features, last[1].out_features) == (3456, 2640)


@pytest.mark.parametrize(("preset", "encoder_giga", "decoder_giga"), [("tff", 1.79, 1.13), ("hackathon", 2.56, 1.73)])
def test_a_volume_costs_what_it_costs_the_originals(preset: str, encoder_giga: float, decoder_giga: float) -> None:
    model = on_meta(preset, 1)
    volume = torch.zeros(1, model.size.input_channels, *BOXES[preset], device="meta")
    with FlopCounterMode(display=False) as encoding:
        latent = model.encoder(volume)
    with FlopCounterMode(display=False) as decoding:
        model.decoder(latent)
    assert encoding.get_total_flops() / 2e9 == pytest.approx(encoder_giga, rel=0.01)
    assert decoding.get_total_flops() / 2e9 == pytest.approx(decoder_giga, rel=0.01)


@pytest.mark.parametrize("preset", ["tff", "hackathon"])
def test_a_preset_runs_at_its_real_size(preset: str) -> None:
    model = on_meta(preset, 2)
    with torch.device("meta"):
        voxels = torch.zeros(2, model.volume.num_voxels)
        out = model(
            q=torch.zeros(2, 20, model.volume.num_voxels, dtype=torch.int8),
            gain=voxels,
            shift=None,
            num_valid=torch.tensor([20, 7]),
            tr_s=torch.ones(2),
            level=voxels,
            spread=voxels,
            hidden=torch.zeros(2, 20, dtype=torch.bool),
        )
    assert out["latent"].shape == out["context"].shape == (2, 20, 2640)
    assert out["reconstruction"].shape == (2, 20, int(np.prod(BOXES[preset])))


def test_a_green_block_is_the_formula() -> None:
    block = GreenBlock(16, 0.2).eval()
    norm1, _, conv1, norm2, _, conv2, _ = block.branch
    for norm in (norm1, norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 5, 4, 3)

    def step(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv3d) -> Tensor:
        groups = x.reshape(2, 4, -1)  # 4 groups of 4 channels
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = groups.view_as(x) * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1)
        return F.conv3d(torch.where(x > 0, x, 0.01 * x), conv.weight, conv.bias, padding=1)

    torch.testing.assert_close(block(x), x + step(step(x, norm1, conv1), norm2, conv2), rtol=1e-4, atol=1e-4)


def test_dropout_takes_voxels_of_the_branch_not_of_the_sum() -> None:
    block, x = GreenBlock(8, 0.25), torch.randn(2, 8, 9, 9, 9)
    with torch.no_grad():
        kept = block.eval()(x) - x
        found = block.train()(x) - x
    dropped = found.abs() < 1e-6
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(found[~dropped], kept[~dropped] / 0.75, rtol=1e-3, atol=1e-5)


def torch_layer(layer: BertLayer) -> nn.TransformerEncoderLayer:
    """torch's own post-norm layer with the same weights."""
    width = layer.norm1.normalized_shape[0]
    other = nn.TransformerEncoderLayer(
        width, layer.heads, 3072, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    pairs = [(other.self_attn.out_proj, layer.out), (other.linear1, layer.inner), (other.linear2, layer.outer)]
    pairs += [(other.norm1, layer.norm1), (other.norm2, layer.norm2)]
    projections = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        other.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        for own, source in pairs:
            own.load_state_dict(source.state_dict())
    return other.eval()


def stirred(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval()


def test_a_layer_is_torchs_own_post_norm_layer() -> None:
    layer, x = stirred(BertLayer(24, 4, 0.1)), torch.randn(3, 7, 24)
    valid = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    expected = torch_layer(layer)(x, src_key_padding_mask=~valid)
    torch.testing.assert_close(layer(x, valid)[valid], expected[valid], rtol=1e-4, atol=1e-5)


def test_the_sequence_is_bert_put_together_from_torchs_layers() -> None:
    sequence = stirred(AncestorSequence(width=24, depth=2, heads=4, positions=9, dropout=0.1))
    latent, valid = torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
    linear, embeddings = sequence.cls[0], sequence.embeddings
    cls = F.leaky_relu(0.5 * linear.weight.sum(1) + linear.bias, 0.01).expand(2, 1, 24)
    x = torch.cat([cls, latent], 1) + embeddings.position.weight[:6] + embeddings.token_type.weight[0]
    x = F.layer_norm(x, (24,), embeddings.norm.weight, embeddings.norm.bias, 1e-12)
    for layer in sequence.blocks:
        x = torch_layer(layer)(x)
    context, pooled = sequence(latent, valid, torch.ones(2))
    torch.testing.assert_close(context, x[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled, (x[:, 0] @ sequence.pooler.weight.T + sequence.pooler.bias).tanh())


def test_the_transformer_starts_as_bert_does() -> None:
    sequence = AncestorSequence(width=240, depth=1, heads=4, positions=30, dropout=0.1)
    linears = [sequence.pooler, *(m for m in sequence.blocks.modules() if isinstance(m, nn.Linear))]
    assert len(linears) == 7
    assert all(linear.weight.std().item() == pytest.approx(0.02, rel=0.02) for linear in linears)
    assert all((linear.bias == 0).all() for linear in linears)
    assert sequence.embeddings.position.weight.std().item() == pytest.approx(0.02, rel=0.05)
    bound = 240**-0.5  # the CLS embedding is torch's layer, uniform
    assert sequence.cls[0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_padding_changes_nothing_at_real_frames() -> None:
    sequence = stirred(AncestorSequence(width=24, depth=2, heads=4, positions=9, dropout=0.1))
    latent = torch.randn(2, 8, 24)
    long = sequence(latent, torch.arange(8).expand(2, 8) < 5, torch.ones(2))
    short = sequence(latent[:, :5], torch.ones(2, 5, dtype=torch.bool), torch.ones(2))
    torch.testing.assert_close(long[0][:, :5], short[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(long[1], short[1], rtol=1e-4, atol=1e-5)


def test_hidden_frames_are_zeros_to_the_transformer() -> None:
    sequence = stirred(AncestorSequence(width=24, depth=2, heads=4, positions=9, dropout=0.1))
    latent, valid = torch.randn(2, 6, 24), torch.ones(2, 6, dtype=torch.bool)
    hidden = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    found = sequence(latent, valid, torch.ones(2), hidden)
    expected = sequence(torch.where(hidden[..., None], 0.0, latent), valid, torch.ones(2))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], sequence(latent, valid, torch.ones(2))[0])


def test_a_window_needs_a_position_for_each_frame_and_cls() -> None:
    sequence = AncestorSequence(width=24, depth=1, heads=4, positions=9, dropout=0.1)

    def run(frames: int) -> tuple[Tensor, Tensor]:
        return sequence(torch.randn(1, frames, 24), torch.ones(1, frames, dtype=torch.bool), torch.ones(1))

    assert run(8)[0].shape == (1, 8, 24)
    with pytest.raises(MismatchError) as error:
        run(9)
    message = str(error.value)
    assert message.startswith("a window of 9 frames: ") and "\n" not in message
    assert "9 learned positions" in message and "--window 8 or less" in message


def test_a_box_that_halves_to_one_voxel_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"bounding box is 8x8x3 voxels, which 3 halvings make one voxel"):
        small(1, (8, 8, 3))
    assert small(1, (9, 8, 3)).decoder(torch.randn(1, 24)).shape == (1, 1, 9, 8, 3)


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_gradients_reach_all_that_the_output_depends_on(phase: int) -> None:
    model = small(phase).train()
    loss_of(model, windows(model)).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # nothing looks up the word embedding, and phase 2 decodes frames, not the pooled CLS
    expected = {2: {"embeddings.word.weight", "pooler.weight", "pooler.bias"}, 3: {"embeddings.word.weight"}}
    assert without == {f"sequence.{name}" for name in expected.get(phase, set())}
    reached = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in reached.values())
    # a bias of the keys adds the same to every score of a query, which softmax takes away: zero but for rounding
    assert all(grad.abs().max() > 0 for name, grad in reached.items() if not name.endswith("key.bias"))


@pytest.mark.parametrize("phase", [1, 2, 3])
@pytest.mark.parametrize("shape", [(10, 9, 8), (34, 40, 33), (12, 1, 5)])
def test_any_box_runs_in_every_phase_with_intensity(shape: tuple[int, int, int], phase: int) -> None:
    model = small(phase, shape).eval()
    inputs = windows(model, num_valid=(2, 1), num_frames=2)
    with torch.no_grad():
        out, other = model(**inputs), model(**(inputs | {"level": inputs["level"] + 1}))
    if phase == 3:
        assert out["output"].shape == (2, 1)
    else:
        assert out["reconstruction"].shape == inputs["q"].shape
        assert out["latent"].shape == out["context"].shape == (2, 2, 24)
    name = "output" if phase == 3 else "reconstruction"
    assert out[name].isfinite().all() and (out[name] - other[name]).abs().max() > 0


def test_each_voxel_is_decoded_in_its_place() -> None:
    model = small(1).eval()
    with torch.no_grad():
        latent = torch.randn(1, 3, 24)
        dense = model.decoder(latent[0]).numpy()[:, 0]
        assert np.array_equal(model.decode(latent)[0].numpy(), dense[:, model.volume.mask.numpy().astype(bool)])


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_recomputing_in_backward_changes_no_gradient(phase: int) -> None:
    model = small(phase).train()
    inputs = windows(model)
    grads = []
    for recompute in (False, True):
        if recompute:
            recompute_in_backward(model)
        torch.manual_seed(1)
        model.zero_grad()
        loss_of(model, inputs).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    blocks = [m for m in model.modules() if getattr(m, "recomputable", False)]
    assert len(blocks) == {1: 9 + 3, 2: 9 + 3 + 2, 3: 9 + 2}[phase]


def test_stored_weights_restore_the_cls_embedding_too() -> None:
    first, second = small(3).eval(), small(3).eval()
    second.load_state_dict(first.state_dict())
    inputs = windows(first)
    with torch.no_grad():
        before = first(**inputs)["output"]
        assert torch.equal(second(**inputs)["output"], before)
        second.sequence.cls[0].weight.neg_()
        assert not torch.equal(second(**inputs)["output"], before)
