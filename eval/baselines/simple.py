"""What a reviewer asks for beside a deep model: simple models on the same subjects and the same split.

Every baseline has a `key`, a `label`, says what it `sees`, and turns a `Problem` into outputs of the subjects
to score. It is fitted on the subjects of `Problem.fit` and sees nothing of those to score but their features.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eval.baselines.linear import Readout, fit_readout
from eval.cohort import Cohort, confound_features
from eval.parcels.parcels import Parcels, subject_connectivity
from eval.scoring.metrics import Floats
from eval.targets import Target

log = logging.getLogger(__name__)

IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Who is fitted on, who is scored, and what is known of them.

    Attributes
    ----------
    cohort : Cohort
        Runs, families, confounds.
    target : Target
        What is predicted.
    y_fit : mapping of str to float
        The target of each subject to fit on; sorted labels are the order of rows.
    to_score : tuple of str
        Subjects to predict.
    threads : int
        Readers at the same time.
    seed : int
        For inner folds.
    """

    cohort: Cohort
    target: Target
    y_fit: Mapping[str, float]
    to_score: tuple[str, ...]
    threads: int
    seed: int

    @property
    def to_fit(self) -> tuple[str, ...]:
        """Subjects to fit on, sorted."""
        return tuple(sorted(self.y_fit))

    def readout(self, fit: Floats, score: Floats) -> Readout:
        """A penalised linear model on features of `to_fit` and `to_score`, rows in their order."""
        return fit_readout(
            fit,
            np.array([self.y_fit[subject] for subject in self.to_fit]),
            score,
            self.target.kind,
            num_levels=len(self.target.levels),
            families=self.cohort.family_names(self.to_fit),
            seed=self.seed,
        )


class Baseline(Protocol):
    """One simple model."""

    key: str
    label: str
    sees: str

    def fit_predict(self, problem: Problem) -> Readout:
        """Outputs of `problem.to_score`, shape (M, K), and a note on what was fitted."""
        ...


class Majority:
    """The commonest class, or the mean: what a model gets that has learnt nothing about the brain."""

    key = "majority"

    def __init__(self, kind: str) -> None:
        self.label = "Mean of the target" if kind == "regression" else "Class frequencies"
        self.sees = "nothing"

    def fit_predict(self, problem: Problem) -> Readout:
        """The same output for everyone."""
        y_fit = np.array([problem.y_fit[subject] for subject in problem.to_fit])
        num_scored = len(problem.to_score)
        if problem.target.kind == "regression":
            return Readout(output=np.full((num_scored, 1), y_fit.mean()), note="mean of the fitted subjects")
        shares = np.bincount(y_fit.astype(np.int64), minlength=len(problem.target.levels)) / y_fit.size
        logits = np.log(np.clip(shares, 1e-6, 1.0))
        row = logits[1:] - logits[:1] if problem.target.kind == "binary" else logits
        return Readout(output=np.tile(row, (num_scored, 1)), note="class frequencies of the fitted subjects")


class Confounds:
    """Motion, data quality, site, age, sex: everything that is known without looking at the brain."""

    key = "confounds"
    label = "Confounds only"
    sees = "motion, signal-to-noise, frames, site, age, sex"

    def fit_predict(self, problem: Problem) -> Readout:
        """Linear model on the standardised confounds that there are."""
        fit, names = confound_features(problem.cohort, problem.to_fit, problem.to_fit)
        score, _ = confound_features(problem.cohort, problem.to_score, problem.to_fit)
        if not names:
            guess = Majority(problem.target.kind).fit_predict(problem)
            return Readout(output=guess.output, note="no confound varies among the fitted subjects")
        readout = problem.readout(*_standardised(fit, score))
        return Readout(output=readout.output, note=f"{', '.join(names)}; {readout.note}")


class MeanImage:
    """The mean volume over time: anatomy, coil profile and coverage, no dynamics."""

    key = "mean_image"
    label = "Mean image (anatomy)"
    sees = "each voxel's mean over time, relative to the mean over the mask"

    def fit_predict(self, problem: Problem) -> Readout:
        """Linear model on the principal components of the fitted subjects' mean images."""
        from sklearn.decomposition import IncrementalPCA
        from sklearn.utils import gen_batches

        size = min(len(problem.to_fit), IMAGES_AT_ONCE)
        components = IncrementalPCA(n_components=min(size, problem.cohort.shard_set.num_voxels))
        for batch in gen_batches(len(problem.to_fit), IMAGES_AT_ONCE, min_batch_size=size):
            components.partial_fit(_mean_images(problem.cohort, problem.to_fit[batch]))
        projected = [
            np.concatenate(
                [
                    components.transform(_mean_images(problem.cohort, subjects[batch]))
                    for batch in gen_batches(len(subjects), IMAGES_AT_ONCE)
                ]
            ).astype(np.float64)
            for subjects in (problem.to_fit, problem.to_score)
        ]
        readout = problem.readout(*projected)
        note = f"{components.n_components_} principal components; {readout.note}"
        return Readout(output=readout.output, note=note)


class Connectivity:
    """Static functional connectivity with a linear model: the standard of the field."""

    key = "fc"

    def __init__(self, parcels: Parcels, kind: str) -> None:
        self.parcels = parcels
        self.label = "FC + ridge" if kind == "regression" else "FC + logistic"
        self.sees = f"static correlations of {parcels.description}"

    def fit_predict(self, problem: Problem) -> Readout:
        """Linear model on the standardised Fisher z of all pairs of parcels."""
        cohort = problem.cohort
        subjects = problem.to_fit + problem.to_score
        edges = subject_connectivity(
            cohort.shard_set, [cohort.runs[subject] for subject in subjects], self.parcels, problem.threads
        )
        num_fit = len(problem.to_fit)
        readout = problem.readout(*_standardised(edges[:num_fit], edges[num_fit:]))
        return Readout(output=readout.output, note=f"{edges.shape[1]} edges; {readout.note}")


def all_baselines(kind: str, parcels: Parcels) -> tuple[Baseline, ...]:
    """The baselines of the report, from the weakest to the one to beat."""
    return (Majority(kind), Confounds(), MeanImage(), Connectivity(parcels, kind))


def _standardised(fit: Floats, score: Floats) -> tuple[Floats, Floats]:
    """Both, scaled by mean and SD of the fitted subjects."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fit)
    return scaler.transform(fit), scaler.transform(score)


def _mean_images(cohort: Cohort, subjects: tuple[str, ...]) -> np.ndarray:
    """Mean image of each subject over its runs, divided by its mean size over the mask; float32 (N, V)."""
    images = np.zeros((len(subjects), cohort.shard_set.num_voxels), dtype=np.float32)
    for row, subject in zip(images, subjects, strict=True):
        for run in cohort.runs[subject]:
            row += cohort.shard_set.statistics(run).mean * cohort.shard_set.runs[run].num_frames
        row /= float(np.abs(row).mean()) or 1.0
    return images
