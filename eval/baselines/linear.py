"""Penalised readouts of subjects' features, with the penalty chosen by inner cross-validation.

Only the subjects that are fitted on are touched. Whatever a readout learns of features (scale, axes, a tangent point)
is learnt anew in every inner fold from the subjects that the fold is fitted on, so that its held-out outputs are
those of subjects whom nothing was fitted on but the choice of the penalty.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eval.baselines.protocol import Fitted, Problem
from eval.scoring.bootstrap import family_blocks
from eval.scoring.metrics import Floats, Kind

PENALTIES = tuple(float(value) for value in np.logspace(-4, 4, 9))
INNER_FOLDS = 5
AT_ONCE = 256
"""Subjects whose features are predicted from at the same time."""

Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
Ints = npt.NDArray[np.int64]
Predict = Callable[[Any], Floats]


class Transform(Protocol):
    """Anything with scikit-learn's `fit` and `transform`; `sklearn.base.clone` makes a fresh one."""

    def fit(self, features: Any) -> Any: ...
    def transform(self, features: Any) -> Any: ...


class Learner(Protocol):
    """A penalised model of subjects' features."""

    penalties: tuple[float, ...]

    def prepare(self, features: Floats) -> Any:
        """What every penalty shares: rotated and scaled features of the subjects to fit on, and how to get there."""
        ...

    def fit(self, prepared: Any, y_fit: Floats, penalty: float) -> Predict:
        """Features, shape (M, F), to outputs, shape (M, K)."""
        ...

    def loss(self, y_true: Floats, output: Floats) -> float:
        """What the penalty shall make small."""
        ...


@dataclass(frozen=True, kw_only=True)
class Readout:
    """A fitted readout.

    Attributes
    ----------
    predict : callable
        Features, as they were given to fit, to outputs, shape (M, K).
    held_out : numpy.ndarray, shape (N, K)
        Outputs of the fitted subjects by models without them; `nan` for those that no inner fold held out.
    note : str
        How the penalty was found.
    """

    predict: Predict
    held_out: Floats
    note: str


def fit_on(
    problem: Problem,
    features_of: Callable[[tuple[str, ...]], npt.NDArray[Any]],
    transform: Transform | None = None,
    learner: Learner | None = None,
) -> Fitted:
    """A readout of `problem`'s fitted subjects as a baseline; by default `Logistic` or `Ridge`.

    Parameters
    ----------
    problem : Problem
        Who is fitted on.
    features_of : callable
        Subjects to features, a row each, none depending on the other subjects.
    transform, learner
        As of `choose_penalty`.
    """
    kind, subjects = problem.target.kind, problem.to_fit
    if learner is None:
        learner = Ridge() if kind == "regression" else Logistic(kind, len(problem.target.levels))
    readout = choose_penalty(
        learner,
        features_of(subjects),
        problem.truth(subjects),
        kind,
        problem.cohort.family_names(subjects),
        problem.seed,
        transform,
    )

    def predict(wanted: tuple[str, ...]) -> Floats:
        batches = [wanted[first : first + AT_ONCE] for first in range(0, len(wanted), AT_ONCE)]
        return np.concatenate([readout.predict(features_of(batch)) for batch in batches])

    pairs = zip(subjects, readout.held_out, strict=True)
    held_out = {subject: row for subject, row in pairs if np.isfinite(row).all()}
    return Fitted(note=readout.note, predict=predict, held_out=held_out)


def choose_penalty(
    learner: Learner,
    features: npt.NDArray[Any],
    y_fit: Floats,
    kind: Kind,
    families: Sequence[str] | None,
    seed: int,
    transform: Transform | None = None,
) -> Readout:
    """Fit a learner with the penalty of the lowest held-out loss.

    Parameters
    ----------
    learner : Learner
        `Ridge`, `Logistic` or another.
    features : numpy.ndarray, shape (N, ...)
        Of the subjects to fit on; (N, F) unless `transform` makes them so.
    y_fit : numpy.ndarray, shape (N,)
        Level numbers or values.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    families : sequence of str or None
        Family of each subject; inner folds keep families together.
    seed : int
        Shuffles the inner folds.
    transform : Transform, optional
        What is fitted on features first (a scaler, a tangent space), without the target.
    """
    folds = inner_folds(y_fit, kind, families, seed)
    outputs: dict[float, Floats] = {}
    for fit, held in folds:
        represent, prepared = _prepared(learner, transform, features[fit])
        held_features = represent(features[held])
        for penalty in learner.penalties:
            found = learner.fit(prepared, y_fit[fit], penalty)(held_features)
            kept = outputs.setdefault(penalty, np.full((len(y_fit), found.shape[1]), np.nan))
            kept[held] = found
    penalty = min(learner.penalties, key=lambda p: _known_loss(learner, y_fit, outputs[p])) if folds else 1.0
    represent, prepared = _prepared(learner, transform, features)
    predict = learner.fit(prepared, y_fit, penalty)
    chosen = f"the best of {len(learner.penalties)} by {len(folds)}-fold inner cross-validation"
    note = f"penalty {penalty:g}, {chosen if folds else 'too few subjects to choose it'}"
    held_out = outputs[penalty] if folds else np.full((len(y_fit), 1), np.nan)
    return Readout(predict=lambda rows: predict(represent(rows)), held_out=held_out, note=note)


def _prepared(learner: Learner, transform: Transform | None, features: npt.NDArray[Any]) -> tuple[Predict, Any]:
    from sklearn.base import clone

    if transform is None:
        return (lambda rows: rows), learner.prepare(features)
    fitted = clone(transform).fit(features)
    return fitted.transform, learner.prepare(fitted.transform(features))


def _known_loss(learner: Learner, y_fit: Floats, output: Floats) -> float:
    known = np.isfinite(output[:, 0])
    return learner.loss(y_fit[known], output[known])


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


@dataclass(frozen=True)
class Axes:
    """Features on their principal axes, in units of a typical subject's distance from the mean.

    None is dropped: an L2 penalty does not see rotations, and N subjects span at most N axes, so thousands of edges
    cost no more than N columns.
    """

    rotation: Any
    size: float
    features: Floats

    @classmethod
    def of(cls, features: Floats) -> Axes:
        """Those of the subjects to fit on."""
        from sklearn.decomposition import PCA

        rotation = PCA(svd_solver="full").fit(features)
        axes = rotation.transform(features)
        size = float(np.sqrt(np.mean(np.sum(axes**2, axis=1)))) or 1.0
        return cls(rotation, size, axes / size)

    def of_others(self, features: Floats) -> Floats:
        """The same of other subjects."""
        return np.asarray(self.rotation.transform(features) / self.size, dtype=np.float64)


class Ridge:
    """Ridge regression; the penalty is per subject."""

    penalties = PENALTIES

    def prepare(self, features: Floats) -> Axes:
        """Principal axes."""
        return Axes.of(features)

    def fit(self, prepared: Axes, y_fit: Floats, penalty: float) -> Predict:
        """Weights for one penalty."""
        from sklearn.linear_model import Ridge as Model

        model = Model(penalty * y_fit.size).fit(prepared.features, y_fit)
        return lambda rows: np.asarray(model.predict(prepared.of_others(rows))).reshape(-1, 1)

    def loss(self, y_true: Floats, output: Floats) -> float:
        """Mean squared error."""
        return float(np.mean((output[:, 0] - y_true) ** 2))


class Logistic:
    """Logistic regression of balanced classes; the penalty is 1 / C of scikit-learn.

    Parameters
    ----------
    kind : {'binary', 'multiclass'}
        One logit, or one a level.
    num_levels : int
        K; levels that are missing among the fitted get a logit far below the others.
    """

    penalties = PENALTIES

    def __init__(self, kind: Kind, num_levels: int) -> None:
        self.kind, self.num_levels = kind, num_levels

    def prepare(self, features: Floats) -> Axes:
        """Principal axes."""
        return Axes.of(features)

    def fit(self, prepared: Axes, y_fit: Floats, penalty: float) -> Predict:
        """Weights for one penalty."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1.0 / penalty, class_weight="balanced", max_iter=2000)
        fitted = without_warnings(lambda: model.fit(prepared.features, y_fit))
        return lambda rows: logits_of(fitted, prepared.of_others(rows), self.kind, self.num_levels)

    def loss(self, y_true: Floats, output: Floats) -> float:
        """Log loss, classes weighing the same."""
        from scipy.special import log_softmax
        from sklearn.utils.class_weight import compute_sample_weight

        logits = np.concatenate([np.zeros_like(output), output], axis=1) if self.kind == "binary" else output
        surprise = -log_softmax(logits, axis=1)[np.arange(len(y_true)), y_true.astype(np.int64)]
        return float(np.average(surprise, weights=compute_sample_weight("balanced", y_true)))


def without_warnings(fit: Callable[[], Any]) -> Any:
    """Fit; the weakest penalties on separable classes need not converge to rank below the others."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return fit()


def logits_of(model: Any, rows: Floats, kind: Kind, num_levels: int) -> Floats:
    """Outputs of a fitted classifier: one logit (binary), else one for each level, also of those it never saw."""
    decision = np.asarray(model.decision_function(rows), dtype=np.float64)
    if kind == "binary":
        return decision.reshape(-1, 1)
    logits = np.stack([-decision / 2, decision / 2], axis=1) if decision.ndim == 1 else decision
    output = np.full((len(logits), num_levels), logits.min(initial=0.0) - 30.0)
    output[:, model.classes_.astype(np.int64)] = logits
    return output
