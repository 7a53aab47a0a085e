"""`model.safetensors` and `model.json` rebuild the model with no other file; those of the first build still do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.errors import CorruptShardError
from training.checkpoints.export import MODEL, WEIGHTS, rebuild, save_model
from training.networks.model import BoldModel
from training.presets import Architecture

FIRST = Path(__file__).parent / "models" / "format-1"
OURS = Architecture(latent=4, channels=(8, 8), blocks=1, width=8, depth=1, heads=2, dropout=0.2)
ANCESTOR = Architecture(
    family="ancestor", intensity=True, latent=8, channels=(4, 4), blocks=1, width=8, depth=1, heads=2, dropout=0.1,
    positions=12,
)  # fmt: skip
TARGET = {"column": "group", "kind": "multiclass", "levels": ["a", "b", "c"], "mean": None, "std": None}


def windows(num_voxels: int, *, intensity: bool = False) -> dict[str, torch.Tensor | None]:
    """Two windows of six frames; the second has five."""
    rng = np.random.default_rng(0)
    q = torch.from_numpy(rng.integers(-60, 60, (2, 6, num_voxels)).astype("i1"))
    gain = torch.from_numpy((0.02 + 0.02 * rng.random((2, num_voxels))).astype("f4"))
    found = {"q": q, "gain": gain, "shift": None, "num_valid": torch.tensor([6, 5]), "tr_s": torch.tensor([2.0, 0.8])}
    return found | ({"level": gain, "spread": gain} if intensity else {})


def write(folder: Path, size: Architecture, phase: int, pool: str = "moments") -> BoldModel:
    mask = np.random.default_rng(11).random((9, 8, 8)) > 0.3
    model = BoldModel(size=size, mask_XYZ=mask, phase=phase, pool=pool, num_outputs=3 if phase == 3 else 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir()
    facts = {"window": "6", "split_hash": "2" * 32, "target": TARGET if phase == 3 else None}
    save_model(folder, model, model.state_dict(), facts)
    return model


@pytest.mark.parametrize("phase", [1, 2, 3])
@pytest.mark.parametrize(("size", "pool"), [(OURS, "moments"), (ANCESTOR, "cls")])
def test_two_files_are_enough(tmp_path: Path, size: Architecture, pool: str, phase: int) -> None:
    model = write(tmp_path / "written", size, phase, pool)
    (tmp_path / "sent").mkdir()
    for name in (MODEL, WEIGHTS):
        shutil.copy(tmp_path / "written" / name, tmp_path / "sent")
    torch.manual_seed(1)
    rebuilt, description = rebuild(tmp_path / "sent")
    assert rebuilt.size == size and not rebuilt.training
    assert description["target"] == (TARGET if phase == 3 else None) and description["split_hash"] == "2" * 32
    given = windows(model.volume.num_voxels, intensity=size.intensity)
    with torch.no_grad():
        before, after = model(**given), rebuilt(**given)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("phase", [2, 3])
def test_a_model_of_the_first_build_computes_what_it_did(phase: int) -> None:
    model, description = rebuild(FIRST / f"phase-{phase}")
    assert "family" not in description["architecture"] and description["step"] == 7
    expected = json.loads((FIRST / f"phase-{phase}" / "expected.json").read_text())
    with torch.no_grad():
        found = model(**windows(model.volume.num_voxels))[expected["from"]]
    np.testing.assert_allclose(found.numpy(), np.array(expected["values"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": None},
        {"architecture": {"latent": 4}},
        {"architecture": {"speed": 4, "channels": [8]}},
        {"architecture": {"channels": 8}},
        {"phase": 2},
        {"pool": "largest"},
        {"num_outputs": 5},
    ],
)
def test_a_description_of_something_else_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FIRST / "phase-3", folder)
    description = json.loads((folder / MODEL).read_text())
    (folder / MODEL).write_text(json.dumps(description | changes))
    with pytest.raises(CorruptShardError, match="does not describe the weights") as caught:
        rebuild(folder)
    assert "\n" not in str(caught.value)
