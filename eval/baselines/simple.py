"""The least that a model has to beat: what is known without looking at the brain."""

from __future__ import annotations

import numpy as np

from eval.baselines.linear import fit_on
from eval.baselines.protocol import Fitted, Problem
from eval.cohort import confound_features
from eval.scoring.metrics import Floats, Kind


class Majority:
    """The commonest class, or the mean: what a model gets that has learnt nothing about the brain."""

    key = "majority"
    sees = "nothing"

    def __init__(self, kind: Kind) -> None:
        self.label = "Mean of the target" if kind == "regression" else "Class frequencies"

    def fit(self, problem: Problem) -> Fitted:
        """The same output for everyone; nothing is held out, since a constant fixes no threshold."""
        y_fit = problem.truth(problem.to_fit)
        if problem.target.kind == "regression":
            return _constant(np.array([y_fit.mean()]), "mean of the fitted subjects")
        shares = np.bincount(y_fit.astype(np.int64), minlength=len(problem.target.levels)) / y_fit.size
        logits = np.log(np.clip(shares, 1e-6, 1.0))
        row = logits[1:] - logits[:1] if problem.target.kind == "binary" else logits
        return _constant(row, "class frequencies of the fitted subjects")


def _constant(row: Floats, note: str) -> Fitted:
    return Fitted(note=note, predict=lambda subjects: np.tile(row, (len(subjects), 1)))


class Confounds:
    """Motion, data quality, site, age, sex: everything that is known without looking at the brain."""

    key = "confounds"
    label = "Confounds only"
    sees = "motion, signal-to-noise, frames, site, age, sex"

    def fit(self, problem: Problem) -> Fitted:
        """Linear model on the standardised confounds that there are."""
        from sklearn.preprocessing import StandardScaler

        _, names = confound_features(problem.cohort, problem.to_fit, problem.to_fit)
        if not names:
            guess = Majority(problem.target.kind).fit(problem)
            return Fitted(note="no confound varies among the fitted subjects", predict=guess.predict)

        def features_of(subjects: tuple[str, ...]) -> Floats:
            return confound_features(problem.cohort, subjects, problem.to_fit)[0]

        fitted = fit_on(problem, features_of, StandardScaler())
        return Fitted(note=f"{', '.join(names)}; {fitted.note}", predict=fitted.predict, held_out=fitted.held_out)
