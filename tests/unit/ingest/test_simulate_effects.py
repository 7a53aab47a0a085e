"""Each planted effect lies where it is said to lie, and nowhere else.

Classifiers are ridge logistic regressions with families kept whole; an AUROC is the mean over folds (pooled scores
are biased), then over cohorts of different seeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.linalg import expm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ingest.simulate.anatomy import Anatomy, load_anatomy, mean_image, smooth, smoothed_sd
from ingest.simulate.cohort import make_cohort
from ingest.simulate.config import GROUPS, SimulateConfig
from ingest.simulate.regions import (
    SIGNAL_PERCENT,
    Population,
    haemodynamic_response,
    make_population,
    region_series,
    rotation,
    subject_covariance,
)
from ingest.simulate.run import simulate

NUM_SUBJECTS = 100
SEEDS = range(8)
CHANCE = (0.44, 0.56)  # 0.5 +- 2.5 standard errors (0.07 / sqrt(8), from 40 cohorts without effects)

Feature = Callable[[NDArray], NDArray]


def config_of(**flags: int | float) -> SimulateConfig:
    defaults = {"subjects": NUM_SUBJECTS, "voxel_mm": 8, "effect_fc": 0.0, "workers": 1}
    return SimulateConfig(out=Path("unused"), **{**defaults, **flags})


@functools.cache
def shared() -> tuple[Anatomy, Population]:
    anatomy = load_anatomy(config_of())
    return anatomy, make_population(anatomy.centres_mm_R3)


def static_fc(series_TR: NDArray) -> NDArray:
    upper = np.triu_indices(series_TR.shape[1], 1)
    return np.arctanh(np.corrcoef(series_TR.T)[upper])


def antisymmetric_lag(series_TR: NDArray) -> NDArray:
    z = (series_TR - series_TR.mean(axis=0)) / series_TR.std(axis=0)
    upper = np.triu_indices(z.shape[1], 1)
    lagged = [z[k:].T @ z[:-k] / len(z) for k in (1, 2)]
    return np.concatenate([(c - c.T)[upper] for c in lagged])


def mean(series_TR: NDArray) -> NDArray:
    return series_TR.mean(axis=0)


def variance(series_TR: NDArray) -> NDArray:
    return series_TR.var(axis=0)


def auroc(features: NDArray, is_patient: NDArray, family: NDArray) -> float:
    scores = []
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for train, test in folds.split(features, is_patient, family):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
        decision = model.fit(features[train], is_patient[train]).decision_function(features[test])
        scores.append(roc_auc_score(is_patient[test], decision))
    return float(np.mean(scores))


def mean_aurocs(*features: Feature, **effects: float) -> list[float]:
    """AUROC of each feature of the region series, averaged over cohorts."""
    _, population = shared()
    scores = []
    for seed in SEEDS:
        config = config_of(seed=seed, **effects)
        cohort = make_cohort(config)
        is_patient = np.array([s.group == "patient" for s in cohort])
        family = np.array([s.family for s in cohort])
        series = [region_series(config, population, s) for s in cohort]
        scores.append([auroc(np.array([f(x) for x in series]), is_patient, family) for f in features])
    return np.mean(scores, axis=0).tolist()


def mean_image_auroc(effect_anatomy: float) -> float:
    anatomy, _ = shared()
    scores = []
    for seed in SEEDS:
        config = config_of(seed=seed, effect_anatomy=effect_anatomy)
        cohort = make_cohort(config)
        images = np.array([mean_image(config, anatomy, s) for s in cohort])
        is_patient = np.array([s.group == "patient" for s in cohort])
        scores.append(auroc(images, is_patient, np.array([s.family for s in cohort])))
    return float(np.mean(scores))


def is_chance(score: float) -> bool:
    return CHANCE[0] < score < CHANCE[1]


def test_dynamics_effect_is_in_the_lags_and_in_nothing_static():
    lag, *static = mean_aurocs(antisymmetric_lag, static_fc, mean, variance, effect_dynamics=0.6)
    assert lag > 0.9
    assert all(map(is_chance, static)), static


def test_fc_effect_is_in_static_fc_only():
    fc, *others = mean_aurocs(static_fc, antisymmetric_lag, mean, variance, effect_fc=0.6)
    assert fc > 0.9
    assert all(map(is_chance, others)), others


def test_without_effects_nothing_separates():
    scores = mean_aurocs(static_fc, antisymmetric_lag, mean, variance)
    assert all(map(is_chance, scores)), scores


def test_anatomy_effect_is_in_the_mean_image():
    assert mean_image_auroc(0.2) > 0.9
    assert is_chance(mean_image_auroc(0.0))


def test_siblings_are_more_alike_than_strangers():
    _, population = shared()
    config = config_of(families=1.0)
    cohort = make_cohort(config)
    upper = np.triu_indices(config.parcels, 1)
    deviations = np.array([subject_covariance(config, population, s)[upper] for s in cohort])
    likeness = np.corrcoef(deviations - deviations.mean(axis=0))
    family = np.array([s.family for s in cohort])
    siblings = (family[:, None] == family[None]) & ~np.eye(len(cohort), dtype=bool)
    assert 0.4 < likeness[siblings].mean() < 0.6  # half of the variance is shared
    assert abs(likeness[~siblings & ~np.eye(len(cohort), dtype=bool)].mean()) < 0.05


def test_sites_differ_by_the_offset_in_gain():
    anatomy, _ = shared()
    config = config_of(site_offset=0.2)
    cohort = make_cohort(config)
    brightness = pd.Series([mean_image(config, anatomy, s).mean() for s in cohort])
    by_site = brightness.groupby([s.site for s in cohort]).mean()
    assert by_site["site2"] / by_site["site1"] == pytest.approx(1.1 / 0.9, rel=0.01)


def test_rotation_is_the_exponential_of_an_antisymmetric_matrix():
    _, population = shared()
    generator = sum(np.outer(v, u) - np.outer(u, v) for u, v in population.planes_P2R)
    np.testing.assert_allclose(rotation(population, 0.7), expm(0.7 * generator), atol=1e-12)


def long_series(group: str, **effects: float) -> tuple[NDArray, NDArray]:
    """One subject's series of 100,000 frames and its covariance S, as a member of either group."""
    _, population = shared()
    config = config_of(frames=100_000, **effects)
    subject = dataclasses.replace(make_cohort(config)[0], group=group)
    return region_series(config, population, subject), subject_covariance(config, population, subject)


def test_long_series_have_the_prescribed_covariance():
    series, prescribed = long_series("patient", effect_fc=0.6)
    covariance = np.cov(series.T) / SIGNAL_PERCENT**2
    gain = np.sqrt(np.diag(covariance) - 1)  # white noise adds 1 to each region's own variance
    upper = np.triu_indices(len(gain), 1)
    error = (covariance / np.outer(gain, gain) - prescribed)[upper]
    assert np.sqrt((error**2).mean()) < 0.015


def test_groups_of_the_dynamics_effect_differ_in_the_sign_of_the_lags_only():
    (control, _), (patient, _) = (long_series(group, effect_dynamics=0.6) for group in GROUPS)
    np.testing.assert_allclose(static_fc(patient), static_fc(control), atol=0.01)
    np.testing.assert_allclose(variance(patient), variance(control), rtol=0.01)
    lag_of_control, lag_of_patient = antisymmetric_lag(control), antisymmetric_lag(patient)
    assert np.corrcoef(lag_of_control, lag_of_patient)[0, 1] < -0.8


def test_haemodynamic_response_peaks_at_five_seconds_and_undershoots():
    response = haemodynamic_response(0.1)
    assert response.argmax() * 0.1 == pytest.approx(5.0, abs=0.2)
    assert response.min() < 0 < response.max()


def test_smoothed_white_noise_has_the_computed_sd():
    noise = np.random.default_rng(0).standard_normal((40, 40, 40))
    for sigma in (0.4, 1.5):
        assert smooth(noise, sigma).std() == pytest.approx(smoothed_sd(sigma, 3), rel=0.03)


def test_volumes_carry_the_region_series_at_the_stated_tsnr(tmp_path):
    config = config_of(subjects=24, voxel_mm=8, frames=100, effect_fc=0.6, motion=0.0)
    config = SimulateConfig(out=tmp_path / "cohort", workers=2, **config.identity())
    simulate(config)
    anatomy, population = shared()
    atlas = np.asarray(nibabel.load(config.out / "atlas-boldstream_dseg.nii.gz").dataobj)
    labels = atlas[atlas > 0] - 1
    likeness, tsnr = [], []
    for subject in make_cohort(config):
        func = config.out / f"sub-{subject.subject}/func"
        data = np.asarray(nibabel.load(next(func.glob("*bold.nii.gz"))).dataobj, dtype=np.float64)[atlas > 0]
        parcels = np.array([data[labels == parcel].mean(axis=0) for parcel in range(config.parcels)]).T
        wanted = static_fc(region_series(config, population, subject))
        likeness.append(np.corrcoef(static_fc(parcels), wanted)[0, 1])
        tsnr.append(np.median(data.mean(axis=1) / data.std(axis=1)))
    np.testing.assert_array_equal(labels, anatomy.labels_V)
    assert np.mean(likeness) > 0.85  # drift, global signal and thermal noise are the rest
    assert min(tsnr) > 50 and max(tsnr) < 65


def test_jerks_leave_their_mark_in_the_images(tmp_path):
    config = config_of(subjects=2, frames=60, voxel_mm=10, parcels=20, motion=0.1)
    config = SimulateConfig(out=tmp_path / "cohort", workers=1, **config.identity())
    simulate(config)
    tables = [pd.read_csv(p, sep="\t", na_values="n/a") for p in sorted(config.out.rglob("*timeseries.tsv"))]
    table = pd.concat(tables).dropna(subset=["framewise_displacement", "std_dvars"])
    moved = table.framewise_displacement > 1
    assert moved.sum() > 3
    assert table.std_dvars[moved].mean() > 1.1 * table.std_dvars[~moved].mean()
