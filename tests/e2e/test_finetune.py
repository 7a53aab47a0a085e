"""Phase 3 from shards to test subjects: binary, multi-class and regression targets planted in how voxels move."""

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
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

NUM_SUBJECTS, NUM_FRAMES, WINDOW = 72, 60, 10
SMALL = f"--preset tiny --latent 12 --channels 8 8 --width 16 --depth 1 --heads 2 --window {WINDOW}".split()
TRAINING = ["--steps", "30", "--batch_size", "8", "--lr", "1e-2", "--val_every", "10", "--log_every", "10"]
SEVERAL = """
import json, sys
from pathlib import Path
from training.cli import main
from train import validate
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    assert main(arguments, validate=validate) == 0, arguments
"""


def simulate(voxels: int) -> tuple[dict[str, NDArray], dict[str, list[str]]]:
    """Runs and labels; three sets of voxels carry one label each, in covariance alone.

    - `sex`: two blocks move together or against each other;
    - `site`: two of three blocks move together;
    - `age`: how strongly two blocks move together;
    - `rare`: as `sex`, one subject in four, weakly.
    """
    rng = np.random.default_rng(5)
    signals: dict[str, NDArray] = {}
    columns: dict[str, list[str]] = {"sex": [], "site": [], "age": [], "rare": []}
    blocks = np.array_split(np.arange(voxels), 9)
    for k in range(NUM_SUBJECTS):
        sex, site, age, rare = k % 2, (k // 2) % 3, rng.uniform(20, 80), (k // 2) % 4 == 0
        courses = rng.standard_normal((NUM_FRAMES, 9))
        courses[:, 1] = courses[:, 0] * (1 if sex else -1)
        courses[:, 2 + site] = courses[:, 2 + (site + 1) % 3]
        share = (age - 20) / 60
        courses[:, 6] = share * courses[:, 5] + (1 - share**2) ** 0.5 * courses[:, 6]
        own = (0.6 if rare else 0.0) + 0.5 * rng.standard_normal()
        courses[:, 8] = own * courses[:, 7] + courses[:, 8]
        signal = rng.standard_normal((NUM_FRAMES, voxels))
        for number, members in enumerate(blocks):
            signal[:, members] += courses[:, number : number + 1]
        signals[f"sub-{k:02d}_task-rest"] = (1000 + 20 * signal).astype("f4")
        told = ("FM"[sex], "ABC"[site], f"{age:.2f}", str(int(rare)))
        for name, text in zip(columns, told, strict=True):
            columns[name].append(text)
    return signals, columns


def table(columns: dict[str, list[str]]) -> str:
    """participants.tsv."""
    rows = zip(*columns.values(), strict=True)
    lines = [
        "\t".join(["participant_id", *columns]),
        *(f"sub-{k:02d}\t" + "\t".join(row) for k, row in enumerate(rows)),
    ]
    return "\n".join(lines) + "\n"


def run(folder: Path, commands: list[list[str]]) -> str:
    """Several trainings in one process: most of a short one is the start of python."""
    (folder / "several.py").write_text(SEVERAL)
    (folder / "commands.json").write_text(json.dumps(commands))
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "several.py", "commands.json"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def finetune(shards: str, target: str, out: str, *flags: str) -> list[str]:
    return ["--phase", "3", "--shards", shards, "--init", "p1", "--target", target, "--out", out, *SMALL, *flags]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that this module's tests share."""
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture
def runs(place: Path, make_shard_set: Callable[..., Any], mask: NDArray[np.bool_]) -> Path:
    """Phase 1 once, then each target; and again where only the values of others than training subjects differ."""
    if (place / "told").exists():
        return place
    signals, columns = simulate(int(mask.sum()))
    make_shard_set(place / "shards", signals=signals, participants=table(columns), runs_per_shard=NUM_SUBJECTS)
    shares = ["--split_fractions", "0.6", "0.15", "0.25"]
    phase_1 = ["--phase", "1", "--shards", "shards", "--out", "p1", *SMALL, "--steps", "4", *shares]
    told = run(place, [phase_1, *(finetune("shards", name, name, *TRAINING) for name in ("sex", "site", "age"))])
    split = json.loads((place / "p1" / "split.json").read_text())
    for who in split["test"]:
        columns["age"][int(who)] = "1000"
    columns["site"][int(split["val"][0])] = "Z"
    columns["site"][int(split["train"][0])] = "n/a"
    make_shard_set(place / "changed", signals=signals, participants=table(columns), runs_per_shard=NUM_SUBJECTS)
    told += run(
        place,
        [
            finetune("changed", "age", "age-changed", *TRAINING),
            finetune("changed", "site", "site-changed", "--steps", "0"),
            *(finetune("shards", "sex", pool, *TRAINING, "--pool", pool) for pool in ("cls", "mean")),
            finetune("shards", "rare", "rare", *TRAINING),
            finetune("shards", "rare", "rare-weighted", *TRAINING, "--class_weights"),
        ],
    )
    (place / "told").write_text(told)
    return place


def predict(runs: Path, name: str, *parts: str) -> tuple[NDArray, NDArray, Any]:
    """Target numbers and outputs of the subjects of some parts (default: test), and the target."""
    from shards.reader import ShardSet
    from training.checkpoints.export import load_model
    from training.finetuning.targets import Target
    from training.predict import predict_windows, subject_means

    shard_set = ShardSet(runs / "shards")
    described = json.loads((runs / name / "target.json").read_text())
    target = Target(**described | {"levels": tuple(described["levels"])})
    split = json.loads((runs / "p1" / "split.json").read_text())
    subjects = {who for part in parts or ("test",) for who in split[part]}
    numbers = [number for number, run in enumerate(shard_set.runs) if run.subject in subjects]
    means = subject_means(predict_windows(load_model(runs / name).model, shard_set, numbers, WINDOW, 8, 1))
    values = shard_set.phenotype(target.column)
    return np.array([target.number(values[who]) for who in means]), np.stack(list(means.values())), target


def journal(runs: Path, name: str, event: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def test_a_binary_target_is_predicted_for_new_subjects(runs: Path) -> None:
    truth, output, target = predict(runs, "sex")
    assert (target.kind, target.levels, output.shape[1]) == ("binary", ("F", "M"), 1)
    assert roc_auc_score(truth, output[:, 0]) > 0.95


def test_a_target_of_three_classes_is_predicted_for_new_subjects(runs: Path) -> None:
    truth, output, target = predict(runs, "site")
    assert (target.kind, target.levels) == ("multiclass", ("A", "B", "C"))
    assert np.mean(output.argmax(1) == truth) > 0.8


def test_a_measure_is_predicted_in_its_own_units(runs: Path) -> None:
    truth, output, target = predict(runs, "age")
    assert target.kind == "regression"
    assert spearmanr(truth, output[:, 0]).statistic > 0.7
    assert np.abs(output[:, 0] - truth).mean() < 0.8 * np.abs(truth - target.mean).mean()


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_other_pools_train(runs: Path, pool: str) -> None:
    losses = [record["loss"] for record in journal(runs, pool, "train")]
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert journal(runs, pool, "start")[0]["probe"]["features"].keys() == {f"{pool}@1"}


@pytest.mark.parametrize("name", ["sex", "site"])
def test_gradient_steps_improve_on_the_probes_loss_of_validation_subjects(runs: Path, name: str) -> None:
    losses = [record["loss"] for record in journal(runs, name, "val")]
    assert [record["step"] for record in journal(runs, name, "val")] == [0, 10, 20, 30]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["sex", "site", "age", "rare"])
def test_the_first_of_the_best_validations_is_what_is_kept(runs: Path, name: str) -> None:
    scores = [record["score"] for record in journal(runs, name, "val")]
    best = journal(runs, name, "val")[int(np.argmax(scores))]["step"]
    assert journal(runs, name, "end")[0]["chosen_step"] == best
    assert json.loads((runs / name / "model.json").read_text())["step"] == best


def test_nothing_is_learned_from_the_values_of_test_subjects(runs: Path) -> None:
    first, again = (load_file(runs / name / "model.safetensors") for name in ("age", "age-changed"))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    first, again = (json.loads((runs / name / "target.json").read_text()) for name in ("age", "age-changed"))
    assert first == again


def test_missing_values_and_new_levels_are_left_out_and_said(runs: Path) -> None:
    split = json.loads((runs / "p1" / "split.json").read_text())
    assert journal(runs, "site", "start")[0]["probe"]["num_subjects"] == len(split["train"])
    assert journal(runs, "site-changed", "start")[0]["probe"]["num_subjects"] == len(split["train"]) - 1
    assert "target site: no training subject has Z; left out" in (runs / "told").read_text()


def test_class_weights_find_more_of_a_rare_class(runs: Path) -> None:
    truth, plain, _ = predict(runs, "rare", "val", "test")
    _, weighted, _ = predict(runs, "rare-weighted", "val", "test")
    found = [recall_score(truth, output[:, 0] > 0) for output in (plain, weighted)]
    assert found[1] > found[0]
    balanced = [balanced_accuracy_score(truth, output[:, 0] > 0) for output in (plain, weighted)]
    assert balanced[1] > balanced[0]
    assert (weighted > plain).mean() > 0.9
