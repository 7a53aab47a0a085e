"""Every objective of phase 2 through train.py: accumulation, ranks and ZeRO stages change nothing that is learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_training import Trainings

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 4
COMMON = (
    f"--phase 2 --init none --preset tiny --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16"
    " --depth 1 --heads 2 --window 10 --val_runs 3 --log_every 1 --split_fractions 0.5 0.25 0.25"
    " --contrast_weight 0.7 --pair_weight 0.5 --direction_weight 0.6 --active_weight 0.3"
).split()
CUTS = {
    # name: ranks, windows per batch, batches per step, ZeRO stage
    "whole": (1, 8, 1, 1),
    "halves": (1, 4, 2, 1),
    "quarters": (1, 2, 4, 1),
    "two-ranks": (2, 4, 1, 1),
    **{f"two-ranks-halves-zero{stage}": (2, 2, 2, stage) for stage in range(4)},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("cut")


@pytest.fixture
def runs(place: Path, make_shard_set: Callable[..., Any]) -> Path:
    """One training a cut; all made once."""
    if (place / "shards").exists():
        return place
    make_shard_set(place / "shards", frames=(40,) * 16, runs_per_shard=16)
    with Trainings(place) as trainings:
        for name, (ranks, size, accumulation, stage) in CUTS.items():
            values = json.loads((ROOT / "deepspeed_configs" / "zero0_fp32.json").read_text())
            values["zero_optimization"]["stage"] = stage
            (place / f"{name}.json").write_text(json.dumps(values))
            cut = ["--batch_size", str(size), "--accumulation", str(accumulation), "--out", name]
            trainings.run(name, [*COMMON, *cut, "--deepspeed_config", f"{name}.json"], ranks=ranks)
    return place


def logged(folder: Path, event: str, name: str) -> np.ndarray:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([record[name] for record in records if record["event"] == event], float)


@pytest.mark.distributed
@pytest.mark.parametrize("cut", [name for name in CUTS if name != "whole"])
def test_a_cut_batch_teaches_what_the_whole_one_does(runs: Path, cut: str) -> None:
    whole = logged(runs / "whole", "train", "loss")
    assert len(whole) == NUM_STEPS and np.ptp(whole) > 1e-3
    np.testing.assert_allclose(logged(runs / cut, "train", "loss"), whole, rtol=0, atol=1e-5)
    for name in ("mse", "latent_mse", "direction_told", "context_variance", "better_percent"):
        expected = logged(runs / "whole", "val", name)
        np.testing.assert_allclose(logged(runs / cut, "val", name), expected, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.distributed
def test_every_objective_is_logged_and_the_model_loads_again(runs: Path) -> None:
    from training.checkpoints.export import load_model

    for name in ("reconstruction", "hidden", "active", "contrast", "pair", "direction"):
        assert (logged(runs / "whole", "train", name) > 0).all(), name
    model = load_model(runs / "whole").model
    assert model.direction.weigh.weight.abs().max() > 0  # it has learnt, and travels with the phase
