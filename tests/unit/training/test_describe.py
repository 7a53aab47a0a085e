"""`train.py --describe` against counts made by hand, files on disk, and published figures."""

from __future__ import annotations

import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shards.format import Grid
from shards.order import parse_window
from shards.reader import ShardSet
from training.cli import main
from training.describe import activation_bytes, count, operations, state_bytes, window_bytes
from training.networks.model import BoldModel, recompute_in_backward
from training.presets import PRESETS, Architecture

L = 5
SMALL = Architecture(latent=8, channels=(8, 8), blocks=1, width=16, depth=2, heads=2, dropout=0.0)
CUBE = np.ones((8, 8, 8), dtype=bool)  # stride 4: 2 x 2 x 2 patches of 64 voxels, which no stage halves
STEM = 2 * 4**3 * 1 * 8 * 8  # a multiply-add counts 2; kernel, channels in, channels out, positions
CONV = 2 * 3**3 * 8 * 8 * 8
TRUNK = 2 * 64 * 8
ENCODER = STEM + 3 * CONV + 2 * TRUNK  # the downsampling convolution and a residual block of two
DECODER = ENCODER  # its last layer writes 64 voxels a patch from 8 channels: as much as the stem


def never(*_: object) -> float:
    raise AssertionError("a description validates nothing")


def meta_model(size: Architecture = SMALL, mask: np.ndarray = CUBE, **phase: Any) -> BoldModel:
    with torch.device("meta"):
        model = BoldModel(size=size, mask_XYZ=mask, **phase)
    return model.to("meta")


def window(num_voxels: int, *, num_frames: int = L, hidden: bool = False) -> dict[str, Tensor | None]:
    flat = torch.empty(1, num_voxels, device="meta")
    return {
        "q": torch.empty(1, num_frames, num_voxels, dtype=torch.int8, device="meta"),
        "gain": flat,
        "shift": None,
        "num_valid": torch.empty(1, dtype=torch.int64, device="meta"),
        "tr_s": torch.empty(1, device="meta"),
        "level": flat,
        "spread": flat,
        "hidden": torch.empty(1, num_frames, dtype=torch.bool, device="meta") if hidden else None,
    }


def cells(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
    return line.removeprefix(label).split()


def test_operations_of_an_autoencoder_are_those_counted_by_hand() -> None:
    found = operations(meta_model(phase=1), window(512), backward=False)
    assert found["encoder"] == L * ENCODER
    assert found["decoder"] == L * DECODER
    assert found["total"] == L * (ENCODER + DECODER)


def test_backward_costs_twice_forward_but_for_the_input_that_needs_no_gradient() -> None:
    found = operations(meta_model(phase=1), window(512), backward=True)
    assert found["encoder"] == L * (3 * ENCODER - STEM)
    assert found["total"] == L * (3 * (ENCODER + DECODER) - STEM)


def test_operations_of_a_transformer_count_its_attention() -> None:
    found = operations(meta_model(phase=2), window(512, hidden=True), backward=False)
    s, w = L + 1, 16
    layer = 2 * s * w * 3 * w + 2 * (2 * s * s * w) + 2 * s * w * w + 2 * (2 * s * w * 4 * w)
    assert found["sequence"] == 2 * layer + 2 * (2 * L * 8 * w)


def test_tff_needs_the_operations_that_are_known_of_it() -> None:
    # 1.79 and 1.13 G multiply-adds a volume of 75 x 93 x 81 in two channels
    model = meta_model(PRESETS["tff"].size, np.ones((75, 93, 81), dtype=bool), phase=1)
    found = operations(model, window(75 * 93 * 81, num_frames=1), backward=False)
    assert found["encoder"] == pytest.approx(2 * 1.79e9, rel=0.01)
    assert found["decoder"] == pytest.approx(2 * 1.13e9, rel=0.01)


class Squash(nn.Module):
    """Keeps its input (for the gradient of the weight) and its output (for that of the sigmoid)."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 7, bias=False).requires_grad_(learns)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"output": torch.sigmoid(self.layer(x))}


def test_activations_are_inputs_and_outputs_each_once_without_the_weights() -> None:
    assert activation_bytes(Squash(True), {"x": torch.zeros(11, 30)}) == 4 * (11 * 30 + 11 * 7)


def test_nothing_is_kept_where_nothing_learns() -> None:
    assert activation_bytes(Squash(False), {"x": torch.zeros(11, 30)}) == 0


@pytest.mark.parametrize("preset", ["tiny", "tff"])
def test_recomputing_keeps_less_and_computes_more(preset: str) -> None:
    plain, again = (meta_model(PRESETS[preset].size, np.ones((24, 28, 24), dtype=bool), phase=2) for _ in range(2))
    recompute_in_backward(again)
    inputs = window(24 * 28 * 24, hidden=True)
    assert activation_bytes(again, inputs) < activation_bytes(plain, inputs)
    assert operations(again, inputs, backward=True)["total"] > operations(plain, inputs, backward=True)["total"]


def test_memory_of_weights_gradients_and_moments() -> None:
    # float32: 4 + 4 + 8 bytes; with ZeRO 4 more for the optimizer's own copy of the weights
    assert state_bytes(1000, 1000, stage=0, ranks=8, half=False) == 16_000
    assert state_bytes(1000, 1000, stage=1, ranks=8, half=False) == 8_000 + 12_000 / 8
    assert state_bytes(1000, 1000, stage=2, ranks=8, half=False) == 4_000 + 16_000 / 8
    assert state_bytes(1000, 1000, stage=3, ranks=8, half=False) == 20_000 / 8
    # bf16: 2 + 2 + 12 bytes
    assert state_bytes(1000, 1000, stage=1, ranks=1, half=True) == 16_000
    assert state_bytes(1000, 1000, stage=2, ranks=4, half=True) == 2_000 + 14_000 / 4


def test_what_is_frozen_has_weights_only() -> None:
    assert state_bytes(1000, 0, stage=0, ranks=1, half=False) == 4_000


def test_bytes_of_a_window_are_those_of_the_files(tmp_path: Path, make_shard_set: Callable[..., Any]) -> None:
    frames, trs = (37, 150, 83), (2.0, 0.8, 1.0)
    make_shard_set(tmp_path / "set", frames=frames, tr_s=trs)
    members: dict[str, int] = {}
    for path in (tmp_path / "set").glob("*.tar"):
        with tarfile.open(path) as tar:
            members |= {m.name.removesuffix(".bold"): m.size for m in tar.getmembers() if m.name.endswith(".bold")}
    sizes = [members[name] for name in sorted(members)]
    lengths = (8, 20, 16)  # 16 seconds
    windows = [t // length for t, length in zip(frames, lengths, strict=True)]
    read = sum(n * size / t * length for n, size, t, length in zip(windows, sizes, frames, lengths, strict=True))
    with ShardSet(tmp_path / "set") as shard_set:
        mean, total = window_bytes(shard_set, parse_window("16s", trs))
    assert total == sum(windows)
    assert mean == pytest.approx(read / total)


@pytest.fixture
def place(tmp_path: Path, make_shard_set: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a set of 12 subjects of two groups and three sites, where no process group may start."""
    table = "participant_id\tsite\n" + "".join(f"sub-{k:02d}\t{'abc'[k % 3]}\n" for k in range(12))
    grid = Grid(shape=(9, 9, 9), affine=tuple(map(tuple, np.diag([4.0, 4, 4, 1]).tolist())))
    mask = np.ones((9, 9, 9), dtype=bool)
    make_shard_set(tmp_path / "set", frames=(24,) * 12, participants=table, mask=mask, grid=grid)
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)

    def started() -> None:
        raise AssertionError("a description starts no process group")

    monkeypatch.setattr("training.engine.environment.enter", started)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--shards", "set", "--describe"], validate=never) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_parameters_are_those_of_the_real_model(phase: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--phase", str(phase), "--preset", "tiny", "--window", "10")
    assert text.startswith(f"tiny, phase {phase}, grid 9 x 9 x 9, V = 729 voxels in the mask, window of 10 frames\n")
    model = BoldModel(size=PRESETS["tiny"].size, mask_XYZ=np.ones((9, 9, 9), bool), phase=phase, num_outputs=1)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert int(cells(text, "all")[0].replace(",", "")) == total == count(model)[0]
    for name, part in model.named_children():
        if name != "volume":
            numel = sum(parameter.numel() for parameter in part.parameters())
            assert int(cells(text, name)[0].replace(",", "")) == numel, name
    learning = {1: model, 2: getattr(model, "sequence", None), 3: getattr(model, "head", None)}[phase]
    assert int(cells(text, "all")[1].replace(",", "")) == sum(p.numel() for p in learning.parameters())
    assert [path.name for path in place.iterdir()] == ["set"]


def test_a_target_decides_the_outputs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--phase", "3", "--preset", "tiny", "--window", "10")
    one, three = (told(capsys, *flags, *target) for target in ((), ("--target", "site")))
    assert int(cells(three, "head")[0].replace(",", "")) == 3 * int(cells(one, "head")[0].replace(",", ""))


def test_the_largest_ancestor_is_described_without_being_allocated(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = told(capsys, "--phase", "2", "--preset", "hackathon")
    assert int(cells(text, "all")[0].replace(",", "")) > 700_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the weights alone are 3 GB


def test_every_line_of_the_table_ends_at_its_column(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--phase", "1", "--preset", "tiny", "--window", "10")
    sections = [part.splitlines() for part in text.rstrip("\n").split("\n\n")[1:]]
    assert len(sections) == 4
    for section in sections:
        assert len({len(line) for line in section}) == 1, section


def test_a_launcher_s_ranks_take_the_place_of_the_examples(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--phase", "1", "--preset", "tiny", "--window", "10")
    assert "64 ranks" in told(capsys, *flags)
    monkeypatch.setenv("WORLD_SIZE", "6")
    text = told(capsys, *flags)
    assert "6 ranks" in text and "64 ranks" not in text
    one, six = (float(value) for value in cells(text, "ZeRO 3, fp32"))
    assert one == pytest.approx(6 * six, rel=0.01)


def test_a_window_longer_than_every_run_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--phase", "1", "--preset", "tiny", "--window", "30", "--shards", "set", "--describe"]
    assert main(flags, validate=never) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "24 frames" in line
