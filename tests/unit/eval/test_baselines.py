"""Baselines find what was planted for them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.baselines.connectivity import (
    Connectivity,
    CorrelationKernel,
    KernelConnectivity,
    TangentConnectivity,
    TangentSpace,
    subject_covariances,
    subject_edges,
)
from eval.baselines.images import Amplitude, MeanImage
from eval.baselines.linear import Logistic, Ridge, choose_penalty, inner_folds
from eval.baselines.protocol import Baseline, NotAvailable, Problem
from eval.baselines.simple import Confounds, Majority
from eval.cohort import confound_features, open_cohort
from eval.parcels.parcels import geometric_parcels
from eval.parcels.series import RegionSeries, amplitude_cache
from eval.ranks import Ranks
from eval.scoring.metrics import Floats, Kind, score
from eval.targets import Target
from shards.reader import ShardSet

GROUP = Target(column="group", kind="binary", levels=("control", "case"), mean=float("nan"), std=float("nan"))
SCORE = Target(column="score", kind="regression", levels=(), mean=110.0, std=5.0)
CONNECTIVITY: tuple[Callable[[Kind], Baseline], ...] = (Connectivity, KernelConnectivity, TangentConnectivity)


@contextmanager
def _problem(study: Any, target: Target, values: dict[str, float] | None = None) -> Iterator[Problem]:
    with ShardSet(study.folder) as shard_set:
        known = values or target.encode(shard_set.phenotype(target.column))
        regions = RegionSeries(shard_set, geometric_parcels(shard_set), study.folder / "out")
        regions.cache.ensure(range(len(shard_set.runs)), Ranks(), 1)
        yield Problem(
            cohort=open_cohort(shard_set, target.column),
            target=target,
            y_train={subject: known[subject] for subject in study.split.train},
            y_val={subject: known[subject] for subject in study.split.val},
            regions=regions,
            threads=2,
            seed=0,
        )


def _amplitude(problem: Problem, fractional: bool = False) -> Amplitude:
    shard_set = problem.cohort.shard_set
    kept = amplitude_cache(shard_set, Path(shard_set.location) / "out")
    kept.ensure(range(len(shard_set.runs)), Ranks(), 1)
    return Amplitude(kept, fractional)


def _truth(problem: Problem, subjects: tuple[str, ...]) -> Floats:
    values = problem.target.encode(problem.cohort.shard_set.phenotype(problem.target.column))
    return np.array([values[subject] for subject in subjects])


def test_connectivity_finds_a_planted_coupling_that_images_cannot(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=60)
    with _problem(study, GROUP) as problem:
        truth = _truth(problem, study.split.test)
        for make in CONNECTIVITY:
            fitted = make("binary").fit(problem)
            assert score(truth, fitted.predict(study.split.test), "binary")["auroc"] > 0.95, make
            assert "inner cross-validation" in fitted.note and "geometric parcels" in fitted.note
        for blind in (MeanImage(), _amplitude(problem)):
            assert score(truth, blind.fit(problem).predict(study.split.test), "binary")["auroc"] < 0.8, blind.key


@pytest.mark.parametrize("make", CONNECTIVITY)
def test_connectivity_finds_a_planted_number(make_study: Callable[..., Any], make: Callable[[Kind], Baseline]) -> None:
    study = make_study(num_subjects=60, kind="regression")
    with _problem(study, SCORE) as problem:
        truth = _truth(problem, study.split.test)
        found, plain = (
            score(truth, baseline.fit(problem).predict(study.split.test), "regression")
            for baseline in (make("regression"), Majority("regression"))
        )
    assert found["pearson"] > 0.7
    assert found["mae"] < 0.8 * plain["mae"]


@pytest.mark.parametrize("make", CONNECTIVITY)
def test_connectivity_tells_three_classes_apart(
    make_study: Callable[..., Any], make: Callable[[Kind], Baseline]
) -> None:
    study = make_study(num_subjects=60, kind="regression", effect=1.0)
    thirds = {subject: float(np.searchsorted([0.35, 0.7], value)) for subject, value in study.truth.items()}
    three = Target(column="group", kind="multiclass", levels=("a", "b", "c"), mean=float("nan"), std=float("nan"))
    with _problem(study, three, thirds) as problem:
        fitted = make("multiclass").fit(problem)
        output = fitted.predict(study.split.test)
    truth = np.array([thirds[subject] for subject in study.split.test])
    assert output.shape == (len(truth), 3)
    assert score(truth, output, "multiclass")["balanced_accuracy"] > 0.5
    assert all(row.shape == (3,) for row in fitted.held_out.values())


@pytest.mark.slow
def test_nothing_is_found_in_noise(make_study: Callable[..., Any]) -> None:
    found: dict[str, list[float]] = {}
    for seed in range(5):
        study = make_study(num_subjects=40, effect=0.0, seed=seed)
        with _problem(study, GROUP) as problem:
            truth = _truth(problem, study.split.test)
            images = (MeanImage(), Confounds(), _amplitude(problem), _amplitude(problem, fractional=True))
            for baseline in (*(make("binary") for make in CONNECTIVITY), *images):
                output = baseline.fit(problem).predict(study.split.test)
                found.setdefault(baseline.key, []).append(score(truth, output, "binary")["auroc"])
    for key, values in found.items():
        assert 0.3 < np.mean(values) < 0.7, key
    assert len(found) == 7


def test_a_subject_gets_the_same_whoever_else_is_predicted(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=30)
    with _problem(study, GROUP) as problem:
        baselines = (*(make("binary") for make in CONNECTIVITY), MeanImage(), Confounds(), _amplitude(problem))
        for baseline in baselines:
            fitted = baseline.fit(problem)
            together = fitted.predict(study.split.test)
            for row, subject in enumerate(study.split.test[:2]):
                assert fitted.predict((subject,))[0] == pytest.approx(together[row], abs=1e-4), baseline.key


@pytest.mark.parametrize("make", [*CONNECTIVITY, lambda kind: MeanImage()])
def test_held_out_outputs_come_from_models_without_the_subject(
    make_study: Callable[..., Any], make: Callable[[Kind], Baseline]
) -> None:
    """Labels that are pure noise: a model that had seen a subject would know it, as it does those it was fitted on."""
    study = make_study(num_subjects=60, effect=0.0)
    with _problem(study, GROUP) as problem:
        fitted = make("binary").fit(problem)
        subjects = tuple(fitted.held_out)
        held_out = np.stack([fitted.held_out[subject] for subject in subjects])
        truth = problem.truth(subjects)
    assert len(subjects) > 0.7 * len(problem.y_fit) and set(subjects) <= set(problem.y_fit)
    assert score(truth, held_out, "binary")["auroc"] < 0.75


def test_held_out_outputs_find_what_is_there(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=60)
    with _problem(study, GROUP) as problem:
        for make in CONNECTIVITY:
            held_out = make("binary").fit(problem).held_out
            output = np.stack(list(held_out.values()))
            assert score(problem.truth(tuple(held_out)), output, "binary")["auroc"] > 0.9, make


def test_scores_of_the_kernel_become_logits(make_study: Callable[..., Any]) -> None:
    """Where classes are told apart, kernel ridge says so as surely as logistic regression does."""
    study = make_study(num_subjects=60)
    with _problem(study, GROUP) as problem:
        truth = _truth(problem, study.split.test)
        fitted = KernelConnectivity("binary").fit(problem)
        assert score(truth, fitted.predict(study.split.test), "binary")["brier"] < 0.08
    assert "scaled to logits" in fitted.note


def _planted_images(make_shard_set: Callable[..., Any], mask: np.ndarray, folder: Path, plant: str) -> dict[str, float]:
    """40 subjects; in a corner of the mask either the mean or the slow fluctuation differs between classes."""
    rng = np.random.default_rng(0)
    truth = {f"{k:03d}": float(k % 2) for k in range(40)}
    region = np.flatnonzero(np.nonzero(mask)[0] < 2)
    time_s = 2.0 * np.arange(60)
    signals = {}
    for subject, value in truth.items():
        image = 1000 + 30 * rng.standard_normal(int(mask.sum()))
        noise = 10 * rng.standard_normal((60, image.size))
        if plant == "anatomy":
            image[region] += 40 * value
        else:
            hz = rng.uniform(0.02, 0.08, region.size) if value else rng.uniform(0.15, 0.24, region.size)
            noise[:, region] += 10 * np.sin(2 * np.pi * (time_s[:, None] * hz + rng.random(region.size)))
        signals[f"sub-{subject}_task-rest"] = (rng.uniform(0.5, 2.0) * (image + noise)).astype("f4")
    make_shard_set(folder, signals=signals, runs_per_shard=64)
    return truth


@pytest.mark.parametrize("plant", ["anatomy", "fluctuation"])
def test_images_find_what_is_planted_in_them_whatever_the_gain(
    make_shard_set: Callable[..., Any], mask: np.ndarray, tmp_path: Path, plant: str
) -> None:
    truth = _planted_images(make_shard_set, mask, tmp_path / "set", plant)
    subjects, scored = tuple(truth), tuple(truth)[24:]
    with ShardSet(tmp_path / "set") as shard_set:
        problem = Problem(
            cohort=open_cohort(shard_set, "group"),
            target=GROUP,
            y_train={subject: truth[subject] for subject in subjects[:20]},
            y_val={subject: truth[subject] for subject in subjects[20:24]},
            regions=RegionSeries(shard_set, geometric_parcels(shard_set), tmp_path),
            threads=1,
            seed=0,
        )
        expected = [truth[subject] for subject in scored]
        for baseline in (MeanImage(), _amplitude(problem), _amplitude(problem, fractional=True)):
            auroc = score(expected, baseline.fit(problem).predict(scored), "binary")["auroc"]
            sees = (baseline.key == "mean_image") == (plant == "anatomy")
            assert auroc > 0.9 if sees else auroc < 0.85, (baseline.key, auroc)


def test_runs_without_slow_frequencies_have_no_amplitude(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    make_shard_set(tmp_path, frames=(12, 12, 12), tr_s=0.5)
    with ShardSet(tmp_path) as shard_set:
        problem = Problem(
            cohort=open_cohort(shard_set, "group"),
            target=GROUP,
            y_train={"00": 0.0, "01": 1.0},
            y_val={},
            regions=RegionSeries(shard_set, geometric_parcels(shard_set), tmp_path),
            threads=1,
            seed=0,
        )
        with pytest.raises(NotAvailable, match="too short"):
            _amplitude(problem).fit(problem)


def test_confounds_find_a_target_that_is_the_site(make_study: Callable[..., Any]) -> None:
    study = make_study(num_subjects=40, effect=0.0)
    with ShardSet(study.folder) as shard_set:
        site = shard_set.phenotype("site")
    truth = {subject: float(site[subject] == "york") for subject in site}
    with _problem(study, GROUP, truth) as problem:
        fitted = Confounds().fit(problem)
        output = fitted.predict(study.split.test)
    assert score([truth[subject] for subject in study.split.test], output, "binary")["auroc"] == 1.0
    assert "site york" in fitted.note


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
    values = dict.fromkeys(study.truth, 1.0) | {study.split.train[0]: 0.0}
    with _problem(study, GROUP, values) as problem:
        fitted = Majority("binary").fit(problem)
        output = fitted.predict(study.split.test)
    share = 1 / (1 + np.exp(-output[:, 0]))
    assert share == pytest.approx(1 - 1 / len(problem.y_fit))
    assert not fitted.held_out


def test_runs_of_a_subject_are_averaged_by_frames(
    make_shard_set: Callable[..., Any], mask: np.ndarray, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    frames = {"sub-0_task-rest_run-1": 30, "sub-0_task-rest_run-2": 90}
    signals = {name: rng.normal(1000, 20, (length, int(mask.sum()))).astype("f4") for name, length in frames.items()}
    make_shard_set(tmp_path, signals=signals)
    with ShardSet(tmp_path) as shard_set:
        regions = RegionSeries(shard_set, geometric_parcels(shard_set), tmp_path)
        regions.cache.ensure(range(2), Ranks(), 1)
        problem = Problem(
            cohort=open_cohort(shard_set, "group"),
            target=GROUP,
            y_train={"0": 0.0},
            y_val={},
            regions=regions,
            threads=1,
            seed=0,
        )
        found = subject_edges(problem, ("0",))[0]
        upper = np.triu_indices(regions.num_parcels, k=1)
        single = [np.arctanh(np.corrcoef(regions.of_run(run).T)[upper]) for run in range(2)]
        assert found == pytest.approx(0.25 * single[0] + 0.75 * single[1], abs=1e-4)
        (covariance,) = subject_covariances(problem, ("0",))
    assert np.linalg.eigvalsh(covariance).min() > 0 and np.trace(covariance) == pytest.approx(len(covariance))


def test_tangent_vectors_are_nilearns(make_study: Callable[..., Any]) -> None:
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import LedoitWolf

    study = make_study(num_subjects=20)
    with _problem(study, GROUP) as problem:
        fit, score_on = study.split.train, study.split.test
        series = {who: problem.series(who)[0][1].astype(np.float64) for who in (*fit, *score_on)}
        space = TangentSpace().fit(subject_covariances(problem, fit))
        found = space.transform(subject_covariances(problem, score_on))
    standard = {who: (values - values.mean(axis=0)) / values.std(axis=0) for who, values in series.items()}
    measure = ConnectivityMeasure(LedoitWolf(), kind="tangent", vectorize=True, standardize=False)
    measure.fit([standard[who] for who in fit])
    assert found == pytest.approx(measure.transform([standard[who] for who in score_on]), abs=1e-8)


def test_the_kernel_is_the_correlation_of_features() -> None:
    features = np.random.default_rng(0).normal(3.0, 1.0, size=(8, 30))
    kernel = CorrelationKernel("regression", 0).prepare(features).kernel
    assert kernel == pytest.approx(np.corrcoef(features), abs=1e-12)


def test_kernel_ridge_is_scikit_learns_on_that_kernel() -> None:
    from sklearn.kernel_ridge import KernelRidge

    rng = np.random.default_rng(0)
    features, others, y_fit = rng.normal(size=(12, 30)), rng.normal(size=(5, 30)), rng.normal(50.0, 5.0, size=12)
    learner = CorrelationKernel("regression", 0)
    prepared = learner.prepare(features)
    found = learner.fit(prepared, y_fit, 0.1)(others)
    unit = [(rows - rows.mean(axis=1, keepdims=True)) for rows in (features, others)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    plain = KernelRidge(alpha=0.1 * prepared.size * 12, kernel="linear").fit(unit[0], y_fit - y_fit.mean())
    assert found[:, 0] == pytest.approx(y_fit.mean() + plain.predict(unit[1]), abs=1e-9)


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
    learner = Ridge() if kind == "regression" else Logistic(kind, 3)
    found = choose_penalty(learner, features, y_fit, kind, ["one"] * 2, 0)
    output = found.predict(features)
    assert np.isfinite(output).all() and output.shape == (2, 3 if kind == "multiclass" else 1)
    assert "too few subjects" in found.note and np.isnan(found.held_out).all()
    if kind == "multiclass":
        assert output.argmax(axis=1).tolist() == [0, 2], "the level that nobody has is never chosen"
    else:
        assert output[1, 0] > output[0, 0]


def test_rotation_does_not_change_the_model() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features, y_fit = rng.normal(size=(12, 40)), (np.arange(12) % 2).astype(float)
    found = choose_penalty(Logistic("binary", 2), features, y_fit, "binary", ["one"] * 12, 0)
    assert found.note.startswith("penalty 1,"), "one family leaves nothing to choose by"
    centred = features - features.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=1).mean())
    plain = LogisticRegression(class_weight="balanced", max_iter=2000, tol=1e-8).fit(centred / size, y_fit)
    assert found.predict(features)[:, 0] == pytest.approx(plain.decision_function(centred / size), abs=1e-3)


def test_the_penalty_is_the_one_that_scikit_learn_would_choose() -> None:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(1)
    y_fit = (np.arange(60) % 2).astype(float)
    features = rng.normal(size=(60, 20)) + 0.5 * y_fit[:, None] * (np.arange(20) < 4)
    found = choose_penalty(Logistic("binary", 2), features, y_fit, "binary", None, 3)
    losses = {}
    for penalty in np.logspace(-4, 4, 9):
        truth, said = [], []
        for fit, held in inner_folds(y_fit, "binary", None, seed=3):
            axes = PCA(svd_solver="full").fit(features[fit])
            size = np.sqrt(axes.explained_variance_.sum() * (len(fit) - 1) / len(fit))
            model = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=5000)
            model.fit(axes.transform(features[fit]) / size, y_fit[fit])
            truth += list(y_fit[held])
            said += list(model.predict_proba(axes.transform(features[held]) / size)[:, 1])
        losses[penalty] = log_loss(truth, said)
    best = min(losses, key=lambda penalty: losses[penalty])
    assert found.note.startswith(f"penalty {best:g},")


def test_a_scaler_learns_nothing_from_the_held_out() -> None:
    """A wild subject changes the held-out outputs of every fold but its own, where it is held out itself."""
    from sklearn.preprocessing import StandardScaler

    class One(Ridge):
        penalties = (1.0,)

    rng = np.random.default_rng(0)
    features, y_fit = rng.normal(size=(40, 10)), rng.normal(size=40)
    wild = features.copy()
    wild[7] *= 1000.0
    plain, changed = (
        choose_penalty(One(), rows, y_fit, "regression", None, 0, StandardScaler()).held_out[:, 0]
        for rows in (features, wild)
    )
    (fold,) = [held for _, held in inner_folds(y_fit, "regression", None, seed=0) if 7 in held]
    others = fold[fold != 7]
    elsewhere = np.setdiff1d(np.arange(40), fold)
    assert len(others) and changed[others] == pytest.approx(plain[others], abs=1e-12)
    assert (np.abs(changed[elsewhere] - plain[elsewhere]) > 1e-3).mean() > 0.9
