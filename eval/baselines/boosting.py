"""Gradient-boosted trees on connectivity (XGBoost), where it is installed.

Chen and Guestrin 2016, "XGBoost: A scalable tree boosting system".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.baselines.network_inputs import Singles, single_edges
from eval.baselines.protocol import Baseline, Fitted, NotAvailable, Problem
from eval.baselines.restarts import Restart, held_out_means, on_whom, plan_restarts
from eval.scoring.metrics import Floats

if TYPE_CHECKING:
    from eval.baselines.outcome import Outcome

EDGES_A_TREE = 2000
"""Drawn for each tree; bounds the cost of a large atlas and makes the trees differ."""
SETTINGS = {"eta": 0.05, "max_depth": 3, "subsample": 0.8, "lambda": 1.0, "tree_method": "hist"}
MOST_TREES = 1000
FIXED_TREES = 100
"""Where nobody is held out to stop on."""
PATIENCE = 50
"""Trees without a better loss before a fit ends."""
SUBJECTS_AT_ONCE = 512


class Boosting:
    """XGBoost on the Fisher z of all pairs of regions; trees are added until the validation loss stops falling."""

    key = "xgboost"
    label = "XGBoost on FC"
    sees = "static correlations of the regions"

    def fit(self, problem: Problem) -> Fitted:
        """Fit every restart.

        Raises
        ------
        NotAvailable
            XGBoost is not installed.
        """
        try:
            import xgboost
        except ImportError as error:
            raise NotAvailable("xgboost is not installed; pip install 'boldstream[xgboost]'") from error
        edges = dict(zip(problem.to_fit, single_edges(problem, problem.to_fit), strict=True))
        restarts = plan_restarts(problem)
        trees = tuple(_Trees(xgboost, problem, edges, restart, number) for number, restart in enumerate(restarts))
        sizes = [member.num_trees for member in trees]

        def predict(subjects: tuple[str, ...]) -> Floats:
            starts = range(0, len(subjects), SUBJECTS_AT_ONCE)
            parts = (single_edges(problem, subjects[start : start + SUBJECTS_AT_ONCE]) for start in starts)
            return np.concatenate([np.mean([member.predict(part) for member in trees], axis=0) for part in parts])

        stopped = [
            member.predict(np.stack([edges[subject] for subject in restart.stops])) if restart.stops else None
            for restart, member in zip(restarts, trees, strict=True)
        ]
        fits = f"mean of {len(trees)} fits of {min(sizes)} to {max(sizes)} trees, {on_whom(restarts)}"
        return Fitted(
            note=f"{problem.regions.description}; {fits}", predict=predict, held_out=held_out_means(restarts, stopped)
        )


class _Trees:
    """One boosted model; class-balanced, as the other baselines are."""

    def __init__(
        self, xgboost: Any, problem: Problem, edges: dict[str, Singles], restart: Restart, number: int
    ) -> None:
        from eval.baselines.outcome import Outcome

        self.xgboost, y = xgboost, problem.y_fit
        kind, num_levels = problem.target.kind, len(problem.target.levels)
        self.outcome = Outcome.of(problem.truth(restart.learns), kind, num_levels)
        learns = self._matrix(edges, y, restart.learns)
        settings = (
            SETTINGS
            | _objective(self.outcome)
            | {
                "seed": 1000 * problem.seed + number,
                "nthread": problem.threads,
                "colsample_bytree": min(1.0, EDGES_A_TREE / next(iter(edges.values())).size),
            }
        )
        if not restart.stops:
            self.model, self.num_trees = xgboost.train(settings, learns, FIXED_TREES), FIXED_TREES
            return
        watched = [(self._matrix(edges, y, restart.stops), "stop")]
        self.model = xgboost.train(
            settings, learns, MOST_TREES, evals=watched, early_stopping_rounds=PATIENCE, verbose_eval=False
        )
        self.num_trees = self.model.best_iteration + 1

    def predict(self, edges: Singles) -> Floats:
        """Outputs in the package's form, shape (N, K)."""
        margin = self.model.predict(
            self.xgboost.DMatrix(edges), output_margin=True, iteration_range=(0, self.num_trees)
        )
        return self.outcome.decode(np.asarray(margin, dtype=np.float64).reshape(len(edges), -1))

    def _matrix(self, edges: dict[str, Singles], y: Any, subjects: Sequence[str]) -> Any:
        """Edges, codes of the target and class weights; levels that nobody was fitted on are left out."""
        code = self.outcome.encode([y[subject] for subject in subjects]).numpy()
        known = code >= 0 if self.outcome.levels else np.ones(len(code), dtype=bool)
        rows = np.stack([edges[subject] for subject in subjects])[known]
        weight = np.array(self.outcome.weight)[code[known]] if self.outcome.levels else None
        return self.xgboost.DMatrix(rows, code[known], weight=weight)


def _objective(outcome: Outcome) -> dict[str, Any]:
    """XGBoost's name of the loss, and of what is watched."""
    if outcome.kind == "regression":
        return {"objective": "reg:squarederror", "base_score": 0.0}
    if outcome.kind == "binary":
        return {"objective": "binary:logistic", "base_score": 0.5}
    return {"objective": "multi:softprob", "num_class": outcome.num_outputs}


def boosting_baselines(kind: str) -> tuple[Baseline, ...]:
    """The baselines that need XGBoost; fitting says so where it is missing.

    Parameters
    ----------
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target; the loss follows it when the baseline is fitted.
    """
    return (Boosting(),)
