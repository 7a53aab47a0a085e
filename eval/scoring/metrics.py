"""Subject-level metrics for binary, multi-class and regression targets.

One row is one subject. The values come from scikit-learn and scipy. `nan` means *undefined*: the subjects at
hand do not allow the metric (an AUROC on one class, a correlation with a constant).

Outputs are logits, `(N, 1)` for a binary target (positive: level 1) and `(N, K)` for K levels, or `(N, 1)`
predicted values in the target's own units for regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["binary", "multiclass", "regression"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What a metric is called and which way is better; `chance` is its value for an uninformed model.

    `higher_is_better` is None where neither is: a calibration slope is best at 1.
    """

    key: str
    label: str
    higher_is_better: bool | None
    chance: float | None = None


METRICS: dict[str, tuple[Metric, ...]] = {
    "binary": (
        Metric(key="auroc", label="AUROC", higher_is_better=True, chance=0.5),
        Metric(key="balanced_accuracy", label="Balanced accuracy", higher_is_better=True, chance=0.5),
        Metric(key="accuracy", label="Accuracy", higher_is_better=True),
        Metric(key="f1_macro", label="F1 (macro)", higher_is_better=True),
        Metric(key="brier", label="Brier score", higher_is_better=False),
        Metric(key="ece", label="Calibration error (ECE)", higher_is_better=False),
    ),
    "multiclass": (
        Metric(key="balanced_accuracy", label="Balanced accuracy", higher_is_better=True),
        Metric(key="f1_macro", label="F1 (macro)", higher_is_better=True),
        Metric(key="accuracy", label="Accuracy", higher_is_better=True),
        Metric(key="auroc", label="AUROC (one against rest)", higher_is_better=True, chance=0.5),
        Metric(key="brier", label="Brier score", higher_is_better=False),
        Metric(key="ece", label="Calibration error (ECE)", higher_is_better=False),
    ),
    "regression": (
        Metric(key="mae", label="MAE", higher_is_better=False),
        Metric(key="rmse", label="RMSE", higher_is_better=False),
        Metric(key="r2", label="R²", higher_is_better=True, chance=0.0),
        Metric(key="pearson", label="Pearson r", higher_is_better=True, chance=0.0),
        Metric(key="spearman", label="Spearman ρ", higher_is_better=True, chance=0.0),
        Metric(key="mse_z", label="MSE (z-scored)", higher_is_better=False),
        Metric(key="slope", label="Calibration slope", higher_is_better=None),
    ),
}


def headline(kind: Kind) -> Metric:
    """The metric that a target of this kind is judged by: the first of its list."""
    return METRICS[kind][0]


def as_logits(output: npt.ArrayLike, kind: Kind) -> Floats:
    """Bring outputs to this package's one form (see the module's first lines).

    Parameters
    ----------
    output : array_like, shape (N,), (N, 1) or (N, K)
        Two columns of a binary model become one logit, their difference.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.

    Returns
    -------
    numpy.ndarray, shape (N, 1) or (N, K), float64
    """
    values = np.asarray(output, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if kind == "binary" and values.shape[1] == 2:
        values = values[:, 1:] - values[:, :1]
    if kind != "multiclass" and values.shape[1] != 1:
        raise ValueError(f"a {kind} model gives one output a subject, found {values.shape[1]}")
    return values


def probabilities(output: npt.ArrayLike, kind: Kind) -> Floats:
    """Class probabilities, shape (N, K) (binary: K = 2), of logits of shape (N, 1) or (N, K)."""
    from scipy.special import expit, softmax

    logits = as_logits(output, kind)
    if kind == "binary":
        positive = expit(logits)
        return np.concatenate([1.0 - positive, positive], axis=1)
    return np.asarray(softmax(logits, axis=1), dtype=np.float64)


def decide(output: npt.ArrayLike, kind: Kind, threshold: float = 0.0) -> npt.NDArray[np.int64]:
    """The predicted level of each subject: is the logit above the threshold (binary), the largest (multi-class)."""
    logits = as_logits(output, kind)
    if kind == "binary":
        return np.asarray(logits[:, 0] > threshold, dtype=np.int64)
    return np.asarray(np.argmax(logits, axis=1), dtype=np.int64)


def score(
    y_true: npt.ArrayLike,
    output: npt.ArrayLike,
    kind: Kind,
    *,
    threshold: float = 0.0,
    train_mean: float | None = None,
    train_std: float | None = None,
) -> dict[str, float]:
    """All metrics of one model on one set of subjects, in the order of `METRICS[kind]`.

    Parameters
    ----------
    y_true : array_like, shape (N,)
        Level numbers (0, 1, ...) or values in original units.
    output : array_like, shape (N, K)
        Logits or values, see the module's first lines.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    threshold : float
        Cut of a binary model's logit for accuracies and F1 (`eval.scoring.thresholds`); ranks and probabilities
        do not depend on it.
    train_mean, train_std : float, optional
        Mean and SD of the target over the training subjects: R2 is measured against the mean, the z-scored MSE is in
        units of the SD (default: those of `y_true`).

    Returns
    -------
    dict of str to float
        `nan` where the metric is undefined for these subjects. A macro average and a one-against-rest AUROC are
        taken over the levels that the subjects have. The Brier score of several classes is the sum over classes
        (0 to 2).
    """
    truth = np.asarray(y_true, dtype=np.float64)
    if truth.size == 0:
        return {metric.key: float("nan") for metric in METRICS[kind]}
    if kind == "regression":
        return _score_regression(truth, as_logits(output, kind)[:, 0], train_mean, train_std)
    levels = truth.astype(np.int64)
    values = _score_classes(levels, decide(output, kind, threshold)) | _score_probabilities(levels, output, kind)
    return {metric.key: values[metric.key] for metric in METRICS[kind]}


def _score_classes(truth: npt.NDArray[np.int64], decided: npt.NDArray[np.int64]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    present = np.unique(truth)
    averaged = {"labels": present, "average": "macro", "zero_division": 0.0}
    return {
        "accuracy": float(accuracy_score(truth, decided)),
        "balanced_accuracy": float(recall_score(truth, decided, **averaged)) if present.size > 1 else np.nan,
        "f1_macro": float(f1_score(truth, decided, **averaged)) if present.size > 1 else np.nan,
    }


def _score_probabilities(truth: npt.NDArray[np.int64], output: npt.ArrayLike, kind: Kind) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    from eval.scoring.calibration import calibration_errors

    present = np.unique(truth)
    shares = probabilities(output, kind)
    ranked = as_logits(output, kind) if kind == "binary" else shares
    ranking = {1: ranked[:, 0]} if kind == "binary" else {level: ranked[:, level] for level in present}
    curves = [roc_auc_score(truth == level, by) for level, by in ranking.items()] if present.size > 1 else [np.nan]
    error = np.sum((shares - np.eye(shares.shape[1])[truth]) ** 2, axis=1)
    sure, came_true = confidence(truth, output, kind)
    return {
        "auroc": float(np.mean(curves)),
        "brier": float(np.mean(error)) / (2.0 if kind == "binary" else 1.0),
        "ece": float(calibration_errors(sure, came_true, np.ones((1, truth.size)))[0]),
    }


def confidence(y_true: npt.ArrayLike, output: npt.ArrayLike, kind: Kind) -> tuple[Floats, Floats]:
    """What calibration compares.

    Parameters
    ----------
    y_true : array_like, shape (N,)
        Level numbers.
    output : array_like, shape (N, K)
        Logits.
    kind : {'binary', 'multiclass'}
        Kind of target.

    Returns
    -------
    probability, came_true : numpy.ndarray, shape (N,)
        Binary: the probability of level 1, and whether it is level 1. Multi-class: the probability of the most
        probable level, and whether it is that one.
    """
    truth, shares = np.asarray(y_true, dtype=np.int64), probabilities(output, kind)
    if kind == "binary":
        return shares[:, 1], truth.astype(np.float64)
    return shares.max(axis=1), (shares.argmax(axis=1) == truth).astype(np.float64)


def _score_regression(
    truth: Floats, predicted: Floats, train_mean: float | None, train_std: float | None
) -> dict[str, float]:
    from scipy.stats import linregress, pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    reference = float(np.mean(truth)) if train_mean is None else train_mean
    spread = float(np.std(truth)) if train_std is None else train_std
    total = float(np.sum((truth - reference) ** 2))
    squared = float(mean_squared_error(truth, predicted))
    ranks = truth.size > 1 and np.ptp(predicted) > 0
    varies = ranks and np.ptp(truth) > 0
    return {
        "mae": float(mean_absolute_error(truth, predicted)),
        "rmse": float(np.sqrt(squared)),
        "r2": 1.0 - truth.size * squared / total if total > 0 else np.nan,
        "pearson": float(pearsonr(truth, predicted)[0]) if varies else np.nan,
        "spearman": float(spearmanr(truth, predicted)[0]) if varies else np.nan,
        "mse_z": squared / spread**2 if spread > 0 else np.nan,
        "slope": float(linregress(predicted, truth).slope) if ranks else np.nan,
    }


def subject_score(y_true: npt.ArrayLike, output: npt.ArrayLike, kind: Kind) -> float:
    """One number to choose a checkpoint by, higher is better.

    AUROC (binary), balanced accuracy (multi-class), R2 against the mean of `y_true` (regression). Where the
    validation subjects leave it undefined (all of one class, or of one value), minus the log loss or minus the
    squared error stands in: it is defined for any subjects, so a best checkpoint always exists.

    Parameters
    ----------
    y_true : array_like, shape (N,)
        Level numbers or values, N >= 1.
    output : array_like, shape (N, K)
        Logits or values.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.

    Raises
    ------
    ValueError
        No subjects.
    """
    truth = np.asarray(y_true, dtype=np.float64)
    if truth.size == 0:
        raise ValueError("a score needs at least one subject")
    key = {"binary": "auroc", "multiclass": "balanced_accuracy", "regression": "r2"}[kind]
    value = score(truth, output, kind)[key]
    if np.isfinite(value):
        return value
    if kind == "regression":
        return -float(np.mean((as_logits(output, kind)[:, 0] - truth) ** 2))
    chances = probabilities(output, kind)[np.arange(truth.size), truth.astype(np.int64)]
    return float(np.mean(np.log(np.clip(chances, 1e-12, 1.0))))
