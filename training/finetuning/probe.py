"""A linear probe in closed form: the first result of phase 3, and where its head starts.

Ridge regression of the target on subject-averaged features, once for each choice of what to look at: which groups of
features (static ones drown a dynamic signal and the other way round), and how many leading latent dimensions. With
tens to thousands of subjects the data cannot tell the best choice from its neighbours, and the winner of so many is
partly the luckiest. So choices are not picked but stacked (Breiman 1996, "Stacked regressions"): the non-negative
combination of their leave-one-subject-out predictions that fits the target best; most get no weight. A sum of linear
probes is a linear probe. Ridge gives leave-one-out predictions exactly without refitting.

Shapes: S subject, F feature, K output, C choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.networks.pooling import FeatureGroup

Floats = NDArray[np.float64]

PENALTIES = tuple(np.logspace(-5, 3, 17).tolist())
MOST_SUBJECTS = 2000
"""Choices are compared on so many subjects at most, evenly spread; those with weight are then fitted on all."""
ORDER = ("anti1", "anti2", "anti3")
BUNDLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "static": (("sym0",),),
    "symmetric": (("sym0",), ("sym1", "sym2")),
    "order1": (("anti1",),),
    "order2": (("anti1", "anti2"),),
    "order": (ORDER,),
    "static+order2": (("sym0",), ("anti1", "anti2")),
    "static+order": (("sym0",), ORDER),
    "all": (("mean",), ("sym0",), ("sym1", "sym2"), ORDER),
}
"""Groups of moment features to look at; each bundle in a choice is scaled to the same total variance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A fitted probe; `features @ weight.T + bias` predicts.

    Attributes
    ----------
    weight, bias
        `(K, F)` on raw features, zero for those not looked at; `(K,)`.
    shares
        Choices that have a weight, the largest first: a key of `BUNDLES` and a number of leading dimensions
        ("order2@8"), and its share of the sum of weights.
    loo_error
        Mean squared leave-one-out error, against 1 for a constant on a target of unit variance.
    loo_score
        `(S, K)`, each subject predicted by fits without it (the weights of the choices have seen it).
    """

    weight: Floats
    bias: Floats
    shares: dict[str, float]
    loo_error: float
    loo_score: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """One set of features: columns and scale of each bundle, and the penalty that leave-one-out prefers."""

    name: str
    columns: NDArray[np.int64]
    scale: Floats
    penalty: float
    loo_score: Floats


def fit_probe(features_SF: Floats, target_SK: Floats, groups: Sequence[FeatureGroup]) -> Probe:
    """Fit every choice, and combine them.

    Parameters
    ----------
    features_SF
        Subject-averaged features of the training subjects.
    target_SK
        +-1 for classes (one column for binary, one-vs-rest columns else), z-scores for a measure.
    groups
        What the columns are.
    """
    num_subjects = len(target_SK)
    some = np.arange(min(num_subjects, MOST_SUBJECTS)) * num_subjects // min(num_subjects, MOST_SUBJECTS)
    choices = [
        _compare(features_SF[some], target_SK[some], groups, name, bundles, dimensions)
        for name, bundles in _choices(groups).items()
        for dimensions in _leading(groups)
    ]
    stack_C = _stack([choice.loo_score for choice in choices], target_SK[some])
    weight = np.zeros((target_SK.shape[1], features_SF.shape[1]))
    bias, loo_score = target_SK.mean(0), target_SK.mean(0) + np.zeros_like(target_SK)
    for share, choice in zip(stack_C, choices, strict=True):
        if share > 0:
            scaled = features_SF[:, choice.columns] * choice.scale
            part_FK, part_K, part_SK = fit_ridge(scaled, target_SK, choice.penalty)
            weight[:, choice.columns] += share * (part_FK * choice.scale[:, None]).T
            bias = bias + share * (part_K - part_SK.mean(0))
            loo_score = loo_score + share * (part_SK - part_SK.mean(0))
    shares = {choice.name: float(share / stack_C.sum()) for share, choice in zip(stack_C, choices, strict=True)}
    return Probe(
        weight=weight,
        bias=bias,
        shares={name: share for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share > 0},
        loo_error=float(np.mean((loo_score - target_SK) ** 2)),
        loo_score=loo_score,
    )


def fit_ridge(x_SF: Floats, y_SK: Floats, penalty: float) -> tuple[Floats, Floats, Floats]:
    """Ridge with an unpenalised intercept: weights `(F, K)`, intercept `(K,)`, leave-one-out predictions `(S, K)`."""
    x_mean, y_mean = x_SF.mean(0), y_SK.mean(0)
    x, y = x_SF - x_mean, y_SK - y_mean
    if len(x) <= x.shape[1]:
        inverse_SS = np.linalg.inv(x @ x.T + penalty * np.eye(len(x)))
        weight = x.T @ (inverse_SS @ y)
        leverage_S = 1 - penalty * np.diag(inverse_SS)
    else:
        inverse_FF = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
        weight = inverse_FF @ (x.T @ y)
        leverage_S = np.einsum("sf,fg,sg->s", x, inverse_FF, x, optimize=True)
    left_out = y_SK - (y - x @ weight) / (1 - leverage_S - 1 / len(y))[:, None]
    return weight, y_mean - x_mean @ weight, left_out


def _stack(score_CSK: Sequence[Floats], target_SK: Floats) -> Floats:
    """Non-negative weight of each choice's leave-one-out predictions; the best one alone where none helps."""
    from scipy.optimize import nnls

    centred = [(score - score.mean(0)).ravel() for score in score_CSK]
    weight_C, _ = nnls(np.stack(centred, axis=1), (target_SK - target_SK.mean(0)).ravel())
    if not weight_C.any():
        weight_C[int(np.argmin([np.mean((score - target_SK) ** 2) for score in score_CSK]))] = 1.0
    return np.asarray(weight_C)


class _Ridge:
    """One eigendecomposition of the smaller Gram matrix, then leave-one-out predictions at any penalty for little."""

    def __init__(self, x_SF: Floats, y_SK: Floats) -> None:
        x, self.y_mean = x_SF - x_SF.mean(0), y_SK.mean(0)
        self.y = y_SK - self.y_mean
        num_subjects, num_features = x_SF.shape
        if num_subjects <= num_features:
            values, self.left = np.linalg.eigh(x @ x.T)
        else:
            values, right = np.linalg.eigh(x.T @ x)
            self.left = x @ right / np.sqrt(np.maximum(values, 1e-12 * max(values[-1], 1e-300)))
        self.values = np.maximum(values, 0.0)
        self.projected = self.left.T @ self.y

    def leave_one_out(self, penalty: float) -> Floats:
        shrink = self.values / (self.values + penalty)
        fitted = self.left @ (shrink[:, None] * self.projected)
        leverage = (self.left**2 @ shrink) + 1 / len(self.y)
        residual = (self.y - fitted) / (1 - leverage)[:, None]
        return self.y + self.y_mean - residual


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


def _compare(
    x_SF: Floats,
    y_SK: Floats,
    groups: Sequence[FeatureGroup],
    name: str,
    bundles: tuple[tuple[str, ...], ...],
    dimensions: int,
) -> _Choice:
    """The penalty of least leave-one-out error for one set of features, and the predictions it gives."""
    columns = [_columns(groups, bundle, dimensions) for bundle in bundles]
    scale = np.concatenate([np.full(len(c), _bundle_scale(x_SF[:, c])) for c in columns])
    ridge = _Ridge(x_SF[:, np.concatenate(columns)] * scale, y_SK)
    penalties = [penalty * len(columns) for penalty in PENALTIES]
    scores = [ridge.leave_one_out(penalty) for penalty in penalties]
    best = int(np.argmin([np.mean((score - y_SK) ** 2) for score in scores]))
    return _Choice(
        name=f"{name}@{dimensions}",
        columns=np.concatenate(columns),
        scale=scale,
        penalty=penalties[best],
        loo_score=scores[best],
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
