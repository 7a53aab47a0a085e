"""Static functional connectivity of region series: edges with a linear model, a kernel, or in tangent space."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.baselines.linear import PENALTIES, Logistic, Predict, fit_on
from eval.baselines.protocol import Fitted, Problem
from eval.parcels.parcels import connectivity
from eval.scoring.metrics import Floats, Kind

REFERENCE_SUBJECTS = 1000
"""The tangent point is the mean of so many fitted subjects at most, spread over them."""
POWERS = (-4.0, 4.0)
"""Natural logarithms between which the factor of `as_logits` is sought, for scores of SD 1."""


def subject_edges(problem: Problem, subjects: tuple[str, ...]) -> Floats:
    """Fisher z of the correlations of all pairs of parcels, shape (N, P * (P - 1) / 2).

    The mean over a subject's runs, weighted by frames.
    """

    def one(subject: str) -> Floats:
        series = [values for _, values in problem.series(subject)]
        edges = [connectivity(values) for values in series]
        return np.asarray(np.average(edges, axis=0, weights=[len(values) for values in series]))

    with ThreadPoolExecutor(problem.threads) as pool:
        return np.stack(list(pool.map(one, subjects)))


def subject_covariances(problem: Problem, subjects: tuple[str, ...]) -> Floats:
    """Covariance of the standardised region series of all runs of a subject together, shape (N, P, P).

    Shrunk by Ledoit and Wolf's estimate, so that it is positive definite however short the runs are.
    """
    from sklearn.covariance import ledoit_wolf

    def one(subject: str) -> Floats:
        runs = [_standardised(values) for _, values in problem.series(subject)]
        return np.asarray(ledoit_wolf(np.concatenate(runs), assume_centered=True)[0])

    with ThreadPoolExecutor(problem.threads) as pool:
        return np.stack(list(pool.map(one, subjects)))


def _standardised(values: npt.NDArray[Any]) -> Floats:
    """Each parcel with mean 0 and SD 1; 0 where it is constant."""
    centred = np.asarray(values, dtype=np.float64) - values.mean(axis=0)
    spread = centred.std(axis=0)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-6))


class Connectivity:
    """Edges with a linear model: the standard of the field."""

    key = "fc"

    def __init__(self, kind: Kind) -> None:
        self.label = "FC + ridge" if kind == "regression" else "FC + logistic"
        self.sees = "static correlations of region series"

    def fit(self, problem: Problem) -> Fitted:
        """Linear model on the standardised Fisher z of all pairs of parcels."""
        from sklearn.preprocessing import StandardScaler

        fitted = fit_on(problem, lambda subjects: subject_edges(problem, subjects), StandardScaler())
        return _noted(problem, fitted)


class TangentConnectivity:
    """Covariances in the tangent space of their mean (Varoquaux et al. 2010) with a linear model."""

    key = "fc_tangent"

    def __init__(self, kind: Kind) -> None:
        self.label = "Tangent FC + ridge" if kind == "regression" else "Tangent FC + logistic"
        self.sees = "static covariances of region series, in tangent space"

    def fit(self, problem: Problem) -> Fitted:
        """Linear model on what nilearn makes of the covariances, the tangent point anew in each inner fold."""
        fitted = fit_on(problem, lambda subjects: subject_covariances(problem, subjects), TangentSpace())
        return _noted(problem, fitted)


class KernelConnectivity:
    """Edges with kernel ridge regression; the kernel is the correlation of two subjects' edges (He et al. 2020)."""

    key = "fc_krr"
    label = "FC + kernel ridge"
    sees = "static correlations of region series"

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def fit(self, problem: Problem) -> Fitted:
        """Kernel ridge on values, or on class indicators whose scores then become logits."""
        learner = CorrelationKernel(self.kind, len(problem.target.levels))
        fitted = fit_on(problem, lambda subjects: subject_edges(problem, subjects), learner=learner)
        if self.kind != "regression":
            fitted = as_logits(problem, fitted)
        return _noted(problem, fitted)


def _noted(problem: Problem, fitted: Fitted) -> Fitted:
    return Fitted(
        note=f"{problem.regions.description}; {fitted.note}", predict=fitted.predict, held_out=fitted.held_out
    )


class TangentSpace:
    """Covariances, shape (N, P, P), to vectors, shape (N, P * (P + 1) / 2), around the mean of those fitted on."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """None, for `sklearn.base.clone`."""
        return {}

    def fit(self, covariances: Floats) -> TangentSpace:
        """Find the geometric mean."""
        from nilearn.connectome import ConnectivityMeasure

        step = -(-len(covariances) // REFERENCE_SUBJECTS)
        measure = ConnectivityMeasure(_Given(), kind="tangent", vectorize=True, standardize=False)
        with warnings.catch_warnings():
            # the mean need not converge to 1e-7 to be a good point
            warnings.filterwarnings("ignore", message="Maximum number of iterations")
            self.measure_ = measure.fit(list(covariances[::step]))
        return self

    def transform(self, covariances: Floats) -> Floats:
        """Vectors around it."""
        pair = covariances if len(covariances) > 1 else np.repeat(covariances, 2, axis=0)
        return np.asarray(self.measure_.transform(list(pair)))[: len(covariances)]


class _Given:
    """A 'covariance estimator' for nilearn whose input is the covariance itself."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {}

    def fit(self, covariance: Floats) -> _Given:
        self.covariance_ = covariance
        return self


@dataclass(frozen=True)
class _Kernel:
    rows: Floats
    kernel: Floats
    size: float


class CorrelationKernel:
    """Kernel ridge regression with the correlation of two subjects' features as kernel.

    Classes are regressed as +1 and -1 (one column a class unless there are two), each class weighing the same.
    """

    penalties = tuple(penalty / 100 for penalty in PENALTIES)

    def __init__(self, kind: Kind, num_levels: int) -> None:
        self.kind, self.num_levels = kind, num_levels

    def prepare(self, features: Floats) -> _Kernel:
        """The kernel matrix, and its unit: the mean square distance from the mean."""
        rows = _unit(features)
        kernel = rows @ rows.T
        return _Kernel(rows, kernel, float(np.trace(kernel) / len(kernel) - kernel.mean()) or 1.0)

    def fit(self, prepared: _Kernel, y_fit: Floats, penalty: float) -> Predict:
        """Dual weights for one penalty; the weighted mean of the target is put aside."""
        from sklearn.kernel_ridge import KernelRidge

        codes, weights = self._codes(y_fit), self._weights(y_fit)
        mean = np.average(codes, axis=0, weights=weights)
        model = KernelRidge(alpha=penalty * prepared.size * len(y_fit), kernel="precomputed")
        model.fit(prepared.kernel, codes - mean, sample_weight=weights)
        return lambda rows: mean + np.asarray(model.predict(_unit(rows) @ prepared.rows.T))

    def loss(self, y_true: Floats, output: Floats) -> float:
        """Mean squared error, classes weighing the same."""
        errors = np.mean((output - self._codes(y_true)) ** 2, axis=1)
        return float(np.average(errors, weights=self._weights(y_true)))

    def _codes(self, y_true: Floats) -> Floats:
        if self.kind == "regression":
            return y_true[:, None]
        if self.kind == "binary":
            return 2.0 * y_true[:, None] - 1.0
        return np.asarray(2.0 * (y_true[:, None] == np.arange(self.num_levels)) - 1.0)

    def _weights(self, y_true: Floats) -> Floats:
        from sklearn.utils.class_weight import compute_sample_weight

        if self.kind == "regression":
            return np.ones(len(y_true))
        return np.asarray(compute_sample_weight("balanced", y_true))


def _unit(features: Floats) -> Floats:
    """Each row centred and of length 1, so that products of rows are correlations."""
    centred = features - features.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=length > 0))


def as_logits(problem: Problem, fitted: Fitted) -> Fitted:
    """Scores times the one number that makes the held-out ones the best logits (temperature scaling, Guo et al. 2017).

    The order of subjects stays as it is. Where too few subjects were held out, the scores do too.
    """
    from scipy.optimize import minimize_scalar

    subjects = tuple(fitted.held_out)
    if not subjects:
        return fitted
    scores, truth = np.stack([fitted.held_out[subject] for subject in subjects]), problem.truth(subjects)
    judge = Logistic(problem.target.kind, len(problem.target.levels))
    unit = float(scores.std()) or 1.0
    found = minimize_scalar(lambda power: judge.loss(truth, scores * np.exp(power) / unit), bounds=POWERS)
    factor = float(np.exp(found.x)) / unit
    return Fitted(
        note=f"{fitted.note}; scores scaled to logits by the held-out ones",
        predict=lambda wanted: factor * fitted.predict(wanted),
        held_out={subject: factor * score for subject, score in fitted.held_out.items()},
    )
