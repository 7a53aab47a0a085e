"""`eval-fmri report`: what it writes, and what it refuses with which code."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from eval.cli import main
from shards.splits import Split

FAST = ["--bootstrap", "200", "--permutations", "100", "--skip", "controls", "embed", "explain"]
FAST += ["--models", "majority", "confounds", "mean_image", "fc"]
NO_COUNTS: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}


def _run(study: Any, run: Path, out: Path, *more: str) -> int:
    places = ["--checkpoint", str(run), "--shards", str(study.folder), "--out", str(out)]
    return main(["report", *places, *FAST, *more])


def _good(study: Any) -> Callable[[str], list[float]]:
    """A model that knows who is a control (the second level by name), with noise."""
    rng = np.random.default_rng(0)
    noise = {subject: rng.normal() for subject in sorted(study.truth)}
    return lambda subject: [0.0, 1.5 - 3 * study.truth[subject] + 1.5 * noise[subject]]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(values["src"] or "")
            assert values["alt"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data.strip())


@pytest.fixture
def reported(make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path) -> tuple[Any, Path]:
    study = make_study(num_subjects=60, runs=2, effect=0.6)
    out = tmp_path / "report"
    assert _run(study, make_run(study, _good(study)), out) == 0
    return study, out


def test_numbers_are_those_of_scikit_learn(reported: tuple[Any, Path]) -> None:
    study, out = reported
    record = json.loads((out / "metrics.json").read_text())
    assert [model["key"] for model in record["models"]] == ["majority", "confounds", "mean_image", "fc", "ours"]
    say = _good(study)
    test = study.split.test
    expected = roc_auc_score([1 - study.truth[s] for s in test], [say(s)[1] for s in test])
    ours = record["models"][-1]
    assert ours["scores"]["auroc"]["value"] == pytest.approx(expected)
    assert ours["scores"]["auroc"]["low"] < expected <= ours["scores"]["auroc"]["high"]
    assert ours["advantage_of_ours"] is None and ours["num_subjects"] == len(test)
    assert record["models"][0]["scores"]["auroc"]["value"] == 0.5 and record["models"][0]["p_value"] == 1.0
    fc = record["models"][3]
    difference = ours["scores"]["auroc"]["value"] - fc["scores"]["auroc"]["value"]
    assert fc["advantage_of_ours"]["value"] == pytest.approx(difference)


def test_predictions_hold_each_test_subject_once_per_model(reported: tuple[Any, Path]) -> None:
    study, out = reported
    rows = list(csv.DictReader((out / "predictions.tsv").open(), delimiter="\t"))
    ours = [row for row in rows if row["model"] == "ours"]
    assert tuple(row["subject"] for row in ours) == study.split.test
    assert len(rows) == 5 * len(study.split.test)
    say = _good(study)
    for row in ours:
        logit = say(row["subject"])[1]
        assert float(row["logit_control"]) == pytest.approx(logit, rel=1e-5)
        assert float(row["probability_control"]) == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)
        assert row["true"] == ("control", "case")[int(study.truth[row["subject"]])] and row["subset"] == "test"


def test_same_command_again_writes_the_same_numbers(reported: tuple[Any, Path], make_run: Callable[..., Path]) -> None:
    study, out = reported
    before = [(out / name).read_bytes() for name in ("metrics.json", "predictions.tsv")]
    assert _run(study, make_run(study, _good(study)), out) == 0
    assert [(out / name).read_bytes() for name in ("metrics.json", "predictions.tsv")] == before


def test_terminal_names_no_subject_and_gives_the_paths(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(num_subjects=40)
    assert _run(study, make_run(study, _good(study)), tmp_path / "r") == 0
    shown = capsys.readouterr()
    assert str(tmp_path / "r" / "report.html") in shown.out and "FC + logistic" in shown.out
    assert not re.search("sub-|case", shown.out + shown.err)


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_other_kinds_of_target(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    study = make_study(num_subjects=40, kind="regression")
    if kind == "regression":
        options = {"column": "score"}
        say = lambda subject: [100 + 20 * study.truth[subject]]  # noqa: E731
    else:
        levels = {"levels": ["leeds", "york"], "mean": None, "std": None}
        options = {"target": {"column": "site", "kind": kind} | levels}
        say = lambda subject: [float(int(subject) // 2 % 2 == 0), float(int(subject) // 2 % 2)]  # noqa: E731
    assert _run(study, make_run(study, say, **options), tmp_path / "r") == 0
    record = json.loads((tmp_path / "r" / "metrics.json").read_text())
    ours = record["models"][-1]["scores"]
    if kind == "regression":
        assert ours["mae"]["value"] < 1e-3 and record["verdict"]["tone"] == "better"
    else:
        assert ours["balanced_accuracy"]["value"] == 1.0 and "site" not in record["models"][1]["note"].split(";")[0]
    _Page((tmp_path / "r" / "report.html").read_text())


def test_a_useless_model_is_not_praised(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study(num_subjects=60)
    rng = np.random.default_rng(5)
    noise = {subject: rng.normal() for subject in sorted(study.truth)}
    assert _run(study, make_run(study, lambda subject: [noise[subject]]), tmp_path / "r") == 0
    said = json.loads((tmp_path / "r" / "metrics.json").read_text())["verdict"]
    assert said["tone"] == "worse" and said["title"].startswith("FC + logistic beats our model")


def test_test_subjects_of_one_class_are_undefined_not_a_crash(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study(num_subjects=30)
    everyone = tuple(study.truth)  # siblings follow each other, a control and a case
    split = Split(train=everyone[16:], val=everyone[12:16], test=everyone[1:12:2], rule={}, seed=0, counts=NO_COUNTS)
    assert _run(study, make_run(study, _good(study), split=split), tmp_path / "r") == 0
    record = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert record["models"][-1]["scores"]["auroc"]["value"] is None
    assert record["verdict"]["title"] == "No verdict: AUROC is undefined on these subjects"
    assert "undefined" in (tmp_path / "r" / "report.html").read_text()


def test_validation_subjects_come_with_a_warning_and_baselines_without_them(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study(num_subjects=40)
    assert _run(study, make_run(study, _good(study)), tmp_path / "r", "--subset", "val") == 0
    record = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert record["fitted_on"] == ["train"] and record["subset"] == "val"
    assert "Validation subjects chose our checkpoint" in (tmp_path / "r" / "report.html").read_text()


def _refused(capsys: pytest.CaptureFixture[str], code: int, expected: int, *words: str) -> None:
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert code == expected and len(errors) == 1, shown.err
    assert "Traceback" not in shown.err
    for word in words:
        assert word in errors[0]


def test_refusals_of_the_checkpoint(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(num_subjects=20)
    out = tmp_path / "r"
    _refused(capsys, _run(study, tmp_path / "none", out), 2, "no such folder", "train.py --phase 3")
    (tmp_path / "empty").mkdir()
    _refused(capsys, _run(study, tmp_path / "empty", out), 2, "config.json")
    run = make_run(study, _good(study), phase=2)
    _refused(capsys, _run(study, run, out), 2, "a phase-2 run", "--init")
    run = make_run(study, _good(study), set_hash="0" * 32)
    _refused(capsys, _run(study, run, out), 6, "0" * 32, study.set_hash)
    assert not out.exists()


def test_refusals_of_the_cohort(
    make_study: Callable[..., Any], make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(num_subjects=20)
    out = tmp_path / "r"
    target = {"column": "iq", "kind": "regression", "levels": [], "mean": 0.0, "std": 1.0}
    _refused(capsys, _run(study, make_run(study, _good(study), target=target), out), 2, "'iq'", "score")
    target = {"column": "group", "kind": "binary", "levels": ["control", "patient"], "mean": None, "std": None}
    _refused(capsys, _run(study, make_run(study, _good(study), target=target), out), 2, "'case'", "patient")
    train, val = tuple(study.truth)[:10], tuple(study.truth)[10:14]
    split = Split(train=train, val=val, test=("999",), rule={}, seed=0, counts=NO_COUNTS)
    _refused(capsys, _run(study, make_run(study, _good(study), split=split), out), 6, "1 of 15 subjects", "999")
    split = Split(train=train, val=val, test=(), rule={}, seed=0, counts=NO_COUNTS)
    _refused(capsys, _run(study, make_run(study, _good(study), split=split), out), 2, "none of the 0 test subjects")
    split = Split(train=train, val=val[:3], test=val[3:], rule={}, seed=0, counts=NO_COUNTS)
    _refused(capsys, _run(study, make_run(study, _good(study), split=split), out), 6, "leak", "fam6")
    missing = [str(tmp_path / "gone"), "--atlas"]
    _refused(capsys, _run(study, make_run(study, _good(study)), out, "--atlas", missing[0]), 2, "no such file")
    study_gone = type(study)(**{**vars(study), "folder": tmp_path / "gone"})
    _refused(capsys, _run(study_gone, make_run(study, _good(study)), out), 2, "no such folder")
    assert not out.exists()


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "predictions.tsv"])
def test_files_of_others_are_kept(
    make_study: Callable[..., Any],
    make_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    study = make_study(num_subjects=20)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text("mine")
    _refused(capsys, _run(study, make_run(study, _good(study)), tmp_path / "r"), 5, name, "another --out")
    assert [path.read_text() for path in (tmp_path / "r").iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    _refused(capsys, _run(study, make_run(study, _good(study)), tmp_path / "file"), 5, "a folder is needed")


@pytest.mark.parametrize(("flag", "value"), [("--bootstrap", "5"), ("--batch-size", "0"), ("--threads", "0")])
def test_numbers_out_of_range_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    code = main(["report", "--checkpoint", "a", "--shards", "b", "--out", str(tmp_path / "r"), flag, value])
    _refused(capsys, code, 2, f"{flag} {value}")


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"]])
def test_help_is_quick_and_light(arguments: list[str]) -> None:
    probe = (
        "import sys\nfrom eval.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = ('torch', 'sklearn', 'matplotlib', 'scipy', 'pandas', 'dask')\n"
        "print('heavy:', [name for name in heavy if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        began = os.times()
        shown = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
        seconds.append(sum(os.times()[2:4]) - sum(began[2:4]))
    assert shown.splitlines()[-1] == "heavy: []"
    assert "usage: eval-fmri" in shown
    assert min(seconds) < 0.5, "processor time, so that a busy machine does not matter"
