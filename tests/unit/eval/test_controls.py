"""Controls of our model: each takes away what it says, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import write_run
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from eval.config import PredictConfig
from eval.context import Context, open_context
from eval.controls import probes
from eval.controls.probes import CONTROLS, probe_controls, untrained
from eval.controls.refit import head_of, mean_features, refit, whitened_on
from eval.controls.table import read_outputs, write_outputs
from eval.controls.tokens import random_order, tokens_of, windows_of
from eval.ranks import Ranks
from shards.loader import WindowLoader
from shards.splits import make_split
from training.config import TrainConfig, resolve
from training.engine.environment import Place
from training.finetuning.targets import learn_target
from training.finetuning.task import Finetuning
from training.networks.model import BoldModel
from training.predict import predict_windows, subject_means

NUM_SUBJECTS, NUM_FRAMES = 40, 110
SUBJECTS = [f"{k:02d}" for k in range(NUM_SUBJECTS)]


@pytest.fixture
def shards(make_shard_set: Callable[..., Any], mask: NDArray[np.bool_], tmp_path: Path) -> Path:
    """In half of the subjects the right of the brain does what the left did a frame before, in the others the left."""
    rng = np.random.default_rng(5)
    left = np.nonzero(mask)[0] < mask.shape[0] // 2
    signals, lines = {}, ["participant_id\tgroup\tage"]
    for k, who in enumerate(SUBJECTS):
        course = rng.standard_normal(NUM_FRAMES + 1)
        ahead, behind = course[1:, None], course[:-1, None]
        series = np.where(left, *((ahead, behind) if k % 2 else (behind, ahead)))
        signal = series + 0.5 * rng.standard_normal((NUM_FRAMES, left.size))
        signals[f"sub-{who}_task-rest"] = (1000 + 20 * signal).astype("f4")
        lines.append(f"sub-{who}\t{'ab'[k % 2]}\t{20 + k}.5")
    make_shard_set(tmp_path / "set", signals=signals, participants="\n".join(lines) + "\n", runs_per_shard=40)
    return tmp_path / "set"


@pytest.fixture
def opened(shards: Path, tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """Return a function that opens a run of random weights and a random head."""
    contexts = []

    def make(column: str = "group", **flags: Any) -> Context:
        run = tmp_path / f"run-{column}"
        if not run.exists():
            write_run(run, shards, make_split(SUBJECTS, fractions=(0.5, 0.1, 0.4), seed=1), column=column, seed=7)
        config = PredictConfig(checkpoint=run, shards=str(shards), **({"out": tmp_path / "out"} | flags))
        contexts.append(open_context(config, Ranks()))
        return contexts[-1].__enter__()

    yield make
    for context in contexts:
        context.__exit__(None, None, None)


def pooled_as(context: Context, pool: str) -> Context:
    """The same with a model that pools in another way."""
    ours: Any = context.model
    torch.manual_seed(1)
    model = BoldModel(size=ours.size, mask_XYZ=context.shard_set.mask, phase=3, pool=pool, num_outputs=1)
    torch.nn.init.normal_(model.head.weight)
    model.pool.feature_mean.normal_()
    return dataclasses.replace(context, model=model.eval())


@pytest.mark.parametrize("pool", ["cls", "mean", "moments"])
def test_frames_in_order_and_the_trained_head_give_the_models_outputs(
    opened: Callable[..., Context], pool: str
) -> None:
    context = pooled_as(opened(), pool)
    model: Any = context.model
    tokens = tokens_of(context, model, [0, 3, 5], ["kept"])
    windows = windows_of(tokens, "kept", torch.device("cpu"))
    features = mean_features(model.pool, lambda: [windows], context.shard_set)
    found = head_of(model.state_dict()).outputs(features, context.target)
    expected = subject_means(predict_windows(model, context.shard_set, [0, 3, 5], context.window, 4, 1))
    assert found.keys() == expected.keys()
    for who, output in expected.items():
        np.testing.assert_allclose(found[who], output, rtol=1e-4, atol=1e-5)


def test_shuffled_windows_are_cut_from_the_run_in_random_order(opened: Callable[..., Context]) -> None:
    context = opened()
    model: Any = context.model
    tokens = tokens_of(context, model, [2], ["shuffled"])
    residual_TV = torch.from_numpy(context.shard_set.residual(2, 0, NUM_FRAMES)[random_order(context.shard_set, 2, 0)])
    expected = []
    with torch.no_grad():
        for frames_LV in residual_TV.split(20):
            latent_1LD = model.encode(frames_LV[None])
            context_1LD, _ = model.read_tokens(
                latent_1LD, torch.ones(1, len(frames_LV), dtype=bool), torch.tensor([2.0])
            )
            expected.append(context_1LD[0])
    np.testing.assert_allclose(tokens["context_shuffled"], torch.cat(expected).numpy(), rtol=1e-4, atol=1e-5)
    assert tokens["num_frames"].tolist() == [20, 20, 20, 20, 20, 10]
    assert tokens["start"].tolist() == [0, 20, 40, 60, 80, 100]


def test_a_run_keeps_its_random_order_and_others_have_others(opened: Callable[..., Context]) -> None:
    shard_set = opened().shard_set
    first = random_order(shard_set, 0, seed=0)
    assert sorted(first) == list(range(NUM_FRAMES))
    assert np.array_equal(first, random_order(shard_set, 0, seed=0))
    assert not np.array_equal(first, random_order(shard_set, 0, seed=1))
    assert not np.array_equal(first, random_order(shard_set, 1, seed=0))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The only rank of a process group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Place(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("column", ["group", "age"])
def test_a_refitted_head_is_the_one_that_training_starts_from(
    opened: Callable[..., Context], place: Place, column: str
) -> None:
    context = opened(column)
    model: Any = context.model
    numbers = {who: context.values[who] for who in context.subjects("train")}
    runs = context.runs(tuple(numbers))
    windows = windows_of(tokens_of(context, model, runs, ["kept"]), "kept", place.device)
    pool = whitened_on(model.pool, lambda: [windows], frozenset(runs))
    features = mean_features(pool, lambda: [windows], context.shard_set)
    head, facts = refit(pool, features, numbers, context.target, class_weights=False)
    found = head.outputs(features, context.target)

    values = context.shard_set.phenotype(column)
    target = learn_target(column, values, context.split.train)
    flags: dict[str, Any] = {"shards": (context.shard_set.location,), "out": Path("out"), "init": "none"}
    config = resolve(TrainConfig(phase=3, target=column, window="20", preset="tiny", **flags))
    loader = WindowLoader(context.shard_set, runs=runs, window=20, batch_size=7, mode="tile")
    options = {"shard_set": context.shard_set, "target": target, "val_loader": loader, "validate": lambda *_: 0.0}
    report = Finetuning(config, place, train=numbers, val=numbers, **options).prepare(model, loader)
    expected = subject_means(predict_windows(model, context.shard_set, runs, 20, 4, 1))
    for who, output in expected.items():
        np.testing.assert_allclose(found[who], output, rtol=1e-3, atol=1e-3)
    assert facts["features"] == pytest.approx(report["features"], abs=1e-3)
    assert facts["num_subjects"] == len(numbers)


def test_a_label_of_order_alone_is_lost_with_order(opened: Callable[..., Context]) -> None:
    found = {each.model.key: each for each in probe_controls(opened())}
    auroc = {key: roc_auc_score(each.predictions.y_true, each.predictions.output) for key, each in found.items()}
    assert list(auroc) == [control.key for control in CONTROLS]
    assert auroc["reprobed"] > 0.95
    assert auroc["shuffled"] < 0.75


def test_controls_are_of_the_same_subjects_as_ours(opened: Callable[..., Context]) -> None:
    context = opened()
    for each in probe_controls(context):
        assert each.model.role == "control"
        assert each.predictions.subjects == context.subjects("test")
        assert each.held_out is not None
        assert each.held_out.subjects == context.subjects("val")
        assert each.predictions.y_true.tolist() == [context.values[who] for who in each.predictions.subjects]


def test_validation_subjects_that_are_scored_choose_no_threshold(opened: Callable[..., Context]) -> None:
    context = opened(subset="val")
    for each in probe_controls(context):
        assert each.predictions.subjects == context.subjects("val")
        assert each.held_out is None


def test_labels_of_others_than_training_subjects_change_nothing(opened: Callable[..., Context], tmp_path: Path) -> None:
    context = opened()
    train = set(context.subjects("train"))
    config = dataclasses.replace(context.config, out=tmp_path / "other")
    values = {who: value if who in train else 1 - value for who, value in context.values.items()}
    turned = probe_controls(dataclasses.replace(context, config=config, values=values))
    for each, other in zip(probe_controls(context), turned, strict=True):
        assert np.array_equal(each.predictions.output, other.predictions.output)
        assert not np.array_equal(each.predictions.y_true, other.predictions.y_true)


def test_a_killed_call_goes_on_and_a_finished_one_is_read(
    opened: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = opened()
    computed: list[list[int]] = []

    def counted(context: Context, model: Any, runs: list[int], orders: list[Any]) -> Any:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(list(runs))
        return tokens_of(context, model, runs, orders)

    whole = probe_controls(dataclasses.replace(context, config=dataclasses.replace(context.config, out=tmp_path / "w")))
    monkeypatch.setattr(probes, "tokens_of", counted)
    with pytest.raises(KeyboardInterrupt):
        probe_controls(context)
    monkeypatch.setattr(probes, "tokens_of", tokens_of)
    resumed = probe_controls(context)
    assert not list((tmp_path / "out" / "controls").glob("parts-*"))
    monkeypatch.setattr(probes, "tokens_of", counted)
    for first, again, read in zip(whole, resumed, probe_controls(context), strict=True):
        assert np.array_equal(first.predictions.output, again.predictions.output)
        assert np.array_equal(first.predictions.output, read.predictions.output)


def test_untrained_weights_follow_from_the_seed_alone(opened: Callable[..., Context]) -> None:
    context, elsewhere = opened(), opened(seed=1)
    state = torch.get_rng_state()
    first, again, other = (untrained(each) for each in (context, context, elsewhere))
    assert torch.equal(state, torch.get_rng_state())
    name = "encoder.trunk.weight"
    ours: Any = context.model
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], ours.state_dict()[name])


def test_written_outputs_are_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outputs = {key: {who: rng.standard_normal(2) / 3 for who in ("b", "a")} for key in ("x", "y")}
    (tmp_path / "t.tsv").write_text(write_outputs(outputs, ("one", "two")))
    found = read_outputs(tmp_path / "t.tsv")
    assert list(found) == ["x", "y"]
    assert all(np.array_equal(found[key][who], outputs[key][who]) for key in outputs for who in outputs[key])
