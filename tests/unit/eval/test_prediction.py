"""Our model's predictions: right, whole, resumable, and those of other runs beside them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished_run import write_run

from eval.config import PredictConfig
from eval.context import Context, open_context
from eval.prediction import windows as stage_of_windows
from eval.prediction.predict import predict_ours, predict_run, predict_runs, run_names
from eval.prediction.windows import RUNS_PER_PART, run_parts
from eval.ranks import Ranks
from shards.errors import BoldstreamError, MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import Split, make_split
from training import predict as training_predict

SUBJECTS = [f"{k:02d}" for k in range(20)]
FRAMES = (45, 20, 31)


@pytest.fixture
def shards(make_shard_set: Callable[..., Any], tmp_path: Path) -> Path:
    """Twenty subjects with a run of 45, 20 or 31 frames, every fifth with a second one."""
    rng = np.random.default_rng(3)
    names = [f"sub-{s}_task-rest" for s in SUBJECTS] + [f"sub-{s}_task-rest_run-2" for s in SUBJECTS[::5]]
    num_voxels = int((np.random.default_rng(11).random((7, 8, 6)) > 0.4).sum())
    signals = {
        name: (1000 + 20 * rng.standard_normal((FRAMES[k % 3], num_voxels))).astype("f4")
        for k, name in enumerate(names)
    }
    lines = [f"sub-{s}\t{'ab'[k % 2]}\t{'xyz'[k % 3]}\t{20 + k}.5" for k, s in enumerate(SUBJECTS)]
    lines[3] = f"sub-{SUBJECTS[3]}\tn/a\tn/a\tn/a"
    table = "participant_id\tgroup\tkind\tage\n" + "\n".join(lines) + "\n"
    make_shard_set(tmp_path / "set", signals=signals, participants=table, runs_per_shard=8)
    return tmp_path / "set"


@pytest.fixture
def split() -> Split:
    return make_split(SUBJECTS, fractions=(0.5, 0.2, 0.3), seed=0)


@pytest.fixture
def opened(shards: Path, split: Split, tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """Return a function that opens a run (written now unless given) with the flags given."""
    contexts = []

    def make(run: Path | None = None, **flags: Any) -> Context:
        run = run or write_run(tmp_path / f"run{len(contexts)}", shards, split)
        config = PredictConfig(checkpoint=run, shards=str(shards), **({"out": tmp_path / "out"} | flags))
        contexts.append(open_context(config, Ranks()))
        return contexts[-1].__enter__()

    yield make
    for context in contexts:
        context.__exit__(None, None, None)


def means_by_pandas(context: Context) -> pd.DataFrame:
    """Frame-weighted means of the windows of all runs, one window at a time: a row a subject."""
    everything = range(len(context.shard_set.runs))
    rows = training_predict.predict_windows(context.model, context.shard_set, everything, context.window, 1, 1)
    table = pd.DataFrame(
        [{"subject": r["subject"], "n": r["num_frames"], **dict(enumerate(r["output"]))} for r in rows]
    )
    outputs = [name for name in table if isinstance(name, int)]
    weighted = table[outputs].mul(table["n"], axis=0).groupby(table["subject"]).sum()
    return weighted.div(table.groupby("subject")["n"].sum(), axis=0)


@pytest.mark.parametrize(("column", "num_outputs"), [("group", 1), ("kind", 3), ("age", 1)])
def test_subjects_are_frame_weighted_means_of_their_windows(
    opened: Callable[..., Context], shards: Path, split: Split, tmp_path: Path, column: str, num_outputs: int
) -> None:
    context = opened(write_run(tmp_path / "run", shards, split, column=column))
    expected = means_by_pandas(context)
    found = predict_ours(context)
    assert found.held_out is not None
    for part, rows in (("test", found.predictions), ("val", found.held_out)):
        assert rows.subjects == tuple(s for s in split.subjects(part) if s in context.values)
        assert rows.output.shape == (len(rows.subjects), num_outputs)
        np.testing.assert_allclose(rows.output, expected.loc[list(rows.subjects)], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rows.y_true, [context.values[s] for s in rows.subjects])
    assert np.ptp(found.predictions.output[:, 0]) > 1e-3, "the model tells subjects apart"


def test_the_files_say_the_same(opened: Callable[..., Context], tmp_path: Path) -> None:
    context = opened()
    found = predict_ours(context)
    table = pd.read_csv(tmp_path / "out/predictions/predictions.tsv", sep="\t", dtype={"subject": str})
    test = table[table["part"] == "test"]
    assert tuple(test["subject"]) == found.predictions.subjects
    np.testing.assert_allclose(test["logit_b"], found.predictions.output[:, 0], rtol=1e-8)
    np.testing.assert_allclose(test["probability_b"], 1 / (1 + np.exp(-test["logit_b"])), rtol=1e-7)
    levels = dict(zip(table["subject"], table["y_true"], strict=True))
    assert levels == {subject: "ab"[int(context.values[subject])] for subject in table["subject"]}
    with np.load(tmp_path / "out/predictions/windows.npz") as windows:
        frames = pd.Series(windows["num_frames"]).groupby(windows["run"]).sum()
    assert all(context.shard_set.runs[run].num_frames == count for run, count in frames.items())
    assert table["frames"].sum() == frames.sum()


def test_scoring_validation_subjects_leaves_the_test_subjects_alone(
    opened: Callable[..., Context], split: Split, tmp_path: Path
) -> None:
    context = opened(subset="val")
    found = predict_ours(context)
    assert found.held_out is None and set(found.predictions.subjects) <= set(split.val)
    with np.load(tmp_path / "out/predictions/windows.npz") as windows:
        seen = {context.shard_set.runs[run].subject for run in windows["run"]}
    assert seen == set(found.predictions.subjects)


def test_what_is_done_is_read(opened: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    context = opened()
    first = predict_ours(context)
    monkeypatch.setattr(training_predict, "predict_windows", lambda *_: pytest.fail("predicted again"))
    again = predict_ours(context)
    np.testing.assert_array_equal(again.predictions.output, first.predictions.output)
    np.testing.assert_array_equal(again.held_out.output, first.held_out.output)
    assert again.model == first.model


def test_an_interrupted_stage_goes_on_and_ends_in_the_same_bytes(
    opened: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = opened()
    predict_ours(context)
    whole = (tmp_path / "out/predictions/windows.npz").read_bytes()
    calls: list[tuple[int, ...]] = []
    real = training_predict.predict_windows

    def interrupted(model: Any, shard_set: ShardSet, runs: Any, *rest: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(tuple(runs))
        return real(model, shard_set, runs, *rest)

    fresh = opened(context.config.checkpoint, out=tmp_path / "again")
    monkeypatch.setattr(training_predict, "predict_windows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_ours(fresh)
    assert not (tmp_path / "again/predictions/stage.json").exists()
    before = calls.copy()
    calls[:] = [(), (), (), ()]
    predict_ours(fresh)
    assert not set(before) & set(calls), "no part was predicted twice"
    assert (tmp_path / "again/predictions/windows.npz").read_bytes() == whole
    assert not list((tmp_path / "again/predictions").glob("parts-*"))


def test_batches_and_parts_change_rounding_only(
    opened: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context = opened()
    one = predict_ours(context)
    monkeypatch.setattr(stage_of_windows, "LEAST_PARTS", 2)
    other = predict_ours(opened(context.config.checkpoint, out=tmp_path / "again", batch_size=3))
    np.testing.assert_allclose(other.predictions.output, one.predictions.output, rtol=1e-5, atol=1e-6)


def test_a_corrected_phenotype_is_taken_up(opened: Callable[..., Context], tmp_path: Path) -> None:
    context = opened()
    first = predict_ours(context)
    flipped = {subject: 1.0 - value for subject, value in context.values.items()}
    again = predict_ours(dataclasses.replace(context, values=flipped))
    np.testing.assert_array_equal(again.predictions.y_true, 1.0 - first.predictions.y_true)
    table = pd.read_csv(tmp_path / "out/predictions/predictions.tsv", sep="\t", dtype={"subject": str})
    told = dict(zip(table["subject"], table["y_true"], strict=True))
    assert told == {subject: "ab"[int(flipped[subject])] for subject in told}


def test_a_model_with_the_intensity_channel_gets_it(
    opened: Callable[..., Context], shards: Path, split: Split, tmp_path: Path
) -> None:
    found = predict_ours(opened(write_run(tmp_path / "run", shards, split, intensity=True)))
    assert np.isfinite(found.predictions.output).all()


def test_a_diverged_model_is_named_in_a_line(opened: Callable[..., Context]) -> None:
    context = opened()
    context.model.head.bias.data.fill_(float("nan"))
    with pytest.raises(UsageError, match=r"^the model's output is not finite .* lower --lr$"):
        predict_ours(context)


@pytest.mark.parametrize("num_runs", [1, 5, 16, 17, 200, 1024, 5000])
def test_parts_cover_every_run_once(num_runs: int) -> None:
    parts = run_parts(range(num_runs))
    assert [run for part in parts.values() for run in part] == list(range(num_runs))
    sizes = [len(part) for part in parts.values()]
    assert max(sizes) <= RUNS_PER_PART
    assert len(sizes) >= min(num_runs, 9), "several ranks have something to do"


def test_another_run_is_a_control_with_its_own_window(
    opened: Callable[..., Context], shards: Path, split: Split, tmp_path: Path
) -> None:
    context = opened()
    ours = predict_ours(context)
    other = write_run(tmp_path / "seed1" / "p3", shards, split, seed=1, window="10")
    found = predict_run(context, other)
    assert (found.model.key, found.model.role) == ("run_p3", "control")
    assert "windows of 10 frames" in found.model.sees and "seed 1" in found.model.note
    assert found.predictions.subjects == ours.predictions.subjects
    alone = predict_ours(opened(other, out=tmp_path / "alone"))
    np.testing.assert_array_equal(found.predictions.output, alone.predictions.output)
    np.testing.assert_array_equal(found.held_out.output, alone.held_out.output)


def test_another_run_that_was_trained_again_is_predicted_again(
    opened: Callable[..., Context], shards: Path, split: Split, tmp_path: Path
) -> None:
    context, other = opened(), tmp_path / "other"
    before = predict_run(context, write_run(other, shards, split, seed=1))
    shutil.rmtree(other)
    after = predict_run(context, write_run(other, shards, split, seed=2))
    assert not np.allclose(before.predictions.output, after.predictions.output)


def test_runs_of_the_same_name_get_different_ones(
    opened: Callable[..., Context], shards: Path, split: Split, tmp_path: Path
) -> None:
    others = [write_run(tmp_path / seed / "p-3", shards, split, seed=k) for k, seed in enumerate(("a", "b"), 1)]
    assert [found.model.key for found in predict_runs(opened(), others)] == ["run_a_p_3", "run_b_p_3"]
    assert run_names([]) == {}
    with pytest.raises(UsageError, match="stands twice"):
        run_names([others[0], others[1], others[0] / ".." / "p-3"])


def _other_split(folder: Path, shards: Path, split: Split) -> Path:
    return write_run(folder, shards, make_split(SUBJECTS, fractions=(0.5, 0.2, 0.3), seed=1))


def _other_target(folder: Path, shards: Path, split: Split) -> Path:
    return write_run(folder, shards, split, column="age")


def _leaky(folder: Path, shards: Path, split: Split) -> Path:
    first = write_run(folder.with_name("p1"), shards, make_split(SUBJECTS, fractions=(0.5, 0.2, 0.3), seed=1), phase=1)
    return write_run(folder, shards, split, init=first)


def _edited_split(folder: Path, shards: Path, split: Split) -> Path:
    run = write_run(folder, shards, split)
    (run / "split.json").write_text(make_split(SUBJECTS, fractions=(0.5, 0.2, 0.3), seed=1).to_json())
    return run


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_other_split, "the split of its model.json is"),
        (_edited_split, "the split of its split.json is"),
        (_other_target, r"predicts age \(regression\), .* predicts group \(binary: a, b\)"),
        (_leaky, "was pre-trained with . of 6 test subjects"),
    ],
)
def test_a_run_of_another_question_is_refused_in_a_line(
    opened: Callable[..., Context],
    shards: Path,
    split: Split,
    tmp_path: Path,
    make: Callable[[Path, Path, Split], Path],
    said: str,
) -> None:
    other = make(tmp_path / "other", shards, split)
    with pytest.raises(MismatchError, match=said) as refused:
        predict_run(opened(), other)
    assert "\n" not in str(refused.value) and str(refused.value).startswith(f"--compare {other}: ")


def test_what_is_no_other_run_is_refused(opened: Callable[..., Context], tmp_path: Path) -> None:
    context = opened()
    with pytest.raises(UsageError, match="is the run that is evaluated"):
        predict_run(context, context.config.checkpoint)
    with pytest.raises(BoldstreamError, match=r"^--compare .*no such folder"):
        predict_run(context, tmp_path / "nowhere")


def test_the_record_says_what_was_predicted(opened: Callable[..., Context], tmp_path: Path) -> None:
    context = opened()
    predict_ours(context)
    record = json.loads((tmp_path / "out/predictions/stage.json").read_text())
    assert record["inputs"]["weights"] == context.weights_hash
    assert record["facts"]["subjects"].keys() == {"test", "val"}
    assert record["facts"]["frames"] == sum(
        context.cohort.num_frames(s) for part in ("test", "val") for s in context.subjects(part)
    )
