"""Baselines find what was planted for them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.baselines.linear import fit_readout, inner_folds
from eval.baselines.simple import Confounds, Connectivity, Majority, MeanImage, Problem
from eval.cohort import confound_features, open_cohort
from eval.parcels.parcels import geometric_parcels
from eval.scoring.metrics import score
from eval.targets import Target
from shards.reader import ShardSet

GROUP = Target(column="group", kind="binary", levels=("control", "case"), mean=float("nan"), std=float("nan"))
SCORE = Target(column="score", kind="regression", levels=(), mean=110.0, std=5.0)


def _problem(shard_set: ShardSet, study: Any, target: Target, values: dict[str, float] | None = None) -> Problem:
    values = values or target.encode(shard_set.phenotype(target.column))
    return Problem(
        cohort=open_cohort(shard_set, target.column),
        target=target,
        y_fit={s: values[s] for s in (*study.split.train, *study.split.val)},
        to_score=study.split.test,
        threads=2,
        seed=0,
    )


def _truth(problem: Problem, shard_set: ShardSet) -> np.ndarray:
    values = problem.target.encode(shard_set.phenotype(problem.target.column))
    return np.array([values[subject] for subject in problem.to_score])


def test_connectivity_finds_a_planted_coupling_that_the_mean_image_cannot(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=60)
    with ShardSet(study.folder) as shard_set:
        problem = _problem(shard_set, study, GROUP)
        truth = _truth(problem, shard_set)
        fc = Connectivity(geometric_parcels(shard_set), "binary").fit_predict(problem)
        anatomy = MeanImage().fit_predict(problem)
    assert score(truth, fc.output, "binary")["auroc"] > 0.95
    assert score(truth, anatomy.output, "binary")["auroc"] < 0.8
    assert "inner cross-validation" in fc.note


def test_connectivity_with_ridge_finds_a_planted_number(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=60, kind="regression")
    with ShardSet(study.folder) as shard_set:
        problem = _problem(shard_set, study, SCORE)
        fc = Connectivity(geometric_parcels(shard_set), "regression").fit_predict(problem)
        mean = Majority("regression").fit_predict(problem)
        truth = _truth(problem, shard_set)
    found, plain = (score(truth, readout.output, "regression") for readout in (fc, mean))
    assert found["r2"] > 0.5 and found["mae"] < 0.7 * plain["mae"]


def test_everything_is_at_chance_on_noise(make_study: Callable[..., Any]) -> None:
    found: dict[str, list[float]] = {"fc": [], "mean_image": [], "confounds": []}
    for seed in range(5):
        study = make_study(num_subjects=40, effect=0.0, seed=seed)
        with ShardSet(study.folder) as shard_set:
            problem = _problem(shard_set, study, GROUP)
            truth = _truth(problem, shard_set)
            for baseline in (Connectivity(geometric_parcels(shard_set), "binary"), MeanImage(), Confounds()):
                output = baseline.fit_predict(problem).output
                found[baseline.key].append(score(truth, output, "binary")["auroc"])
    for key, values in found.items():
        assert 0.3 < np.mean(values) < 0.7, key


def test_scored_subjects_do_not_reach_the_fit(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=30)
    with ShardSet(study.folder) as shard_set:
        problem = _problem(shard_set, study, GROUP)
        alone = Problem(**{**vars(problem), "to_score": problem.to_score[:1]})
        for baseline in (Connectivity(geometric_parcels(shard_set), "binary"), MeanImage(), Confounds()):
            together = baseline.fit_predict(problem).output[:1]
            assert baseline.fit_predict(alone).output == pytest.approx(together, abs=1e-4), baseline.key


def test_the_mean_image_finds_planted_anatomy_whatever_the_gain(
    make_shard_set: Callable[..., Any], mask: np.ndarray, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    truth = {f"{k:03d}": float(k % 2) for k in range(40)}
    region = np.flatnonzero(np.nonzero(mask)[0] < 2)
    signals = {}
    for subject, value in truth.items():
        image = 1000 + 30 * rng.standard_normal(int(mask.sum()))
        image[region] += 40 * value
        series = image + 10 * rng.standard_normal((20, image.size))
        signals[f"sub-{subject}_task-rest"] = (rng.uniform(0.5, 2.0) * series).astype("f4")
    make_shard_set(tmp_path / "set", signals=signals, runs_per_shard=64)
    with ShardSet(tmp_path / "set") as shard_set:
        subjects = tuple(truth)
        problem = Problem(
            cohort=open_cohort(shard_set, "group"),
            target=GROUP,
            y_fit={subject: truth[subject] for subject in subjects[:24]},
            to_score=subjects[24:],
            threads=1,
            seed=0,
        )
        output = MeanImage().fit_predict(problem).output
    assert score([truth[subject] for subject in subjects[24:]], output, "binary")["auroc"] > 0.9


def test_confounds_find_a_target_that_is_the_site(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=40, effect=0.0)
    with ShardSet(study.folder) as shard_set:
        site = shard_set.phenotype("site")
        truth = {subject: float(site[subject] == "york") for subject in site}
        problem = _problem(shard_set, study, GROUP, truth)
        readout = Confounds().fit_predict(problem)
        expected = np.array([truth[subject] for subject in problem.to_score])
    assert score(expected, readout.output, "binary")["auroc"] == 1.0
    assert "site york" in readout.note


def test_the_target_is_never_its_own_confound(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=20)
    with ShardSet(study.folder) as shard_set:
        subjects = tuple(study.truth)
        _, names = confound_features(open_cohort(shard_set, "sex"), subjects, subjects)
        assert not [name for name in names if name.startswith("sex")] and "age" in names
        cohort = open_cohort(shard_set, "age")
        assert "age" not in cohort.columns and cohort.columns["family"] == "family"


def test_missing_confounds_become_the_median_of_the_fitted(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=20)
    with ShardSet(study.folder) as shard_set:
        cohort = open_cohort(shard_set, "group")
        subjects = tuple(study.truth)
        ages = {subject: float(age) for subject, age in cohort.values["age"].items()}
        cohort.values["age"].pop(subjects[0])  # type: ignore[attr-defined]
        features, names = confound_features(cohort, subjects, subjects[1:])
    column = features[:, names.index("age")]
    assert column[0] == np.median([ages[subject] for subject in subjects[1:]])
    assert column[1] == ages[subjects[1]]


def test_majority_says_the_class_frequencies(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=20)
    with ShardSet(study.folder) as shard_set:
        problem = _problem(shard_set, study, GROUP, dict.fromkeys(study.truth, 1.0) | {study.split.train[0]: 0.0})
        output = Majority("binary").fit_predict(problem).output
    share = 1 / (1 + np.exp(-output[:, 0]))
    assert share == pytest.approx(1 - 1 / len(problem.y_fit))


def test_inner_folds_keep_families_together_and_hold_every_class() -> None:
    families = [f"f{k // 3}" for k in range(30)]
    y_fit = np.repeat(np.arange(10) % 2, 3).astype(float)
    folds = inner_folds(y_fit, "binary", families, seed=0)
    assert len(folds) >= 3
    for fit, held in folds:
        assert not {families[i] for i in fit} & {families[i] for i in held}
        assert set(y_fit[held]) == {0.0, 1.0}
    assert inner_folds(np.array([0.0, 1.0]), "binary", None, seed=0) == []


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_readout_of_a_handful_of_subjects(kind: Any) -> None:
    y_fit = np.array([0.0, 1.0] if kind != "multiclass" else [0.0, 2.0])
    features = np.array([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]])
    found = fit_readout(features, y_fit, features, kind, num_levels=3, families=None, seed=0)
    assert np.isfinite(found.output).all() and found.output.shape == (2, 3 if kind == "multiclass" else 1)
    if kind == "multiclass":
        assert found.output.argmax(axis=1).tolist() == [0, 2], "the level that nobody has is never chosen"
    else:
        assert found.output[1, 0] > found.output[0, 0]


def test_rotation_does_not_change_the_model() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features, y_fit = rng.normal(size=(12, 40)), (np.arange(12) % 2).astype(float)
    found = fit_readout(features, y_fit, features, "binary", num_levels=2, families=["one"] * 12, seed=0)
    assert found.note.startswith("C = 1,"), "one family leaves nothing to choose by"
    centred = features - features.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=1).mean())
    plain = LogisticRegression(class_weight="balanced", max_iter=2000, tol=1e-8).fit(centred / size, y_fit)
    assert found.output[:, 0] == pytest.approx(plain.decision_function(centred / size), abs=1e-3)
