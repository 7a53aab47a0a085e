"""The page of the report, from made-up evaluations: what it says and shows, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve

from eval.config import ReportConfig
from eval.evaluation import Evaluation, SplitPart
from eval.guards import Check
from eval.page.canvas import Drawing, drawn
from eval.page.curves import read_curve, training_section
from eval.page.forest import MARGIN, forest, scale
from eval.page.record import metrics_json
from eval.page.reliability import bins
from eval.page.report import report_html, write_report
from eval.page.section import Section, Table
from eval.page.verdict import Verdict, verdict
from eval.scoring.assessment import assess
from eval.scoring.bootstrap import Estimate
from eval.scoring.metrics import headline
from eval.subjects import OURS, Model, Role, Scored, predictions
from eval.targets import Target
from shards.splits import Split

TARGETS = {
    "binary": Target(column="group", kind="binary", levels=("control", "case"), mean=np.nan, std=np.nan),
    "multiclass": Target(column="state", kind="multiclass", levels=("rest", "n-back", "film"), mean=np.nan, std=np.nan),
    "regression": Target(column="age", kind="regression", levels=(), mean=45.0, std=12.0),
}


def _outputs(target: Target, truth: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Outputs that know the truth as well as `strength` says."""
    if target.kind == "regression":
        return (45 + strength * (truth - 45) + 6 * rng.standard_normal(truth.size))[:, None]
    if target.kind == "binary":
        return (strength * (2 * truth - 1) + rng.standard_normal(truth.size))[:, None]
    return 2 * strength * np.eye(len(target.levels))[truth.astype(int)] + rng.standard_normal((truth.size, 3))


def made_up(
    out: Path,
    kind: str = "binary",
    *,
    ours: float = 1.0,
    baselines: Mapping[str, float] | None = None,
    controls: Mapping[str, float] | None = None,
    num_subjects: int = 60,
    truth: Sequence[float] | None = None,
    seed: int = 0,
    **more: Any,
) -> Evaluation:
    """An evaluation whose models know the target as well as their numbers say."""
    target, rng = TARGETS[kind], np.random.default_rng(seed)
    levels = max(1, len(target.levels))
    values = 45 + 12 * rng.standard_normal(num_subjects) if kind == "regression" else np.arange(num_subjects) % levels
    y_true = np.asarray(values if truth is None else truth, dtype=float)
    subjects = tuple(f"{index:03d}" for index in range(y_true.size))
    baselines = {"majority": 0.0, "fc": 0.6} if baselines is None else baselines

    def scored(key: str, role: Role, strength: float) -> Scored:
        said = _outputs(target, y_true, strength, rng)
        label = "Our model" if role == "ours" else key.replace("_", " ").capitalize()
        return Scored(
            model=Model(key=key, label=label, role=role, sees=f"{key} things", note="penalty 0.1"),
            predictions=predictions(
                key, "test", dict(zip(subjects, said, strict=True)), dict(zip(subjects, y_true, strict=True))
            ),
            held_out=None,
        )

    models = [
        *(scored(key, "baseline", strength) for key, strength in baselines.items()),
        *(scored(key, "control", strength) for key, strength in (controls or {}).items()),
        scored(OURS, "ours", ours),
    ]
    assessment = assess(models, target, families=None, num_resamples=300, num_permutations=200, seed=0)
    return Evaluation(**(_setting(out, target, y_true, subjects) | {"assessment": assessment} | more))


def _setting(out: Path, target: Target, y_true: np.ndarray, subjects: tuple[str, ...]) -> dict[str, Any]:
    """Everything of an evaluation but its assessment."""
    classes = {level: int(np.sum(y_true == number)) for number, level in enumerate(target.levels)}
    part = SplitPart(
        name="train",
        num_subjects=y_true.size,
        num_without_target=0,
        by_class=classes,
        by_site={"leeds": y_true.size},
        num_families=None,
    )
    return {
        "config": ReportConfig(
            checkpoint=out / "p3", shards=str(out / "set"), out=out, bootstrap=300, permutations=200
        ),
        "target": target,
        "split": Split(train=("a",), val=("b",), test=subjects, rule={"group": "family"}, seed=3, counts={}),
        "parts": tuple(replace(part, name=name) for name in ("train", "val", "test")),
        "fitted_on": ("train", "val"),
        "set_hash": "5e7" * 10,
        "set_name": "cohort",
        "run_config": {"phase": 3, "window": "20", "preset": "tiny", "init": None},
        "num_runs": y_true.size,
        "num_frames": 100 * y_true.size,
        "columns": {"site": "site"},
        "seconds": 1.0,
    }


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of the scores out: they take most of the time and not every test is about them."""
    monkeypatch.setattr("eval.page.report.draw_all", lambda assessment, target: [])


class _Page(HTMLParser):
    """What a browser would fetch, jump to, and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.jumps: list[str] = []
        self.anchors: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.sources += [values["src"] or ""] if "src" in values else []
        self.jumps += [values["href"] or ""] if "href" in values else []
        self.anchors += [values["id"] or ""] if "id" in values else []
        if tag == "img":
            assert values["alt"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data.strip())
        if any(tag in ("td", "th") for tag in self.open) and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def _said(tmp_path: Path, **strengths: Any) -> Verdict:
    return verdict(made_up(tmp_path, **strengths))


def test_verdict_is_about_every_baseline(tmp_path: Path) -> None:
    said = _said(tmp_path, ours=2.0, baselines={"majority": 0.0, "fc": 0.2, "lstm": 0.3})
    assert said.title == "Our model beats every baseline" and said.tone == "better"
    assert "It is ahead of every other baseline" in said.paragraphs[1]


def test_strongest_baseline_is_named_not_connectivity(tmp_path: Path) -> None:
    said = _said(tmp_path, ours=1.0, baselines={"fc": 0.1, "lstm": 1.1})
    assert said.title == "No difference to the strongest baseline, Lstm, is shown" and said.tone == "open"
    assert "the strongest of 2 baselines, Lstm, reaches" in said.paragraphs[0]


def test_several_baselines_that_beat_ours_are_counted_strongest_first(tmp_path: Path) -> None:
    said = _said(tmp_path, ours=0.3, baselines={"fc": 1.2, "majority": 0.0, "lstm": 2.5}, num_subjects=120)
    assert said.title == "Lstm and 1 other baseline beat our model" and said.tone == "worse"
    assert "It is also behind Fc. It is ahead of Majority." in said.paragraphs[1]


def test_a_baseline_that_leads_only_before_correction_does_not_beat_ours(tmp_path: Path) -> None:
    made = made_up(tmp_path, ours=1.0, baselines={"fc": 1.0})
    behind = Estimate(value=-0.1, low=-0.2, high=-0.001, num_undefined=0)

    def with_p(adjusted: float) -> str:
        baseline, ours = made.assessment.rows
        rows = (replace(baseline, advantage=behind, advantage_p=0.03, adjusted_p=adjusted), ours)
        return verdict(replace(made, assessment=replace(made.assessment, rows=rows))).tone

    assert (with_p(0.04), with_p(0.06)) == ("worse", "open")


def test_a_model_at_chance_is_told_so(tmp_path: Path) -> None:
    said = _said(tmp_path, ours=0.0, baselines={"majority": 0.0, "fc": 0.0}, seed=3)
    assert said.title == "Our model is not shown to be better than chance" and said.tone == "open"


def test_a_baseline_left_open_below_a_beaten_strongest_one_is_named(tmp_path: Path) -> None:
    made = made_up(tmp_path, ours=2.0, baselines={"fc": 0.8, "lstm": 0.3})
    strong, weak, ours = made.assessment.rows
    wide = Estimate(value=0.2, low=-0.1, high=0.5, num_undefined=0)
    clear = Estimate(value=0.2, low=0.1, high=0.3, num_undefined=0)
    rows = (replace(strong, advantage=clear), replace(weak, advantage=wide), ours)
    said = verdict(replace(made, assessment=replace(made.assessment, rows=rows)))
    assert said.title == "Our model beats Fc, the strongest baseline, but is not shown to beat Lstm"
    assert said.tone == "open"


def test_controls_that_ours_does_not_beat_come_with_what_follows(tmp_path: Path) -> None:
    said = _said(tmp_path, ours=1.5, controls={"shuffled": 1.5, "untrained": 0.0, "run_b": 1.5})
    assert "not shown to beat Shuffled: the order of frames is not shown to matter." in said.paragraphs[2]
    assert "Untrained" not in said.paragraphs[2] and "not shown to be ahead of Run b." in said.paragraphs[2]


@pytest.mark.usefixtures("without_figures")
def test_without_baselines_nothing_is_beaten(tmp_path: Path) -> None:
    made = made_up(tmp_path, ours=2.0, baselines={})
    said = verdict(made)
    assert said.tone == "open" and "no baseline to compare it with" in said.title
    assert "Advantage of ours" not in report_html(made, "eval-fmri report")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_page_is_whole_and_offline(tmp_path: Path, kind: str) -> None:
    made = made_up(tmp_path, kind, ours=0.9, controls={"shuffled": 0.5})
    text = report_html(made, "eval-fmri report --checkpoint p3")
    page = _Page(text)
    assert not page.open, "every element is closed"
    assert not re.search(r"https?://|@import|url\(|<script", text)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert all(jump.removeprefix("#") in page.anchors and jump.startswith("#") for jump in page.jumps)
    assert len(set(page.anchors)) == len(page.anchors)
    assert len(page.sources) == {"binary": 5, "multiclass": 3, "regression": 2}[kind]
    for source in page.sources:
        assert base64.b64decode(source.split(",", 1)[1]).decode().rstrip().endswith("</svg>")
    for heading in ("Scores", "What this can and cannot show", "The split", "Methods, to paste", "How this was made"):
        assert heading in page.headings
    assert "eval-fmri report --checkpoint p3" in text and made.split.hash in text and made.set_hash in text


@pytest.mark.usefixtures("without_figures")
def test_ours_stands_below_baselines_and_controls(tmp_path: Path) -> None:
    made = made_up(tmp_path, baselines={"fc": 0.5}, controls={"run_b": 1.0, "shuffled": 0.5})
    first = [row[0] for row in _Page(report_html(made, "")).rows[:9]]
    assert first[1:8] == [
        "Baselines",
        "Fcstrongest baseline",
        "Controls: our model with something taken away",
        "Shuffled",
        "Other trained models",
        "Run b",
        "Our model",
    ]


@pytest.mark.usefixtures("without_figures")
def test_table_shows_the_numbers_of_the_assessment(tmp_path: Path) -> None:
    made = made_up(tmp_path)
    rows = _Page(report_html(made, "")).rows
    fc = next(row for row in rows if row[0].startswith("Fc"))
    row = made.assessment.row("fc")
    score, advantage = row.scores["auroc"], row.advantage
    assert advantage is not None
    assert fc[1] == f"{score.value:.3f}{score.low:.3f} to {score.high:.3f}"
    assert fc[3].startswith(f"{advantage.value:.3f}".replace("-", "−"))
    assert fc[5] == f"{row.adjusted_p:.4f}" and fc[6] == f"{row.p_value:.4f}"


def test_marks_lie_where_the_numbers_say(tmp_path: Path) -> None:
    assessment = made_up(tmp_path).assessment
    table = forest(assessment, headline("binary"))
    line = table.groups[0].lines[1]
    share = (line.score.value - table.scores.low) / (table.scores.high - table.scores.low)
    assert line.score_mark.point == pytest.approx(MARGIN + (100 - 2 * MARGIN) * share, abs=0.01)
    assert line.is_strongest and line.score_mark.low is not None and line.score_mark.high is not None
    assert line.score_mark.low < line.score_mark.point < line.score_mark.high
    assert table.scores.low <= 0.5 and all(table.scores.low <= t <= table.scores.high for t in table.scores.ticks)


def test_one_absurd_interval_does_not_flatten_the_others() -> None:
    sane = [Estimate(value=v, low=v - 1, high=v + 1, num_undefined=0) for v in (5.0, 6.0, 7.0)]
    found = scale([*sane, Estimate(value=6.5, low=-400, high=900, num_undefined=0)], None)
    assert (found.low, found.high) == (2.0, 10.0)


def test_scale_of_undefined_and_of_equal_values_is_usable() -> None:
    nothing = Estimate(value=np.nan, low=np.nan, high=np.nan, num_undefined=9)
    assert scale([nothing], None).at(0.5) == 50.0
    same = scale([Estimate(value=0.5, low=0.5, high=0.5, num_undefined=0)], 0.5)
    assert same.at(0.5) == 50.0 and same.low < 0.5 < same.high


def test_one_class_only_is_undefined_not_a_crash(tmp_path: Path) -> None:
    made = made_up(tmp_path, truth=[1.0] * 8)
    text = report_html(made, "")
    assert verdict(made).title == "No verdict: AUROC is undefined on these subjects"
    assert "undefined" in text and "ROC curves" not in text


def test_one_subject_is_not_a_crash(tmp_path: Path) -> None:
    for kind in TARGETS:
        assert "No verdict" in report_html(made_up(tmp_path, kind, truth=[1.0]), "") or kind == "regression"


def test_reliability_bins_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rows = made_up(tmp_path, num_subjects=100).assessment.ours.predictions
    said, found, low, high = bins(rows, TARGETS["binary"])
    expected_found, expected_said = calibration_curve(
        rows.y_true, expit(rows.output[:, 0]), n_bins=10, strategy="quantile"
    )
    np.testing.assert_allclose(said, expected_said)
    np.testing.assert_allclose(found, expected_found)
    assert np.all((low <= found) & (found <= high))


@pytest.mark.usefixtures("without_figures")
def test_sections_stand_between_limits_and_training_in_their_order(tmp_path: Path) -> None:
    drawing = Drawing(title="A map", uri=drawn(lambda figure: None, 2, 2), alt="map", caption="Look <here>.")
    sections = tuple(
        Section(
            anchor=name,
            title=f"About {name}",
            paragraphs=(f"{name} & <b>more</b>",),
            tables=(Table(columns=("who", "how much"), rows=(("a", "0.7 to 0.8"),), caption="A table."),),
            drawings=(drawing,),
            files=(f"{name}/map.nii.gz",),
            methods=f"Then {name} was done.",
        )
        for name in ("zeta", "alpha")
    )
    text = report_html(made_up(tmp_path, sections=sections), "")
    headings = _Page(text).headings
    first = headings.index("What this can and cannot show")
    assert headings[first : first + 4] == ["What this can and cannot show", "About zeta", "About alpha", "Training"]
    assert "zeta &amp; &lt;b&gt;more&lt;/b&gt;" in text and "Look &lt;here&gt;." in text
    assert "zeta/map.nii.gz" in text and "Then zeta was done. Then alpha was done." in text
    assert '<td>a</td><td class="num">0.7 to 0.8</td>' in text


@pytest.mark.usefixtures("without_figures")
def test_leakage_checks_are_shown_with_their_result(tmp_path: Path) -> None:
    checks = (
        Check(name="Subjects apart", passed=True, detail="60 subjects"),
        Check(name="Families apart", passed=None, detail="unknown: no column"),
        Check(name="Pre-training apart", passed=False, detail="2 subjects seen"),
    )
    text = report_html(made_up(tmp_path, checks=checks), "")
    rows = [row for row in _Page(text).rows if row[0].endswith("apart")]
    assert [row[1] for row in rows] == ["passed", "unknown", "FAILED"]
    assert "1 leakage check failed: do not report these numbers" in text
    assert "Leakage checks" not in report_html(made_up(tmp_path), "")


def test_table_refuses_a_row_of_another_length_and_knows_numbers() -> None:
    with pytest.raises(ValueError, match="1 cells"):
        Table(columns=("a", "b"), rows=(("1",),))
    rows = (
        ("x1", "−0.1 (−0.2 to 0.3)", "12 %", "3 s", "undefined", ""),
        ("y", "undefined", "0.5", "about 3", "undefined", ""),
    )
    assert Table(columns=tuple("abcdef"), rows=rows).is_numeric == (False, True, True, False, True, False)


def _log(folder: Path, *events: dict[str, Any] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_curves_are_what_the_log_says(tmp_path: Path) -> None:
    folder = _log(
        tmp_path / "p2",
        {"event": "start", "step": 0},
        {"event": "train", "step": 10, "loss": 2.0},
        {"event": "val", "step": 10, "mse": 0.9, "mse_mean": 1.2, "latent_variance": 3.0},
        {"event": "train", "step": 20, "loss": None},
        {"event": "val", "step": 20, "mse": 0.6, "mse_mean": 1.2},
        {"event": "end", "step": 20, "chosen_step": 20},
        '{"event": "train", "st',
    )
    curve = read_curve(folder, 2)
    assert curve is not None
    assert curve.loss == ((10, 2.0),) and curve.chosen == 20
    assert dict(curve.validation) == {"frames, relative error": ((10, pytest.approx(0.75)), (20, pytest.approx(0.5)))}


def test_score_of_phase_3_is_its_validation(tmp_path: Path) -> None:
    folder = _log(tmp_path / "p3", {"event": "val", "step": 0, "score": 0.8}, {"event": "val", "step": 8, "score": 0.9})
    curve = read_curve(folder, 3)
    assert curve is not None and list(curve.validation.values()) == [((0, 0.8), (8, 0.9))]


def test_a_run_without_a_log_is_named_and_nothing_is_drawn(tmp_path: Path) -> None:
    section = training_section(tmp_path / "p3", ())
    assert not section.drawings and not section.tables
    assert str(tmp_path / "p3" / "log.jsonl") in section.paragraphs[-1]
    assert "there was no pre-training" in section.paragraphs[1]


@pytest.mark.usefixtures("without_figures")
def test_a_pretraining_run_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    made = made_up(tmp_path)
    _log(tmp_path / "p3", {"event": "train", "step": 1, "loss": 1.0})
    gone = {"init": "runs/p2", "init_hash": "87" * 16}
    text = report_html(replace(made, run_config={**made.run_config, **gone}), "")
    assert "The run runs/p2, which the weights came from, cannot be shown: the folder is not there any more." in text
    assert "pre-trained" not in text.split("Methods, to paste")[2].split("</section>")[0]
    assert "87" * 16 in text


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("held_out", [0, 40])
def test_methods_tell_how_classes_were_decided(tmp_path: Path, held_out: int) -> None:
    made = made_up(tmp_path)
    rows = tuple(replace(row, num_held_out=held_out) for row in made.assessment.rows)
    text = report_html(replace(made, assessment=replace(made.assessment, rows=rows)), "")
    assert ("at a predicted probability of 0.5." in text) == (held_out == 0)
    assert ("best balanced accuracy among held-out subjects" in text) == (held_out > 0)


@pytest.mark.usefixtures("without_figures")
def test_stages_and_their_options_are_listed(tmp_path: Path) -> None:
    made = made_up(tmp_path)
    (tmp_path / "p3").mkdir()
    (tmp_path / "p3" / "model.json").write_text(json.dumps({"weights_xxh3": "aa11"}))
    for name, weights in (("baselines", "aa11"), ("explain", "bb22")):
        (tmp_path / name).mkdir()
        record = {
            "generator": "boldstream eval-fmri",
            "inputs": {"weights": weights, "set": "s", "steps": 16},
            "software": {"numpy": "0.0.1"},
            "files": {"a.npz": "1"},
        }
        (tmp_path / name / "stage.json").write_text(json.dumps(record))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "stage.json").write_text("{}")
    rows = _Page(report_html(made, "")).rows
    found = {row[0]: row[1:] for row in rows if row and row[0] in ("baselines", "explain", "notes")}
    assert set(found) == {"baselines", "explain"}
    assert found["baselines"] == ["these weights, this set and split", "steps 16", "a.npz", "numpy 0.0.1", "unknown"]
    assert found["explain"][0] == "other weights (bb22): not used here"


@pytest.mark.usefixtures("without_figures")
def test_record_and_page_tell_the_same_verdict(tmp_path: Path) -> None:
    made = made_up(tmp_path, ours=1.0)
    pages = write_report(made, "eval-fmri report")
    record = json.loads(pages[1].read_text())
    assert f"<h1>{record['verdict']['title']}</h1>" in pages[0].read_text()
    assert record["models"][-1]["adjusted_p"] is None and record["models"][0]["threshold"] == 0.0
    assert metrics_json(made, "eval-fmri report") == pages[1].read_text()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    made = made_up(tmp_path)
    column = replace(made.target, column="<script>alert(1)</script>", levels=("a&b", '"><img src=x>'))
    parts = tuple(replace(part, by_class=dict.fromkeys(column.levels, 1)) for part in made.parts)
    text = report_html(replace(made, target=column, parts=parts), "")
    assert "<script" not in text and "<img src=x" not in text


def test_a_crowd_of_rows_adds_no_figure_and_keeps_its_order(tmp_path: Path) -> None:
    strengths = {f"b{number:02d}": number / 12 for number in range(12)}
    made = made_up(tmp_path, baselines=strengths)
    page = _Page(report_html(made, ""))
    assert len(page.sources) == 5
    shown = [row[0].removesuffix("strongest baseline") for row in page.rows[2:14]]
    assert shown == [key.capitalize() for key in strengths]
