"""A planted effect is on the map where it was planted, and a label that means nothing has nothing on its map."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from eval.config import ExplainConfig
from eval.context import open_context
from eval.explain.explanation import Explanation
from eval.explain.section import section
from eval.explain.stage import explain
from eval.ranks import Ranks

pytestmark = pytest.mark.slow

NUM_SUBJECTS, NUM_FRAMES = 64, 60
SIZE = {"preset": "tiny", "latent": 12, "width": 16, "depth": 1, "heads": 2, "window": 20}
SMALL = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))] + ["--channels", "8", "8"]
TRAIN = """
import json, sys
from pathlib import Path
from training.cli import main
from train import validate
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    assert main(arguments, validate=validate) == 0, arguments
"""


def planted(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels whose coupling carries the label: the lower two thirds, half of them in front and half behind."""
    _, _, z = np.nonzero(mask)
    return z < 4


def simulate(mask: NDArray[np.bool_]) -> tuple[dict[str, NDArray], str]:
    """Front and back move together or against each other, as `group` says; the top moves alone; `coin` says nothing."""
    rng = np.random.default_rng(5)
    _, y, z = np.nonzero(mask)
    front, top = y >= 4, z >= 4
    coins = rng.permutation(np.arange(NUM_SUBJECTS) % 2)
    signals, lines = {}, ["participant_id\tgroup\tcoin"]
    for k in range(NUM_SUBJECTS):
        label = k % 2
        shared, own, other = rng.standard_normal((3, NUM_FRAMES))
        coupled = (1 if label else -1) * 0.6 * shared + 0.8 * own
        series = np.where(top, other[:, None], np.where(front, shared[:, None], coupled[:, None]))
        noise = rng.standard_normal(series.shape)
        signals[f"sub-{k:02d}_task-rest"] = (1000 + 20 * (series + noise)).astype("f4")
        lines.append(f"sub-{k:02d}\t{('control', 'patient')[label]}\t{'ab'[coins[k]]}")
    return signals, "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("explain")


@pytest.fixture
def explained(place: Path, make_shard_set: Callable[..., Any], mask: NDArray[np.bool_]) -> Callable[..., Explanation]:
    """Return a function that explains the model of a target; both are trained once, in a process of their own."""
    if not (place / "coin").exists():
        signals, table = simulate(mask)
        make_shard_set(place / "shards", signals=signals, participants=table, runs_per_shard=NUM_SUBJECTS)
        shares = ["--split_fractions", "0.5", "0.15", "0.35", "--split_stratify", "group", "coin"]
        commands = [["--phase", "1", "--shards", "shards", "--out", "p1", *SMALL, "--steps", "4", *shares]]
        for target in ("group", "coin"):
            flags = ["--init", "p1", "--target", target, "--out", target, "--steps", "2", "--batch_size", "4"]
            commands.append(["--phase", "3", "--shards", "shards", *flags, *SMALL])
        (place / "train.py").write_text(TRAIN)
        (place / "commands.json").write_text(json.dumps(commands))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [sys.executable, "-P", "train.py", "commands.json"]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-4000:]

    def run(target: str) -> Explanation:
        config = ExplainConfig(checkpoint=place / target, shards=str(place / "shards"), out=place / f"report-{target}")
        with open_context(config, Ranks()) as context:
            return explain(context, subjects=20, windows=3, steps=3, noise_samples=1)

    return run


def test_the_map_points_to_the_voxels_that_carry_the_label(
    explained: Callable[..., Explanation], mask: NDArray[np.bool_]
) -> None:
    found, truth = explained("group"), planted(mask)
    assert roc_auc_score(truth, found.group_V) > 0.8
    passed = found.z_V >= found.threshold
    assert passed[truth].mean() > 0.5
    assert passed[np.nonzero(mask)[2] == 5].mean() < 0.2  # what is next to the planted voxels is blurred with them
    assert found.completeness[0] < 0.02
    assert found.halves.mean() > 0.5
    assert max(abs(each.group) for each in found.randomised if each.level == "everything") < 0.5
    assert sum(bool(each.correct) for each in found.subjects) >= 16
    assert "voxels stand out" in " ".join(section(found).paragraphs)


def test_a_label_that_means_nothing_has_nothing_on_its_map(explained: Callable[..., Explanation]) -> None:
    found = explained("coin")
    assert (np.abs(found.z_V) < found.threshold).all()
    assert "no voxel stands out" in " ".join(section(found).paragraphs)
    assert not found.attention_matters  # phase 2 was left out
    assert "nothing of what it attends to" in " ".join(section(found).paragraphs)
