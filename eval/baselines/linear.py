"""Penalised linear readouts, with the penalty chosen by inner cross-validation.

Only the subjects that are fitted on are touched: scaling, rotation, penalty and weights all come from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.scoring.bootstrap import family_blocks
from eval.scoring.metrics import Floats, Kind

PENALTIES = tuple(float(value) for value in np.logspace(-4, 4, 9))
INNER_FOLDS = 5

Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Outputs of a fitted readout, and how its penalty was found."""

    output: Floats
    note: str


def fit_readout(
    fit: Floats,
    y_fit: Floats,
    score: Floats,
    kind: Kind,
    *,
    num_levels: int,
    families: Sequence[str] | None,
    seed: int,
) -> Readout:
    """Logistic regression (balanced classes) or ridge on features of subjects.

    Features are rotated onto their principal axes with none dropped: an L2 penalty does not see rotations,
    and N subjects span at most N axes, so thousands of edges cost no more than N columns.

    Parameters
    ----------
    fit, score : numpy.ndarray, shapes (N, F) and (M, F)
        Features of the subjects to fit on and to score.
    y_fit : numpy.ndarray, shape (N,)
        Level numbers or values.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    num_levels : int
        K; levels that are missing in `y_fit` get a logit far below the others.
    families : sequence of str or None
        Family of each subject of `fit`; inner folds keep families together.
    seed : int
        Shuffles the inner folds.

    Returns
    -------
    Readout
        `output` of shape (M, 1) (binary, regression) or (M, K).
    """
    from sklearn.decomposition import PCA

    rotation = PCA(svd_solver="full").fit(fit)
    axes = rotation.transform(fit)
    size = float(np.sqrt(np.mean(np.sum(axes**2, axis=1)))) or 1.0  # the penalty's unit: a typical subject
    folds = inner_folds(y_fit, kind, families, seed)
    scored = rotation.transform(score) / size
    if kind == "regression":
        return _ridge(axes / size, y_fit, scored, folds)
    return _logistic(axes / size, y_fit, scored, folds, kind, num_levels)


def inner_folds(y_fit: Floats, kind: Kind, families: Sequence[str] | None, seed: int) -> list[Fold]:
    """Stratified, family-grouped folds of the fitted subjects; a fold that lacks a class is left out.

    Empty when there are too few subjects (or families) for any fold.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    blocks = family_blocks(families, y_fit.size)
    num_folds = min(INNER_FOLDS, int(blocks.max(initial=-1)) + 1)
    if kind == "regression":
        splitter = GroupKFold(num_folds, shuffle=True, random_state=seed) if num_folds > 1 else None
    else:
        num_folds = min(num_folds, int(np.unique(y_fit, return_counts=True)[1].min()))
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed) if num_folds > 1 else None
    if splitter is None:
        return []
    folds = list(splitter.split(np.zeros((y_fit.size, 1)), y_fit, blocks))
    if kind == "regression":
        return folds
    levels = set(np.unique(y_fit))
    return [fold for fold in folds if all(set(np.unique(y_fit[part])) == levels for part in fold)]


def _ridge(fit: Floats, y_fit: Floats, score: Floats, folds: list[Fold]) -> Readout:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    penalties = [value * y_fit.size for value in PENALTIES]
    if not folds:
        model = Ridge(float(y_fit.size)).fit(fit, y_fit)
        return Readout(output=model.predict(score)[:, None], note="fixed penalty, too few subjects to choose it")
    search = GridSearchCV(Ridge(), {"alpha": penalties}, cv=folds, scoring="neg_mean_squared_error")
    output = search.fit(fit, y_fit).predict(score)[:, None]
    return Readout(output=output, note=f"penalty {search.best_params_['alpha']:g}, {_chosen(folds)}")


def _chosen(folds: list[Fold]) -> str:
    return f"the best of {len(PENALTIES)} by {len(folds)}-fold inner cross-validation"


def _logistic(fit: Floats, y_fit: Floats, score: Floats, folds: list[Fold], kind: Kind, num_levels: int) -> Readout:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    plain = LogisticRegression(class_weight="balanced", max_iter=2000)
    with warnings.catch_warnings():
        # the weakest penalties on separable classes need not converge to rank below the others
        warnings.simplefilter("ignore", ConvergenceWarning)
        if folds:
            search = GridSearchCV(plain, {"C": PENALTIES}, cv=folds, scoring="neg_log_loss").fit(fit, y_fit)
            model = search.best_estimator_
            note = f"C = {search.best_params_['C']:g}, {_chosen(folds)}"
        else:
            model, note = plain.fit(fit, y_fit), "C = 1, too few subjects to choose it"
    decision = np.asarray(model.decision_function(score), dtype=np.float64)
    if kind == "binary":
        return Readout(output=decision.reshape(-1, 1), note=note)
    return Readout(output=_all_levels(decision, model.classes_, num_levels), note=note)


def _all_levels(decision: Floats, classes: Floats, num_levels: int) -> Floats:
    """Logits of every level from those of the levels that were fitted."""
    logits = np.stack([-decision / 2, decision / 2], axis=1) if decision.ndim == 1 else decision
    output = np.full((len(logits), num_levels), logits.min() - 30.0)
    output[:, classes.astype(np.int64)] = logits
    return output
