"""Phase 3's closed-form head, fitted anew on what a frozen model makes of windows.

Whitening, feature scales and head are fitted on the training subjects as `training.finetuning` fits them before its
first gradient step. A head is linear and a subject's output is the frame-weighted mean of its windows' outputs, so
it is the head of the subject's mean features, whatever the number of windows.

Shapes: S subject, D latent, F feature, K output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.scoring.metrics import Floats, as_logits, subject_score
from eval.targets import Target

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from training.finetuning.features import Windows
    from training.networks.pooling import Pool

Parts = Callable[[], Iterable["Windows"]]
"""Gives the windows of all runs, part by part; called twice, must give the same both times."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """From mean window features to outputs: `((x - mean) * scale) @ weight.T + bias`, in the target's units.

    Attributes
    ----------
    mean, scale : numpy.ndarray, shape (F,)
    weight, bias : numpy.ndarray, shapes (K, F) and (K,)
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    def outputs(self, features: Mapping[str, Floats], target: Target) -> dict[str, Floats]:
        """Logits, or the value in original units, (K,), of each subject."""
        found = {who: ((x - self.mean) * self.scale) @ self.weight.T + self.bias for who, x in features.items()}
        return {who: as_logits(output[None], target.kind)[0] for who, output in found.items()}


def head_of(state: Mapping[str, Any]) -> Head:
    """The head that a model's state holds: a `state_dict`, or what `fit_head` found."""
    names = ("pool.feature_mean", "pool.feature_scale", "head.weight", "head.bias", "output_scale", "output_shift")
    mean, scale, weight, bias, spread, shift = (_array(state[name]) for name in names)
    return Head(mean=mean, scale=scale, weight=weight * spread[:, None], bias=bias * spread + shift)


def whitened_on(pool: Pool, parts: Parts, training_runs: frozenset[int]) -> Pool:
    """A copy of a pool that whitens the latents of the windows of the training runs.

    A pool that reads the CLS output whitens nothing, and its copy is as it was.
    """
    from training.finetuning.features import frame_sums, mean_and_covariance

    pool = copy.deepcopy(pool)
    if pool.pool == "cls":
        return pool
    latent = pool.center.numel()
    sums = np.zeros(1 + latent + latent**2)
    for windows in parts():
        sums += frame_sums(_of_runs(windows, training_runs), latent)
    pool.fit_whitening(*mean_and_covariance(sums, latent))
    return pool


def mean_features(pool: Pool, parts: Parts, shard_set: ShardSet) -> dict[str, Floats]:
    """Frame-weighted mean of each subject's window features before standardisation, (F,)."""
    from training.finetuning.features import feature_sums, subject_features

    return subject_features(feature_sums(pool, windows, shard_set) for windows in parts())


def refit(
    pool: Pool, features: Mapping[str, Floats], numbers: Mapping[str, float], target: Target, class_weights: bool
) -> tuple[Head, dict[str, Any]]:
    """Fit the head on the training subjects.

    Parameters
    ----------
    pool : training.networks.pooling.Pool
        That the features come from.
    features : mapping of str to numpy.ndarray, shape (F,)
        Of the training subjects.
    numbers : mapping of str to float
        Level number or value of each of them.
    target : Target
        What is predicted.
    class_weights : bool
        Count every class alike, as the run's --class_weights did.

    Returns
    -------
    head : Head
    facts : dict
        JSON values: the number of subjects, the shares of features that the probe chose, and its leave-one-out score
        (AUROC, balanced accuracy or R2).
    """
    from training.finetuning.targets import level_weights
    from training.finetuning.task import fit_head

    judge: Any = subject_score
    weights = level_weights(_of_training(target), [numbers[who] for who in sorted(features)]) if class_weights else None
    found = fit_head(features, numbers, _of_training(target), pool.groups, weights, judge)
    return head_of(found["state"]), {name: found[name] for name in ("num_subjects", "features", "loo_score")}


def _of_training(target: Target) -> Any:
    from training.finetuning.targets import Target as TrainingTarget

    known = {
        name: value if np.isfinite(value) else None for name, value in (("mean", target.mean), ("std", target.std))
    }
    return TrainingTarget(column=target.column, kind=target.kind, levels=target.levels, **known)


def _of_runs(windows: Windows, runs: frozenset[int]) -> Windows:
    from training.finetuning.features import Windows

    rows = [row for row, run in enumerate(windows.run) if run in runs]
    return Windows(
        run=[windows.run[row] for row in rows],
        context=[windows.context[row] for row in rows],
        cls=[windows.cls[row] for row in rows],
    )


def _array(value: Any) -> Floats:
    found = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    return np.asarray(found, dtype=np.float64)
