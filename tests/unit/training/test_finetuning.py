"""Phase 3: the probe inside the model, and that later steps must beat it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss

from shards.loader import WindowLoader
from shards.reader import ShardSet
from training import run
from training.checkpoints.checkpoint import Checkpoints
from training.config import TrainConfig, resolve
from training.engine.environment import Place
from training.finetuning import task as finetuning
from training.finetuning.probe import fit_probe
from training.finetuning.targets import known_numbers, learn_target
from training.finetuning.task import Finetuning
from training.networks.model import BoldModel
from training.predict import predict_windows, subject_means
from training.presets import Architecture
from training.reporting.journal import Journal

SIZE = Architecture(latent=5, channels=(8, 8), blocks=1, width=16, depth=1, heads=2, dropout=0.0)
NUM_SUBJECTS, NUM_FRAMES, WINDOW = 24, 37, 10  # the last window of each run has 7 frames


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The only rank of a process group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    torch.distributed.destroy_process_group()


@pytest.fixture
def cohort(tmp_path: Path, make_shard_set: Callable[..., Any], mask: NDArray[np.bool_]) -> ShardSet:
    """In half of the subjects two halves of the brain move together, in the others against each other."""
    rng = np.random.default_rng(3)
    voxels = int(mask.sum())
    signals, rows = {}, ["participant_id\tgroup\tage\tsite\trare"]
    for k in range(NUM_SUBJECTS):
        course = rng.standard_normal((NUM_FRAMES, 1))
        signal = 0.7 * rng.standard_normal((NUM_FRAMES, voxels))
        signal[:, : voxels // 2] += course
        signal[:, voxels // 2 :] += course if k % 2 else -course
        signals[f"sub-{k:02d}_task-rest"] = (1000 + 20 * signal).astype("f4")
        rows.append(f"sub-{k:02d}\t{'patient' if k % 2 else 'control'}\t{30.5 + k}\t{'ABC'[k % 3]}\t{int(k % 4 == 3)}")
    make_shard_set(tmp_path / "shards", signals=signals, participants="\n".join(rows) + "\n", runs_per_shard=30)
    return ShardSet(tmp_path / "shards")


def prepared(
    cohort: ShardSet,
    place: Place,
    column: str,
    pool: str,
    *,
    score: Callable[..., float] = lambda *_: 0.0,
    **more: Any,
) -> tuple[BoldModel, Finetuning, dict[str, Any]]:
    """An untrained model with its probe fitted on all subjects."""
    values = cohort.phenotype(column)
    target = learn_target(column, values, sorted(values))
    flags: dict[str, Any] = {"shards": (cohort.location,), "out": Path("out"), "init": "none", "preset": "tiny"}
    config = resolve(TrainConfig(phase=3, target=column, window=str(WINDOW), **flags, **more))
    loader = WindowLoader(cohort, window=WINDOW, batch_size=7, mode="tile")
    torch.manual_seed(0)
    model = BoldModel(size=SIZE, mask_XYZ=cohort.mask, phase=3, pool=pool, num_outputs=target.num_outputs)
    numbers = known_numbers(target, values, sorted(values))
    options = {"shard_set": cohort, "target": target, "train": numbers, "val": numbers, "val_loader": loader}
    task = Finetuning(config, place, **options, validate=score)
    return model, task, task.prepare(model, loader)


@pytest.mark.parametrize("pool", ["cls", "mean", "moments"])
def test_averaged_window_outputs_are_the_probes(
    cohort: ShardSet, place: Place, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray] = []

    def recorded(x: NDArray, y: NDArray, groups: Any) -> Any:
        probe = fit_probe(x, y, groups)
        seen.append(x @ probe.weight.T + probe.bias)
        return probe

    monkeypatch.setattr(finetuning, "fit_probe", recorded)
    model, task, _ = prepared(cohort, place, "age", pool)
    found = subject_means(predict_windows(model, cohort, range(len(cohort.runs)), WINDOW, 4, 1))
    expected = seen[0][:, 0] * task.target.std + task.target.mean
    assert np.allclose([value[0] for value in found.values()], expected, atol=1e-2)


def test_the_probe_tells_the_groups_apart(cohort: ShardSet, place: Place) -> None:
    model, task, report = prepared(cohort, place, "group", "moments")
    assert report["num_subjects"] == NUM_SUBJECTS
    assert report["loo_error"] < 0.5
    found = subject_means(predict_windows(model, cohort, range(len(cohort.runs)), WINDOW, 4, 1))
    assert all((found[who][0] > 0) == (number == 1) for who, number in task.train.items())


def test_each_class_has_an_output(cohort: ShardSet, place: Place) -> None:
    model, _, _ = prepared(cohort, place, "site", "moments")
    rows = predict_windows(model, cohort, [0], WINDOW, 4, 1)
    assert [row["num_frames"] for row in rows] == [10, 10, 10, 7]
    assert all(row["output"].shape == (3,) for row in rows)


@pytest.mark.parametrize("column", ["group", "site", "age"])
def test_losses_are_those_of_torch_on_outputs_drawn_to_the_prior(cohort: ShardSet, place: Place, column: str) -> None:
    model, task, _ = prepared(cohort, place, column, "moments")
    batch = next(iter(WindowLoader(cohort, window=WINDOW, batch_size=6)))
    with torch.no_grad():
        loss = task.losses(lambda **inputs: model(**inputs), batch, 0).per_window.mean()
        output = model(batch.q, batch.gain, batch.shift, batch.num_valid, batch.tr_s)["output"]
    truth = torch.tensor([task.train[cohort.runs[run].subject] for run in batch.run.tolist()])
    # 12 and 12 subjects; 8, 8 and 8; 30.5 to 53.5 years
    prior = {"group": 0.0, "site": np.log(1 / 2), "age": 42.0}[column]
    output = prior + model.window_scale * (output - prior)
    if column == "group":
        expected = torch.nn.BCEWithLogitsLoss()(output[:, 0], truth)
    elif column == "site":
        expected = torch.nn.CrossEntropyLoss()(output, truth.long())
    else:
        expected = torch.nn.MSELoss()(output[:, 0], truth) / task.target.std**2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_left_out_outputs_are_in_the_units_of_the_outputs(cohort: ShardSet, place: Place) -> None:
    left_out: list[NDArray] = []

    def score(truth: NDArray, output: NDArray, kind: str) -> float:
        left_out.append(output[truth == 1].mean() - output[truth == 0].mean())
        return 0.0

    model, task, _ = prepared(cohort, place, "group", "moments", score=score)
    means = subject_means(predict_windows(model, cohort, range(len(cohort.runs)), WINDOW, 4, 1))
    seen = [np.mean([means[who][0] for who, number in task.train.items() if number == k]) for k in (0, 1)]
    assert left_out[0] == pytest.approx(seen[1] - seen[0], rel=0.3)


@pytest.mark.parametrize("column", ["group", "site", "age"])
def test_a_window_is_trusted_with_the_slope_of_a_discriminant(cohort: ShardSet, place: Place, column: str) -> None:
    left_out: list[tuple[NDArray, NDArray]] = []

    def score(truth: NDArray, output: NDArray, kind: str) -> float:
        left_out.append((truth, output))
        return 0.0

    model, _, report = prepared(cohort, place, column, "moments", score=score)
    rows = predict_windows(model, cohort, range(len(cohort.runs)), WINDOW, 4, 1)
    means = subject_means(rows)
    squared = [row["num_frames"] * np.sum((row["output"] - means[row["subject"]]) ** 2) for row in rows]
    noise = sum(squared) / sum(row["num_frames"] for row in rows)
    truth, output = left_out[0]
    if column == "age":
        gap, spread = np.mean((truth - truth.mean()) * output[:, 0]), np.var(output)
    else:
        table = pd.DataFrame(output).groupby(truth)
        spread = ((output - table.transform("mean").to_numpy()) ** 2).sum(1).mean()
        own = table.mean().to_numpy()  # classes alike in size: the others' mean is the mean of their means
        gap = own[1, 0] - own[0, 0] if column == "group" else np.sum(1.5 * (np.diag(own) - own.mean(0)))
    expected = min(1.0, max(gap, spread) / (spread + noise))
    assert report["window_scale"] == pytest.approx(expected, rel=1e-3)
    assert float(model.window_scale) == pytest.approx(expected, rel=1e-3)


def test_class_weights_count_every_class_alike(cohort: ShardSet, place: Place) -> None:
    model, task, _ = prepared(cohort, place, "rare", "moments", class_weights=True)
    plain, unweighted, _ = prepared(cohort, place, "rare", "moments")
    assert float(task.prior_K[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(unweighted.prior_K[0]) == pytest.approx(np.log(6 / 18), rel=1e-5)
    batch = next(iter(WindowLoader(cohort, window=WINDOW, batch_size=8)))
    output = torch.zeros(8, 1)
    loss_B = task.losses(lambda **_: {"output": output, "window_scale": torch.ones(1)}, batch, 0).per_window
    rare_B = torch.tensor([task.train[cohort.runs[run].subject] for run in batch.run.tolist()]) == 1
    assert rare_B.any() and not rare_B.all()
    np.testing.assert_allclose(loss_B.numpy(), np.log(2) * np.where(rare_B, 24 / 12, 24 / 36), rtol=1e-5)
    weighted, free = (
        np.mean([row["output"][0] for row in predict_windows(m, cohort, range(NUM_SUBJECTS), WINDOW, 4, 1)])
        for m in (model, plain)
    )
    assert weighted > free + 0.5


def test_validation_scores_every_subject_once(cohort: ShardSet, place: Place) -> None:
    given: list[tuple[NDArray, NDArray, str]] = []

    def score(truth: NDArray, output: NDArray, kind: str) -> float:
        given.append((truth, output, kind))
        return 0.25

    model, task, _ = prepared(cohort, place, "group", "moments", score=score)
    found = task.validate(lambda **inputs: model(**inputs))
    truth, output, kind = given[-1]
    assert found["score"] == 0.25
    assert found["loss"] == pytest.approx(log_loss(truth, 1 / (1 + np.exp(-output[:, 0]))), rel=1e-6)
    assert (truth.shape, output.shape, kind) == ((NUM_SUBJECTS,), (NUM_SUBJECTS, 1), "binary")
    assert np.mean((output[:, 0] > 0) == (truth == 1)) == 1


def test_only_a_better_score_replaces_the_probe(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.8, 0.8, 0.7, 0.9])
    task = SimpleNamespace(validate=lambda engine: {"score": next(scores)})
    engine = SimpleNamespace(eval=lambda: None, monitor=SimpleNamespace(enabled=False))
    monkeypatch.setattr(run, "gather_weights", lambda engine: {"w": torch.ones(1)})
    checkpoints = Checkpoints(tmp_path, {}, 1, place)
    journal, best, history = Journal(tmp_path, writes=True), run.Best(), []
    state = SimpleNamespace(engine=engine, task=task, journal=journal, checkpoints=checkpoints, place=place)
    for step in range(4):
        best = run._validate(state, best, step)
        history.append((best.step, best.worse))
    assert history == [(0, 0), (0, 1), (0, 2), (3, 0)]
    assert best.file is not None and checkpoints.load_best(best.file)["w"].item() == 1
