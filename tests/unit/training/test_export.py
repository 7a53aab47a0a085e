"""Weights that travel: written and read back, taken over by the next phase, applied to windows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.errors import BoldstreamError, CorruptShardError, FormatVersionError, MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import make_split, save_split
from training.checkpoints.export import CONFIG, MODEL, SPLIT, TARGET, WEIGHTS, load_model, save_model
from training.checkpoints.transfer import open_init, transfer
from training.config import TrainConfig
from training.inputs import open_inputs
from training.networks.model import BoldModel
from training.predict import predict_windows, subject_means
from training.presets import Architecture

SIZE = Architecture(latent=6, channels=(8, 8), blocks=1, width=16, depth=1, heads=2, dropout=0.2)
SUBJECTS = tuple(f"{k:02d}" for k in range(12))
FRAMES = (37, 15, 83, 20, 64, 41, 20, 9, 20, 50, 20, 20)
ARCHITECTURE = ["latent", "channels", "blocks", "width", "depth", "heads", "dropout"]
MakeRun = Callable[..., Path]


@pytest.fixture
def shards(tmp_path: Path, make_shard_set) -> Path:
    table = "participant_id\tgroup\n" + "".join(f"sub-{who}\t{'ab'[k % 2]}\n" for k, who in enumerate(SUBJECTS))
    make_shard_set(tmp_path / "shards", frames=FRAMES, runs_per_shard=4, participants=table)
    return tmp_path / "shards"


def some_model(
    mask: np.ndarray, phase: int, *, size: Architecture = SIZE, seed: int = 0, outputs: int = 3
) -> BoldModel:
    """A model whose every parameter is away from its starting value."""
    torch.manual_seed(seed)
    model = BoldModel(size=size, mask_XYZ=mask, phase=phase, num_outputs=outputs if phase == 3 else 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def make_run(tmp_path: Path, shards: Path) -> MakeRun:
    """Return a function that writes a finished run of a model."""

    def make(model: BoldModel, name: str = "run", seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        split = make_split(SUBJECTS, fractions=(0.5, 0.25, 0.25), seed=seed)
        with ShardSet(shards) as shard_set:
            facts = {"mask_hash": shard_set.manifest.mask_hash, "split_hash": split.hash, "step": 7}
        save_split(folder / SPLIT, split)
        (folder / CONFIG).write_text(json.dumps({"phase": model.phase, "window": "10"}))
        target = {"column": "group", "kind": "multiclass", "levels": ["a", "b", "c"], "mean": None, "std": None}
        if model.phase == 3:
            (folder / TARGET).write_text(json.dumps(target))
        save_model(folder, model, model.state_dict(), facts)
        return folder

    return make


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_model_comes_back_as_it_was(make_run: MakeRun, mask: np.ndarray, phase: int) -> None:
    model = some_model(mask, phase)
    loaded = load_model(make_run(model))
    assert not loaded.model.training
    assert loaded.model.phase == phase and loaded.model.size == SIZE
    state, expected = loaded.model.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert loaded.split.train == make_split(SUBJECTS, fractions=(0.5, 0.25, 0.25), seed=0).train
    assert (loaded.target is None) == (phase != 3)


def test_a_model_that_comes_back_computes_the_same(make_run: MakeRun, mask: np.ndarray, shards: Path) -> None:
    model = some_model(mask, 3)
    loaded = load_model(make_run(model))
    with ShardSet(shards) as shard_set:
        before = predict_windows(model, shard_set, [0, 1], 10, 4, 1)
        after = predict_windows(loaded.model, shard_set, [0, 1], 10, 4, 1)
    np.testing.assert_array_equal([row["output"] for row in before], [row["output"] for row in after])


def test_equal_weights_are_equal_bytes(make_run: MakeRun, mask: np.ndarray) -> None:
    first, second = (make_run(some_model(mask, 2), name) for name in ("one", "two"))
    assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    assert (first / MODEL).read_text() == (second / MODEL).read_text()


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_byte_of_the_weights_is_refused(make_run: MakeRun, mask: np.ndarray, place: int) -> None:
    folder = make_run(some_model(mask, 1))
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[place] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(CorruptShardError, match=WEIGHTS):
        load_model(folder)


def test_an_edited_split_is_refused(make_run: MakeRun, mask: np.ndarray) -> None:
    folder = make_run(some_model(mask, 1))
    values = json.loads((folder / SPLIT).read_text())
    edit(folder / SPLIT, train=[*values["train"], values["test"][0]], test=values["test"][1:])
    with pytest.raises(MismatchError, match="edited"):
        load_model(folder)


def test_the_split_of_another_run_is_refused(make_run: MakeRun, mask: np.ndarray) -> None:
    folder = make_run(some_model(mask, 1))
    save_split(folder / SPLIT, make_split(SUBJECTS, seed=5))
    with pytest.raises(MismatchError, match=SPLIT):
        load_model(folder)


@pytest.mark.parametrize("changes", [{"version": 2}, {"version": None}, {"format": "pickle"}])
def test_an_unknown_version_is_refused(make_run: MakeRun, mask: np.ndarray, changes: dict[str, Any]) -> None:
    folder = make_run(some_model(mask, 1))
    edit(folder / MODEL, **changes)
    with pytest.raises(FormatVersionError, match="update boldstream"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (MODEL, UsageError),
        (WEIGHTS, UsageError),
        (SPLIT, UsageError),
        (CONFIG, CorruptShardError),
        (TARGET, CorruptShardError),
    ],
)
def test_a_missing_file_is_named(make_run: MakeRun, mask: np.ndarray, name: str, error: type[BoldstreamError]) -> None:
    folder = make_run(some_model(mask, 3))
    (folder / name).unlink()
    with pytest.raises(error, match=name):
        load_model(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent"):
        load_model(tmp_path / "absent")


# Transfer


@pytest.mark.parametrize(
    ("source", "phase", "fresh", "left"),
    [
        (1, 2, {"sequence"}, set()),
        (1, 3, {"sequence", "pool", "head"}, {"decoder"}),
        (2, 3, {"pool", "head"}, {"decoder"}),
    ],
)
def test_transfer_takes_what_both_have_and_says_so(
    make_run: MakeRun,
    mask: np.ndarray,
    shards: Path,
    caplog: pytest.LogCaptureFixture,
    source: int,
    phase: int,
    fresh: set[str],
    left: set[str],
) -> None:
    before = some_model(mask, source)
    model = some_model(mask, phase, seed=1)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ShardSet(shards) as shard_set, caplog.at_level(logging.INFO, logger="training.checkpoints.transfer"):
        report = transfer(model, open_init(make_run(before), phase, shard_set))
    for name, tensor in model.state_dict().items():
        expected = before.state_dict() if name in before.state_dict() else start
        assert torch.equal(tensor, expected[name]), name
    assert report["fresh"].keys() - {"output_scale", "output_shift", "window_scale"} == fresh
    assert report["left"].keys() == left
    assert report["taken"].keys() == {name.split(".")[0] for name in before.state_dict()} - left
    assert report["taken"]["encoder"] == sum(p.numel() for p in before.encoder.parameters())
    for kind in ("taken", "fresh", "left"):
        line = next(line for line in caplog.messages if f", {kind}:" in line)
        assert all(part in line for part in report[kind]) and (report[kind] or "nothing" in line)


def test_another_size_is_refused(make_run: MakeRun, mask: np.ndarray, shards: Path) -> None:
    folder = make_run(some_model(mask, 1))
    wider = Architecture(**{name: getattr(SIZE, name) for name in ARCHITECTURE} | {"latent": 8})
    with ShardSet(shards) as shard_set, pytest.raises(MismatchError, match="size flags"):
        transfer(some_model(mask, 2, size=wider), open_init(folder, 2, shard_set))


@pytest.mark.parametrize(("source", "phase"), [(2, 2), (3, 2), (3, 3)])
def test_a_phase_that_does_not_come_before_is_refused(
    make_run: MakeRun, mask: np.ndarray, shards: Path, source: int, phase: int
) -> None:
    folder = make_run(some_model(mask, source))
    with ShardSet(shards) as shard_set, pytest.raises(UsageError, match=f"phase-{source} run"):
        open_init(folder, phase, shard_set)


def test_another_mask_is_refused(
    make_run: MakeRun, mask: np.ndarray, shards: Path, tmp_path: Path, make_shard_set
) -> None:
    other = mask.copy()
    other[tuple(np.argwhere(mask)[0])] = False
    make_shard_set(tmp_path / "other", frames=FRAMES, mask=other)
    folder = make_run(some_model(mask, 1))
    with ShardSet(tmp_path / "other") as shard_set, pytest.raises(MismatchError, match="mask"):
        open_init(folder, 2, shard_set)


def test_an_init_whose_split_was_changed_is_refused(make_run: MakeRun, mask: np.ndarray, shards: Path) -> None:
    folder = make_run(some_model(mask, 1))
    save_split(folder / SPLIT, make_split(SUBJECTS, seed=5))
    with ShardSet(shards) as shard_set, pytest.raises(MismatchError, match="test subjects may have been seen"):
        open_init(folder, 2, shard_set)


def test_another_cohort_is_refused(make_run: MakeRun, mask: np.ndarray, tmp_path: Path, make_shard_set) -> None:
    rng = np.random.default_rng(0)
    signals = {f"sub-x{k}_task-rest": rng.standard_normal((30, int(mask.sum()))).astype("f4") for k in range(4)}
    make_shard_set(tmp_path / "strangers", signals=signals)
    folder = make_run(some_model(mask, 1))
    with ShardSet(tmp_path / "strangers") as shard_set, pytest.raises(MismatchError, match="train subjects"):
        open_init(folder, 2, shard_set)


def asked(shards: Path, init: Path, **flags: Any) -> TrainConfig:
    values: dict[str, Any] = {"phase": 2, "shards": (str(shards),), "out": shards.parent / "out", "init": str(init)}
    return TrainConfig(**(values | flags))


def test_the_next_phase_inherits_the_split(make_run: MakeRun, mask: np.ndarray, shards: Path) -> None:
    folder = make_run(some_model(mask, 1), seed=3)
    inputs = open_inputs(asked(shards, folder))
    assert inputs.split == make_split(SUBJECTS, fractions=(0.5, 0.25, 0.25), seed=3)
    for part, runs in (("train", inputs.train_runs), ("val", inputs.val_runs)):
        assert {inputs.shard_set.runs[run].subject for run in runs} == set(inputs.split.subjects(part))
    inputs.shard_set.close()


def test_another_split_than_that_of_the_init_is_refused(
    make_run: MakeRun, mask: np.ndarray, shards: Path, tmp_path: Path
) -> None:
    folder = make_run(some_model(mask, 1))
    save_split(tmp_path / "other.json", make_split(SUBJECTS, seed=5))
    with pytest.raises(MismatchError, match="leave --split out"):
        open_inputs(asked(shards, folder, split=tmp_path / "other.json"))
    with pytest.raises(UsageError, match="--split_seed"):
        open_inputs(asked(shards, folder, split_seed=1))
    open_inputs(asked(shards, folder, split=folder / SPLIT)).shard_set.close()


# Prediction


def predicted(model: BoldModel, shards: Path, runs: list[int], **options: Any) -> list[dict[str, Any]]:
    with ShardSet(shards) as shard_set:
        return predict_windows(model, shard_set, runs, **({"window": 20, "batch_size": 4, "threads": 2} | options))


@pytest.mark.parametrize("window", [20, "24s", 100])
def test_every_frame_is_covered_exactly_once(mask: np.ndarray, shards: Path, window: int | str) -> None:
    runs = [0, 2, 3, 7, 11]
    seen = {run: np.zeros(FRAMES[run], int) for run in runs}
    for row in predicted(some_model(mask, 3), shards, runs, window=window):
        seen[row["run"]][row["start"] : row["start"] + row["num_frames"]] += 1
        assert row["subject"] == SUBJECTS[row["run"]]
        assert row["output"].shape == (3,) and np.isfinite(row["output"]).all()
    assert all((count == 1).all() for count in seen.values())


def test_outputs_do_not_depend_on_batch_size_and_threads(mask: np.ndarray, shards: Path) -> None:
    model = some_model(mask, 3)
    reference = predicted(model, shards, [0, 2, 5], batch_size=1, threads=1)
    assert len({tuple(row["output"]) for row in reference}) == len(reference)
    for batch_size, threads in ((1, 3), (4, 1), (5, 4), (64, 2)):
        rows = predicted(model, shards, [0, 2, 5], batch_size=batch_size, threads=threads)
        assert [(row["run"], row["start"]) for row in rows] == [(row["run"], row["start"]) for row in reference]
        np.testing.assert_allclose(
            [row["output"] for row in rows], [row["output"] for row in reference], rtol=1e-5, atol=1e-6
        )


def test_dropout_is_off(mask: np.ndarray, shards: Path) -> None:
    model = some_model(mask, 3).train()
    first, second = (predicted(model, shards, [2]) for _ in range(2))
    np.testing.assert_array_equal([row["output"] for row in first], [row["output"] for row in second])


def test_a_shard_set_on_another_mask_is_refused(mask: np.ndarray, tmp_path: Path, make_shard_set) -> None:
    moved = np.roll(mask, 1, axis=0)
    make_shard_set(tmp_path / "moved", mask=moved)
    with pytest.raises(MismatchError, match="mask"):
        predicted(some_model(mask, 3), tmp_path / "moved", [0])


def test_a_subject_is_the_mean_over_its_frames() -> None:
    rows = [
        {"run": 1, "subject": "b", "start": 0, "num_frames": 5, "output": np.array([4.0, 0.0])},
        {"run": 0, "subject": "a", "start": 0, "num_frames": 30, "output": np.array([1.0, 2.0])},
        {"run": 2, "subject": "a", "start": 0, "num_frames": 10, "output": np.array([5.0, -2.0])},
    ]
    means = subject_means(rows)
    assert list(means) == ["a", "b"]
    np.testing.assert_allclose(means["a"], [2.0, 1.0])
    np.testing.assert_allclose(means["b"], [4.0, 0.0])
