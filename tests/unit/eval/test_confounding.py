"""Confounds: associations, what is left without them, and groups of subjects."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency, f, kruskal, pearsonr, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from eval.cohort import Cohort
from eval.controls.association import associate, partial_correlation
from eval.controls.confounding import ask, error_of
from eval.controls.groups import group_scores, subgroups
from eval.controls.section import confounding_section
from eval.subjects import Model, Predictions, Scored
from eval.targets import Target

RNG = np.random.default_rng(4)
BINARY = Target(column="group", kind="binary", levels=("a", "b"), mean=math.nan, std=math.nan)
SEVERAL = Target(column="kind", kind="multiclass", levels=("a", "b", "c"), mean=math.nan, std=math.nan)
AGE = Target(column="score", kind="regression", levels=(), mean=0.0, std=1.0)


@pytest.mark.parametrize("ranked", [False, True])
def test_a_partial_correlation_is_that_of_the_inverse_correlation_matrix(ranked: bool) -> None:
    given = RNG.standard_normal((50, 3))
    x = given @ [1, 0, 2] + RNG.standard_normal(50)
    y = given @ [1, 1, 0] + 0.5 * x + RNG.standard_normal(50)
    columns = [x, y, *given.T]
    precision = np.linalg.inv(np.corrcoef([rankdata(c) if ranked else c for c in columns]))
    expected = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    found = partial_correlation(x, y, given, ranked=ranked)
    assert found.value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("ranked", [False, True])
def test_without_confounds_it_is_the_plain_correlation_of_scipy(ranked: bool) -> None:
    x = RNG.standard_normal(40)
    y = x + RNG.standard_normal(40)
    found = partial_correlation(x, y, np.zeros((40, 0)), ranked=ranked)
    oracle = spearmanr(x, y) if ranked else pearsonr(x, y)
    assert found.value == pytest.approx(oracle.statistic)
    assert found.p == pytest.approx(oracle.pvalue)
    if not ranked:
        interval = oracle.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_the_p_of_a_partial_correlation_is_that_of_the_regression_coefficient() -> None:
    given, x = RNG.standard_normal((30, 2)), RNG.standard_normal(30)
    y = 0.4 * x + given @ [1, -1] + RNG.standard_normal(30)
    design = np.column_stack([np.ones(30), given])
    small, large = (np.linalg.lstsq(d, y, rcond=None)[1][0] for d in (design, np.column_stack([design, x])))
    expected = f.sf((small - large) / (large / (30 - 4)), 1, 30 - 4)
    assert partial_correlation(x, y, given, ranked=False).p == pytest.approx(expected)


def test_collinear_and_constant_confounds_count_once() -> None:
    x, y, z = RNG.standard_normal((3, 25))
    once = partial_correlation(x, y, z[:, None], ranked=False)
    again = partial_correlation(x, y, np.column_stack([z, -2 * z, np.ones(25)]), ranked=False)
    assert (again.value, again.low, again.p) == pytest.approx((once.value, once.low, once.p))


@pytest.mark.parametrize("ranked", [False, True])
def test_what_confounds_explain_wholly_has_no_partial_correlation(ranked: bool) -> None:
    x, z = RNG.standard_normal((2, 20))
    assert math.isnan(partial_correlation(x, z, z[:, None], ranked=ranked).value)
    assert math.isnan(partial_correlation(x, np.full(20, 0.3), z[:, None], ranked=ranked).value)


def test_intervals_cover_as_often_as_they_say() -> None:
    covered = []
    for _ in range(600):
        z, noise, more = RNG.standard_normal((3, 25))
        x = z + noise
        found = partial_correlation(x, z + 0.75 * noise + more, z[:, None], ranked=False)
        covered.append(found.low <= 0.6 <= found.high)  # 0.75 / sqrt(0.75^2 + 1)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_numbers_are_associated_by_spearman_without_those_that_miss() -> None:
    x, y = RNG.standard_normal((2, 20))
    x[3], y[7] = math.nan, math.nan
    known = np.isfinite(x) & np.isfinite(y)
    found = associate(x, y)
    assert (found.value, found.p) == pytest.approx(tuple(spearmanr(x[known], y[known])))


def test_a_category_and_a_number_have_the_correlation_ratio_of_ranks() -> None:
    category = np.repeat(np.array(["a", "b", "c"]), 8)
    number = RNG.standard_normal(24) + np.repeat([0.0, 1.0, 0.0], 8)
    table = pd.DataFrame({"rank": rankdata(number), "level": category})
    between = table.groupby("level")["rank"].transform("mean").var(ddof=0)
    found = associate(category, number)
    assert found.value == pytest.approx(math.sqrt(between / table["rank"].var(ddof=0)))
    assert found.p == pytest.approx(kruskal(*(number[category == level] for level in "abc")).pvalue)
    assert associate(number, category) == found


def test_two_categories_have_cramers_v() -> None:
    a, b = RNG.choice(["x", "y"], 40), RNG.choice(["p", "q", "r"], 40)
    table = pd.crosstab(a, b)
    chi2 = chi2_contingency(table, correction=False)
    found = associate(a, b)
    assert found.value == pytest.approx(math.sqrt(chi2.statistic / 40))
    assert found.p == pytest.approx(chi2.pvalue)


def test_what_does_not_vary_has_no_association() -> None:
    assert math.isnan(associate(np.ones(10), RNG.standard_normal(10)).value)
    assert math.isnan(associate(np.array([""] * 9 + ["a"]), RNG.standard_normal(10)).value)


def cohort(motion: Any, **values: list[str]) -> Cohort:
    """One run of each subject, with a motion and what participants.tsv says of roles ('' where it says nothing)."""
    names = [f"{k:03d}" for k in range(len(motion))]
    known = {role: {n: text for n, text in zip(names, texts, strict=True) if text} for role, texts in values.items()}
    runs = tuple(SimpleNamespace(mean_fd_mm=fd, tsnr_median=50.0, num_frames=100) for fd in motion)
    return Cohort(
        shard_set=SimpleNamespace(runs=runs),  # type: ignore[arg-type]
        runs={name: (k,) for k, name in enumerate(names)},
        columns={role: role for role in values},
        values=known,
    )


def row(key: str, truth: Any, output: Any, role: Any = "baseline") -> Scored:
    names = tuple(f"{k:03d}" for k in range(len(truth)))
    found = Predictions(
        model=key, subset="test", subjects=names, y_true=np.asarray(truth, float), output=np.atleast_2d(output.T).T
    )
    return Scored(model=Model(key=key, label=key.title(), role=role, sees="", note=""), predictions=found)


def test_success_that_is_motions_does_not_outlive_it() -> None:
    motion = RNG.gamma(2.0, 0.1, 80)
    truth = (motion + 0.05 * RNG.standard_normal(80) > np.median(motion)).astype(float)
    honest = 2 * truth - 1 + RNG.standard_normal(80)
    scored = [row("confounds", truth, motion), row("ours", truth, motion + 0.01 * RNG.standard_normal(80), "ours")]
    scored.append(row("honest", truth, honest))
    found = ask(cohort(motion), BINARY, scored, 100, 0)
    by_model = {each.model: each for each in found.adjusted}
    ours = by_model["ours"]
    assert ours.pearson.low > 0.3
    assert ours.partial_pearson.low < 0 < ours.partial_pearson.high
    assert by_model["honest"].partial_pearson.low > 0
    (measure,) = found.measures
    assert measure.name == "mean FD (mm)"
    assert measure.output.value > 0.9
    assert measure.target.p < 0.001
    assert found.from_confounds == pytest.approx(roc_auc_score(truth, motion))
    assert found.reference == "confounds"


def test_errors_are_truth_minus_what_was_said() -> None:
    logits = np.array([[0.0], [2.0]])
    assert error_of(row("x", [1, 1], logits).predictions, BINARY) == pytest.approx([0.5, 1 - 1 / (1 + math.exp(-2))])
    assert error_of(row("x", [3, 5], np.array([[1.0], [6.0]])).predictions, AGE).tolist() == [2, -1]
    certain = np.array([[0.0, 0.0, 50.0], [0.0, 0.0, 50.0]])
    assert error_of(row("x", [2, 0], certain).predictions, SEVERAL) == pytest.approx([0, 1])


def test_an_imputed_confound_is_not_counted_as_known() -> None:
    ages = ["", *(str(age) for age in RNG.integers(20, 60, 29))]
    found = ask(cohort([0.1] * 30, age=ages), AGE, [row("ours", RNG.random(30), RNG.random(30), "ours")], 100, 0)
    (measure,) = found.measures
    assert (measure.name, measure.num_subjects) == ("age", 29)


def test_several_classes_are_averaged_against_the_rest() -> None:
    truth = np.arange(60) % 3
    logits = np.eye(3)[truth] + RNG.standard_normal((60, 3))
    found = ask(cohort([0.1] * 60), SEVERAL, [row("ours", truth, logits, "ours")], 100, 0)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.mean([pearsonr(shares[:, k], truth == k).statistic for k in range(3)])
    assert found.adjusted[0].pearson.value == pytest.approx(expected)
    assert math.isnan(found.adjusted[0].pearson.low)


def test_thirds_of_motion_and_sites_hold_everybody_once() -> None:
    motion = np.array([0.3, 0.1, math.nan, 0.2, 0.6, 0.5, 0.4])
    groups = subgroups(cohort(motion, site=["x", "y", "x", "y", "x", "y", ""]), tuple(f"{k:03d}" for k in range(7)))
    assert groups["site"] == {"x": [0, 2, 4], "y": [1, 3, 5]}
    assert list(groups["motion"].values()) == [[1, 3], [0, 6], [4, 5]]
    assert next(iter(groups["motion"])) == "lowest third (mean FD 0.10 to 0.20 mm)"


def test_one_site_and_equal_motion_make_no_groups() -> None:
    assert subgroups(cohort([0.1] * 8, site=["x"] * 8), tuple(f"{k:03d}" for k in range(8))) == {}


def test_each_model_is_scored_in_each_group() -> None:
    truth = np.arange(40) % 2
    scored = [row(key, truth, truth + RNG.standard_normal(40)) for key in ("fc", "ours")]
    members = {"site": {"x": list(range(24)), "y": list(range(24, 40))}}
    found = group_scores(scored, BINARY, members, families=None, num_resamples=200, seed=0)
    assert [(each.name, each.model) for each in found] == [("x", "fc"), ("x", "ours"), ("y", "fc"), ("y", "ours")]
    for each in found:
        rows = members["site"][each.name]
        output = next(s for s in scored if s.model.key == each.model).predictions.output[rows, 0]
        assert each.value == pytest.approx(roc_auc_score(truth[rows], output))
        assert each.low < each.value < each.high
        assert each.num_subjects == len(rows)


def test_a_group_of_one_class_has_no_auroc() -> None:
    truth = np.array([0.0] * 10 + [1.0] * 10)
    members = {"site": {"x": list(range(10))}}
    (found,) = group_scores([row("ours", truth, truth)], BINARY, members, families=None, num_resamples=100, seed=0)
    assert math.isnan(found.value)
    assert math.isnan(found.low)


def test_the_section_says_what_came_out() -> None:
    motion = RNG.gamma(2.0, 0.1, 60)
    truth = RNG.standard_normal(60)
    sites = ["x", "y"] * 30
    scored = [row("fc", truth, truth + RNG.standard_normal(60)), row("ours", truth, truth + motion, "ours")]
    found = ask(cohort(motion, site=sites), AGE, scored, 100, 0)
    section = confounding_section(found, AGE)
    assert section is not None
    assert len(section.drawings) == 2
    assert [len(table.rows) for table in section.tables] == [2, 2, 2, 2]
    assert all(len(line) == len(table.columns) for table in section.tables for line in table.rows)
    assert "given mean FD (mm) and site" in section.paragraphs[1]


def test_nothing_known_makes_no_section() -> None:
    found = ask(cohort([math.nan] * 10), AGE, [row("ours", RNG.random(10), RNG.random(10), "ours")], 100, 0)
    assert confounding_section(found, AGE) is None
    assert confounding_section(replace(found, groups=()), AGE) is None
