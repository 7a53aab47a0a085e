"""The perceptual loss against a direct computation with random weights in a file of VGG16's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from shards.errors import MismatchError, UsageError
from training.networks.volume import Volume
from training.pretraining import perceptual
from training.pretraining.perceptual import Perceptual, drawn_slices

CHANNELS = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}
KEY = np.array([[0, 5, 2, 10], [0, 5, 2, 30], [0, 5, 7, 10]])
COUNTED = torch.tensor([[True, True, True, False], [True, False, True, True], [True, True, True, True]])


def vgg16_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for layer, (out, into) in CHANNELS.items():
        weights[f"features.{layer}.weight"] = torch.randn(out, into, 3, 3, generator=generator) / (3 * into**0.5)
        weights[f"features.{layer}.bias"] = torch.randn(out, generator=generator) / 10
    return weights


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As of a whole VGG16: with tensors that are not used."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(vgg16_weights() | {"features.10.weight": torch.zeros(2), "classifier.0.bias": torch.zeros(3)}, path)
    return path


@pytest.fixture
def volume(mask: NDArray[np.bool_]) -> Volume:
    """A box of 7 x 8 x 6 that patches make larger, so that the dense crop and the box differ."""
    volume = Volume(mask)
    assert volume.crop.box != volume.crop.shape
    return volume


def pair(volume: Volume, num_windows: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, num_windows, 4, volume.num_voxels)
    reconstruction, residual = torch.randn(shape, generator=generator)
    return reconstruction.requires_grad_(), residual


def direct(volume: Volume, slices_BLK: NDArray[np.int64], own: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """The loss slice by slice: three equal channels through four convolutions, all written out."""
    w = vgg16_weights()
    x, y, _ = volume.crop.box

    def features(image: Tensor) -> tuple[Tensor, Tensor]:
        h = F.conv2d(image.expand(1, 3, x, y), w["features.0.weight"], w["features.0.bias"], padding=1).relu()
        first = F.conv2d(h, w["features.2.weight"], w["features.2.bias"], padding=1).relu()
        h = F.max_pool2d(first, kernel_size=2, stride=2)
        h = F.conv2d(h, w["features.5.weight"], w["features.5.bias"], padding=1).relu()
        return first, F.conv2d(h, w["features.7.weight"], w["features.7.bias"], padding=1).relu()

    windows = []
    for b in range(len(own)):
        frames = []
        for t in np.flatnonzero(counted[b].numpy()):
            dense = [volume.dense(values[b, t : t + 1])[0, 0, :x, :y] for values in (own, truth)]
            for z in slices_BLK[b, t]:
                one, two = (features(d[:, :, z]) for d in dense)
                frames.append(F.mse_loss(one[0], two[0]) + F.mse_loss(one[1], two[1]))
        windows.append(torch.stack(frames).mean())
    return torch.stack(windows)


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_loss_and_gradient_equal_the_direct_computation(file: Path, volume: Volume, share: float) -> None:
    own, truth = pair(volume)
    slices = drawn_slices(KEY, num_frames=4, num_slices=6, share=share)
    assert slices.shape == (3, 4, 6 if share == 1 else 2)
    expected = direct(volume, slices, own, truth, COUNTED)
    weight = torch.tensor([1.0, -2.0, 0.5])
    (expected_gradient,) = torch.autograd.grad(expected @ weight, own)

    found = Perceptual(file, share).loss(volume, own, truth, COUNTED, KEY)
    (gradient,) = torch.autograd.grad(found @ weight, own)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-7)


def test_the_gradient_reaches_the_reconstruction_alone(file: Path, volume: Volume) -> None:
    own, truth = pair(volume)
    truth.requires_grad_()
    loss = Perceptual(file, 0.5)
    loss.loss(volume, own, truth, COUNTED, KEY).sum().backward()
    assert truth.grad is None and own.grad is not None
    assert not any(weight.requires_grad for weight in loss.buffers()) and len(list(loss.parameters())) == 0
    assert (own.grad[COUNTED].abs().amax(1) > 0).all() and (own.grad[~COUNTED] == 0).all()


def test_no_state_dict_carries_the_weights(file: Path) -> None:
    loss = Perceptual(file, 0.5)
    assert loss.state_dict() == {} and len(list(loss.buffers())) == 8


def test_windows_have_the_same_loss_however_the_batch_is_cut(file: Path, volume: Volume) -> None:
    own, truth = pair(volume)
    loss = Perceptual(file, 0.5)
    together = loss.loss(volume, own, truth, COUNTED, KEY)
    alone = [loss.loss(volume, own[[b]], truth[[b]], COUNTED[[b]], KEY[[b]]) for b in range(3)]
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_loss_does_not_depend_on_how_many_slices_go_at_once(
    file: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, truth = pair(volume)
    found = []
    for at_once in (1000, 7):
        monkeypatch.setattr(perceptual, "SLICES_AT_ONCE", at_once)
        loss = Perceptual(file, 1.0).loss(volume, own, truth, COUNTED, KEY)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), own)))
    torch.testing.assert_close(found[0], found[1])


def test_frames_that_do_not_count_change_nothing(file: Path, volume: Volume) -> None:
    own, truth = pair(volume)
    loss = Perceptual(file, 0.5)
    other = torch.where(COUNTED[..., None], own, 1e4)
    expected = loss.loss(volume, own, truth, COUNTED, KEY)
    assert torch.equal(loss.loss(volume, other, truth, COUNTED, KEY), expected)
    shorter = loss.loss(volume, own[:1, :3], truth[:1, :3], COUNTED[:1, :3], KEY[:1])
    torch.testing.assert_close(shorter, expected[:1])


@pytest.mark.parametrize("num_windows", [1, 2])
def test_a_window_without_counted_frames_has_no_loss(file: Path, volume: Volume, num_windows: int) -> None:
    own, truth = pair(volume)
    counted = COUNTED[:num_windows].clone()
    counted[0] = False
    found = Perceptual(file, 0.5).loss(volume, own[:num_windows], truth[:num_windows], counted, KEY[:num_windows])
    assert found[0] == 0 and (found[1:] > 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), own)
    assert (gradient[0] == 0).all() and gradient.isfinite().all()


def test_equal_volumes_have_no_loss(file: Path, volume: Volume) -> None:
    _, truth = pair(volume)
    assert Perceptual(file, 1.0).loss(volume, truth.clone(), truth, COUNTED, KEY).tolist() == [0, 0, 0]


def test_the_loss_is_float32_and_its_gradient_the_models_precision(file: Path, volume: Volume) -> None:
    own, truth = pair(volume)
    half = own.detach().bfloat16().requires_grad_()
    found = Perceptual(file, 1.0).loss(volume, half, truth, COUNTED, KEY)
    found.sum().backward()
    assert found.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found, Perceptual(file, 1.0).loss(volume, half.float(), truth, COUNTED, KEY))


def test_draws_are_different_slices_in_the_asked_number() -> None:
    drawn = drawn_slices(KEY, num_frames=50, num_slices=40, share=0.25)
    assert drawn.shape == (3, 50, 10) and drawn.min() >= 0 and drawn.max() < 40
    assert (np.diff(np.sort(drawn, axis=2), axis=2) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=40)  # 1500 draws, 37.5 of each slice
    assert counts.min() > 15 and counts.max() < 65


def test_at_least_one_slice_is_drawn() -> None:
    assert drawn_slices(KEY, num_frames=2, num_slices=3, share=0.01).shape == (3, 2, 1)


def test_draws_depend_on_the_key_and_the_frame_alone() -> None:
    drawn = drawn_slices(KEY, num_frames=8, num_slices=40, share=0.25)
    assert np.array_equal(drawn_slices(KEY[[2, 0]], num_frames=5, num_slices=40, share=0.25), drawn[[2, 0], :5])
    different = KEY + np.array([0, 1, 0, 0])
    assert not np.array_equal(drawn_slices(different, num_frames=8, num_slices=40, share=0.25), drawn)
    assert len({tuple(row) for row in drawn.reshape(24, 10)}) == 24


def test_half_precision_weights_are_taken(tmp_path: Path, volume: Volume) -> None:
    own, truth = pair(volume)
    halved = {name: tensor.half() for name, tensor in vgg16_weights().items()}
    for name, weights in (("half", halved), ("full", {name: tensor.float() for name, tensor in halved.items()})):
        save_file(weights, tmp_path / name)
    half, full = (Perceptual(tmp_path / name, 1.0) for name in ("half", "full"))
    assert torch.equal(half.loss(volume, own, truth, COUNTED, KEY), full.loss(volume, own, truth, COUNTED, KEY))


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        Perceptual(path, 0.5)
    message = str(error.value)
    assert message.startswith(f"--perceptual_file {path}: ") and "\n" not in message
    return message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "vgg16.safetensors")
    assert "no such file" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x00.", b"\x40\x00\x00\x00\x00\x00\x00\x00{not json"])
def test_a_file_of_another_format_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "vgg16.pth"
    path.write_bytes(data)
    assert "not a safetensors file" in refusal(path)


def test_a_file_cut_short_is_named(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(file.read_bytes()[:-100])
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("name", ["features.0.weight", "features.7.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    weights = vgg16_weights()
    del weights[name]
    save_file(weights, tmp_path / "part.safetensors")
    assert f"holds no {name};" in refusal(tmp_path / "part.safetensors")


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    save_file(vgg16_weights() | {"features.5.weight": torch.zeros(128, 64, 5, 5)}, tmp_path / "other.safetensors")
    message = refusal(tmp_path / "other.safetensors")
    assert "features.5.weight" in message and "(128, 64, 5, 5)" in message and "(128, 64, 3, 3)" in message


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    save_file(vgg16_weights() | {"features.7.bias": torch.zeros(128, dtype=torch.int8)}, tmp_path / "q.safetensors")
    assert "features.7.bias is torch.int8" in refusal(tmp_path / "q.safetensors")


def test_slices_too_thin_for_the_network_are_refused(file: Path) -> None:
    volume = Volume(np.ones((1, 9, 4), bool))
    own, truth = pair(volume)
    with pytest.raises(MismatchError, match=r"bounding box is 1x9x4 voxels; .* at least 2x2"):
        Perceptual(file, 0.5).loss(volume, own, truth, COUNTED, KEY)
