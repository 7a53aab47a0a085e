"""A linear probe in closed form: the first result of phase 3, and where its head starts.

Ridge regression of the target on subject-averaged features. With tens to thousands of subjects and
thousands of features everything is decided by leave-one-subject-out error, which ridge gives
exactly without refitting: the penalty, which groups of features to use (static ones drown a
dynamic signal and the other way round), and how many leading latent dimensions.

Shapes: S subject, F feature, K output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pooling import FeatureGroup

Floats = NDArray[np.float64]

PENALTIES = tuple(np.logspace(-5, 3, 17).tolist())
ORDER = ("anti1", "anti2", "anti3")
BUNDLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "static": (("sym0",),),
    "symmetric": (("sym0",), ("sym1", "sym2")),
    "order1": (("anti1",),),
    "order": (ORDER,),
    "static+order1": (("sym0",), ("anti1",)),
    "static+order": (("sym0",), ORDER),
    "all": (("mean",), ("sym0",), ("sym1", "sym2"), ORDER),
}
"""Choices for moment features; each bundle in a choice is scaled to the same total variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A fitted probe; `features @ weight.T + bias` predicts.

    Attributes
    ----------
    weight, bias
        `(K, F)` on raw features, zero for those not chosen; `(K,)`.
    features, dimensions, penalty
        What leave-one-out chose: a key of `BUNDLES`, the number of leading dimensions, and the ridge
        penalty relative to a mean squared norm of 1 per bundle.
    loo_error
        Mean squared leave-one-out error, against 1 for a constant on a target of unit variance.
    loo_score
        `(S, K)`, each subject predicted by the fit without it.
    """

    weight: Floats
    bias: Floats
    features: str
    dimensions: int
    penalty: float
    loo_error: float
    loo_score: Floats


def fit_probe(features_SF: Floats, target_SK: Floats, groups: Sequence[FeatureGroup]) -> Probe:
    """Fit every choice and return the one of least leave-one-out error.

    Parameters
    ----------
    features_SF
        Subject-averaged features of the training subjects.
    target_SK
        +-1 for classes (one column for binary, one-vs-rest columns else), z-scores for a measure.
    groups
        What the columns are.
    """
    best: Probe | None = None
    for name, bundles in _choices(groups).items():
        for dimensions in _leading(groups):
            columns = [_columns(groups, bundle, dimensions) for bundle in bundles]
            probe = _fit_choice(features_SF, target_SK, columns, name, dimensions)
            if best is None or probe.loo_error < best.loo_error:
                best = probe
    assert best is not None
    return best


def fit_ridge(x_SF: Floats, y_SK: Floats, penalty: float) -> tuple[Floats, Floats, Floats]:
    """Ridge with an unpenalised intercept: weights `(F, K)`, intercept `(K,)`, leave-one-out predictions `(S, K)`."""
    return _Ridge(x_SF, y_SK).solve(penalty)


class _Ridge:
    """One eigendecomposition of the smaller Gram matrix, then any penalty for little."""

    def __init__(self, x_SF: Floats, y_SK: Floats) -> None:
        self.x_mean, self.y_mean = x_SF.mean(0), y_SK.mean(0)
        self.x, self.y = x_SF - self.x_mean, y_SK - self.y_mean
        num_subjects, num_features = x_SF.shape
        if num_subjects <= num_features:
            values, self.left = np.linalg.eigh(self.x @ self.x.T)
        else:
            values, right = np.linalg.eigh(self.x.T @ self.x)
            self.left = self.x @ right / np.sqrt(np.maximum(values, 1e-12 * max(values[-1], 1e-300)))
        self.values = np.maximum(values, 0.0)
        self.projected = self.left.T @ self.y

    def leave_one_out(self, penalty: float) -> Floats:
        shrink = self.values / (self.values + penalty)
        fitted = self.left @ (shrink[:, None] * self.projected)
        leverage = (self.left**2 @ shrink) + 1 / len(self.y)
        residual = (self.y - fitted) / (1 - leverage)[:, None]
        return self.y + self.y_mean - residual

    def solve(self, penalty: float) -> tuple[Floats, Floats, Floats]:
        # w = X' U (values + penalty)^-1 U' y holds on the span of X whichever Gram matrix was decomposed
        dual = self.left @ (self.projected / (self.values + penalty)[:, None])
        weight = self.x.T @ dual
        return weight, self.y_mean - self.x_mean @ weight, self.leave_one_out(penalty)


def calibrate(score_SK: Floats, target_SK: Floats, sample_weight_S: Floats | None = None) -> tuple[Floats, Floats]:
    """Slope and offset, `(K,)` each, that turn leave-one-out scores into logits, one logistic fit an output.

    A slope is kept positive: scores of a target that cannot be predicted are, left out, slightly
    anticorrelated with it, and a negative slope would turn the model over.
    """
    from sklearn.linear_model import LogisticRegression

    slope, offset = np.ones(score_SK.shape[1]), np.zeros(score_SK.shape[1])
    for k in range(score_SK.shape[1]):
        spread = max(float(score_SK[:, k].std()), 1e-12)
        fit = LogisticRegression(C=1.0).fit(score_SK[:, k : k + 1] / spread, target_SK[:, k] > 0, sample_weight_S)
        slope[k] = max(float(fit.coef_[0, 0]), 0.01) / spread
        offset[k] = float(fit.intercept_[0])
    return slope, offset


def _fit_choice(x_SF: Floats, y_SK: Floats, columns: list[NDArray[np.int64]], name: str, dimensions: int) -> Probe:
    scale = [_bundle_scale(x_SF[:, chosen]) for chosen in columns]
    ridge = _Ridge(np.concatenate([x_SF[:, c] * s for c, s in zip(columns, scale, strict=True)], axis=1), y_SK)
    penalties = [penalty * len(columns) for penalty in PENALTIES]
    errors = [float(np.mean((ridge.leave_one_out(penalty) - y_SK) ** 2)) for penalty in penalties]
    penalty = penalties[int(np.argmin(errors))]
    weight, bias, loo_score = ridge.solve(penalty)
    full = np.zeros((y_SK.shape[1], x_SF.shape[1]))
    full[:, np.concatenate(columns)] = (weight * np.repeat(scale, [len(c) for c in columns])[:, None]).T
    return Probe(
        weight=full,
        bias=bias,
        features=name,
        dimensions=dimensions,
        penalty=penalty,
        loo_error=min(errors),
        loo_score=loo_score,
    )


def _bundle_scale(x_SF: Floats) -> float:
    """Factor that brings the total variance over subjects to 1; 0 for features that do not vary."""
    total = float(x_SF.var(axis=0).sum())
    return total**-0.5 if total > 1e-12 else 0.0


def _choices(groups: Sequence[FeatureGroup]) -> dict[str, tuple[tuple[str, ...], ...]]:
    if len(groups) == 1:
        return {groups[0].name: ((groups[0].name,),)}
    return BUNDLES


def _leading(groups: Sequence[FeatureGroup]) -> list[int]:
    """Numbers of leading dimensions to try: powers of two from 4, and all."""
    everything = max(max(group.order) for group in groups) + 1
    return [2**k for k in range(2, 20) if 2**k < everything] + [everything] if len(groups) > 1 else [everything]


def _columns(groups: Sequence[FeatureGroup], names: Sequence[str], dimensions: int) -> NDArray[np.int64]:
    chosen = []
    for group in groups:
        if group.name in names:
            chosen.append(group.start + np.flatnonzero(np.asarray(group.order) < dimensions))
    return np.concatenate(chosen)
