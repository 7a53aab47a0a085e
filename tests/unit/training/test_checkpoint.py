"""Which checkpoints stay: never fewer than what `latest` names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.checkpoint import Checkpoints
from training.environment import Place


@pytest.mark.parametrize("keep", [1, 2])
def test_a_folder_that_was_never_named_does_not_push_out_the_one_that_is(tmp_path: Path, keep: int) -> None:
    place = Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    checkpoints = Checkpoints(tmp_path, {"a": 1}, keep, place)
    for tag in ("step00000005", "step00000007", "step00000014", "partial-step00000009"):
        (checkpoints.folder / tag).mkdir(parents=True)  # 14: a crash came before `latest` named it
    checkpoints._publish("partial-step00000009", "step00000009", None)
    assert checkpoints.latest() == "step00000009"
    kept = sorted(path.name for path in checkpoints.folder.glob("step*"))
    assert kept == ["step00000007", "step00000009"][-keep:]
