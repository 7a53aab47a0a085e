"""Several reports of one task put together: means, tests over splits, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval.config import AggregateConfig
from eval.provenance import GENERATOR
from eval.scoring.aggregate import aggregate
from eval.scoring.repeats import read_repeat, summarise
from shards.errors import MismatchError, OutputError, UsageError

Report = Callable[..., Path]
OURS, FC, CONFOUNDS = [0.80, 0.84, 0.75, 0.77, 0.90, 0.88], [0.70, 0.72, 0.71, 0.75, 0.78, 0.82], [0.5] * 6
SPLITS = ["one", "one", "two", "two", "three", "three"]


@pytest.fixture
def make_report(tmp_path: Path) -> Report:
    """Return a function that writes what `eval-fmri report` writes into metrics.json."""

    def make(name: str, split: str, scores: dict[str, float | None], metric: str = "auroc", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        roles = {"ours": "ours", "untrained": "control"}
        binary = metric == "auroc"
        record = {
            "generator": GENERATOR,
            "target": {
                "column": "sex" if binary else "age",
                "kind": "binary" if binary else "regression",
                "levels": ["F", "M"] if binary else [],
            },
            "subset": "test",
            "models": [
                {
                    "key": key,
                    "label": f"The {key}",
                    "role": roles.get(key, "baseline"),
                    "scores": {metric: {"value": value}},
                }
                for key, value in scores.items()
            ],
            "split": {
                "hash": split,
                "parts": [
                    {"name": "train", "num_subjects": 60},
                    {"name": "val", "num_subjects": 20},
                    {"name": "test", "num_subjects": 20},
                ],
            },
            "fitted_on": ["train", "val"],
            "set_hash": "abc",
            "name": name,
        }
        (folder / "metrics.json").write_text(json.dumps(record | changes))
        return folder

    return make


@pytest.fixture
def reports(make_report: Report) -> tuple[Path, ...]:
    """Three splits, two seeds of each."""
    rows = zip(SPLITS, OURS, FC, CONFOUNDS, strict=True)
    return tuple(
        make_report(f"r{k}", split, {"ours": ours, "fc": fc, "confounds": confounds})
        for k, (split, ours, fc, confounds) in enumerate(rows)
    )


def test_means_and_spreads_are_those_of_all_values(reports: tuple[Path, ...]) -> None:
    models = {model.key: model for model in summarise([read_repeat(folder) for folder in reports])}
    assert list(models) == ["fc", "confounds", "ours"], "ours last"
    score = models["ours"].scores["auroc"]
    assert score.mean == pytest.approx(np.mean(OURS)) and score.sd == pytest.approx(np.std(OURS, ddof=1))
    assert score.values == tuple(OURS)
    assert models["fc"].advantage is not None
    assert models["fc"].advantage.values == pytest.approx(np.subtract(OURS, FC))


def test_the_test_is_over_splits_not_seeds(reports: tuple[Path, ...]) -> None:
    models = {model.key: model for model in summarise([read_repeat(folder) for folder in reports])}
    by_split = np.subtract(OURS, FC).reshape(3, 2).mean(axis=1)
    error = np.sqrt((1 / 3 + 20 / 80) * by_split.var(ddof=1))
    test = models["fc"].test
    assert test is not None and test.p_value == pytest.approx(2 * stats.t.sf(by_split.mean() / error, 2))
    p_values = [models[key].test.p_value for key in ("fc", "confounds")]  # type: ignore[union-attr]
    adjusted = [models[key].adjusted_p for key in ("fc", "confounds")]
    assert min(adjusted) == pytest.approx(2 * min(p_values)) and max(adjusted) == pytest.approx(
        max(2 * min(p_values), max(p_values))
    )
    assert models["ours"].test is None and np.isnan(models["ours"].adjusted_p)


def test_splits_with_more_seeds_weigh_no_more(make_report: Report) -> None:
    values = [("one", 0.9), ("one", 0.9), ("one", 0.9), ("two", 0.5)]
    folders = [make_report(f"r{k}", split, {"ours": value}) for k, (split, value) in enumerate(values)]
    (ours,) = summarise([read_repeat(folder) for folder in folders])
    assert ours.scores["auroc"].mean == pytest.approx(0.7)


def test_a_smaller_error_is_an_advantage(make_report: Report) -> None:
    folders = [make_report(f"r{k}", f"s{k}", {"mean": 5.0 + k, "ours": 4.0 + k}, "mae") for k in range(2)]
    mean, _ = summarise([read_repeat(folder) for folder in folders])
    assert mean.advantage is not None and mean.advantage.mean == pytest.approx(1.0)


def test_seeds_of_one_split_are_told_but_not_tested(make_report: Report) -> None:
    folders = [make_report(f"r{k}", "one", {"fc": 0.6, "ours": 0.7 + k / 10}) for k in range(3)]
    fc, ours = summarise([read_repeat(folder) for folder in folders])
    assert fc.test is None and np.isnan(fc.adjusted_p)
    assert ours.scores["auroc"].sd == pytest.approx(0.1)


def test_a_model_of_some_reports_is_compared_in_those(make_report: Report) -> None:
    first = make_report("a", "one", {"fc": 0.6, "mlp": 0.5, "ours": 0.7})
    second = make_report("b", "two", {"fc": 0.6, "ours": 0.9})
    fc, mlp, _ = summarise([read_repeat(first), read_repeat(second)])
    assert (fc.num_reports, mlp.num_reports) == (2, 1)
    assert mlp.advantage is not None and mlp.advantage.mean == pytest.approx(0.2) and mlp.test is None


def test_an_undefined_value_is_not_averaged_away(make_report: Report) -> None:
    folders = [make_report(name, name, {"fc": 0.6, "ours": value}) for name, value in (("a", None), ("b", 0.9))]
    fc, ours = summarise([read_repeat(folder) for folder in folders])
    assert np.isnan(ours.scores["auroc"].mean) and fc.test is not None and np.isnan(fc.test.p_value)


def test_the_page_and_the_record_hold_every_value(reports: tuple[Path, ...], tmp_path: Path) -> None:
    page, record = aggregate(AggregateConfig(reports=reports, out=tmp_path / "out"))
    told = json.loads(record.read_text())
    assert [model["key"] for model in told["models"]] == ["fc", "confounds", "ours"]
    assert told["models"][2]["scores"]["auroc"]["values"] == OURS
    assert told["models"][2]["scores"]["brier"]["mean"] is None, "not in these reports"
    text = page.read_text()
    assert "6 reports on 3 splits" in text and "http" not in text
    assert all(f"{value:.3f}" in text for value in OURS + FC)
    assert aggregate(AggregateConfig(reports=reports, out=tmp_path / "out"))[1].read_text() == record.read_text()


def test_reports_of_other_tasks_are_refused(make_report: Report, tmp_path: Path) -> None:
    scores = {"fc": 0.6, "ours": 0.7}
    first = make_report("a", "one", scores)
    others = {
        "shard set": make_report("b", "two", scores, set_hash="other"),
        "target": make_report("c", "two", scores, "mae"),
    }
    for what, folder in others.items():
        with pytest.raises(MismatchError, match=rf"{folder}: its {what} is .*{first} is"):
            aggregate(AggregateConfig(reports=(first, folder), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_reports_that_are_none_or_the_same_are_refused(make_report: Report, tmp_path: Path) -> None:
    report, empty = make_report("a", "one", {"ours": 0.7}), tmp_path / "empty"
    empty.mkdir()
    alien = make_report("alien", "one", {}, generator="someone")
    old = make_report("old", "one", {}, target={"column": "sex"})
    for given, message in (
        ((report,), "at least 2"),
        ((report, report), "the same report"),
        ((report, empty), "cannot be read"),
        ((report, alien), "was not written by"),
        ((report, old), "not a report of this version .*'kind'"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            aggregate(AggregateConfig(reports=given, out=tmp_path / "out"))
        assert "\n" not in str(caught.value)


def test_files_of_others_are_kept(reports: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "aggregate.html").write_text("mine")
    with pytest.raises(OutputError, match=r"aggregate\.html was not written"):
        aggregate(AggregateConfig(reports=reports, out=tmp_path / "out"))
    assert (tmp_path / "out" / "aggregate.html").read_text() == "mine"
