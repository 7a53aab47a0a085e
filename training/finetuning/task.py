"""Phase 3: a probe in closed form on the frozen tokens, then gradient steps that must beat it.

The model's answer about a subject is the average of its windows' outputs, and the probe's logits are right for that
average. One window of some seconds is a far noisier witness: taken at its word it is wrong with great confidence,
and a loss on it would first of all shrink the head. So the loss of a window takes its output as far as it can be
trusted: what it says beyond the prior counts `window_scale` = gap / (spread + noise) of its size, the slope of a
linear discriminant of windows: gap is the distance of the classes' mean outputs and spread the variance inside
classes, both of left-out subjects, and noise the variance of windows about their subject. (Of a measure: covariance
with the truth, and variance.) It is one number, fitted in closed form with the probe. The loss stays one of single
windows, so that an optimizer step does not depend on how its windows are cut into batches and ranks.

Shapes: B window, F feature, K output, S subject.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shards.errors import UsageError
from shards.loader import Batch, WindowLoader
from shards.reader import ShardSet
from training.config import ResolvedConfig
from training.engine.collective import first_rank_does, gather, sum_over_ranks
from training.engine.environment import Place
from training.finetuning.features import (
    collect,
    feature_sums,
    frame_sums,
    mean_and_covariance,
    subject_features,
    window_noise,
)
from training.finetuning.probe import calibrate, fit_probe
from training.finetuning.targets import Target, level_weights
from training.networks.model import BoldModel, inputs_of
from training.networks.pooling import FeatureGroup
from training.predict import subject_means, window_outputs
from training.pretraining.task import Forward, Losses

logger = logging.getLogger(__name__)

Validate = Callable[[NDArray[np.float64], NDArray[np.float64], str], float]
Floats = NDArray[np.float64]


class Finetuning:
    """Losses, probe and validation of a target.

    Parameters
    ----------
    config, place
        Resolved configuration; this rank.
    shard_set
        Opened.
    target
        What is predicted.
    train, val
        Subject to number, of training and validation subjects.
    val_loader
        Tiles the validation subjects' runs.
    validate
        (truth `(S,)`, output `(S, K)`, kind) -> a score, higher is better.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        place: Place,
        *,
        shard_set: ShardSet,
        target: Target,
        train: Mapping[str, float],
        val: Mapping[str, float],
        val_loader: WindowLoader,
        validate: Validate,
    ) -> None:
        self.config, self.place, self.shard_set, self.target = config, place, shard_set, target
        self.train, self.val, self.val_loader, self.score = train, val, val_loader, validate
        self.numbers = {**train, **val}
        weigh = config.class_weights and target.kind != "regression"
        self.level_weight = level_weights(target, list(train.values())) if weigh else None
        self.prior_K = torch.from_numpy(_prior(target, train, self.level_weight)).float()

    def prepare(self, model: BoldModel, loader: WindowLoader) -> dict[str, Any]:
        """Fit whitening, feature scales and probe, and write them into the model.

        Parameters
        ----------
        model
            Before the engine takes it; the same on every rank, and so afterwards.
        loader
            Tiles the training subjects' runs, each rank its share.

        Returns
        -------
        dict
            What the probe chose and how well it does, for the log.
        """
        model.to(self.place.device).eval()
        windows = collect(model, loader, self.place)
        sums = sum_over_ranks(frame_sums(windows, model.size.latent), self.place)
        model.pool.fit_whitening(*mean_and_covariance(sums, model.size.latent))
        features = subject_features(gather(feature_sums(model.pool, windows, self.shard_set), self.place))

        def fit() -> dict[str, Any]:
            return fit_head(features, self.train, self.target, model.pool.groups, self.level_weight, self.score)

        found = first_rank_does(fit, self.place)
        state, gap, spread = (found.pop(name) for name in ("state", "gap", "spread"))
        model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
        noise = window_noise(model, windows, features, self.shard_set, self.place)
        found["window_scale"] = min(1.0, max(gap, spread) / (spread + noise)) if spread + noise > 0 else 1.0
        model.window_scale.fill_(found["window_scale"])
        logger.info(
            "probe of %d subjects: %s; leave-one-out score %.3f",
            found["num_subjects"],
            ", ".join(f"{name} {share:.2f}" for name, share in found["features"].items()),
            found["loo_score"],
        )
        return found

    def turns(self, forward: Forward, batches: Iterator[Batch], step: int) -> Iterator[tuple[Batch, Losses]]:
        """Losses of each of an optimizer step's batches; one at a time, since the loader reuses its tensors."""
        for _ in range(self.config.accumulation):
            batch = next(batches)
            yield batch, self.losses(forward, batch, step)

    def losses(self, forward: Forward, batch: Batch, step: int) -> Losses:
        """Cross-entropy, or squared error in the training subjects' SD, of what each window is trusted with."""
        del step
        found = forward(**inputs_of(batch, self.place.device))
        prior_K = self.prior_K.to(found["output"].device)
        trusted_BK = prior_K + found["window_scale"] * (found["output"] - prior_K)
        numbers = [self.numbers[self.shard_set.runs[run].subject] for run in batch.run.tolist()]
        loss_B = self._loss(trusted_BK, torch.tensor(numbers, device=trusted_BK.device))
        return Losses(per_window=loss_B, terms={"target": loss_B.detach().mean()})

    def _loss(self, output_BK: Tensor, number_B: Tensor) -> Tensor:
        """Loss of each row, in units that need no scale: nats, or squared SDs of the training subjects."""
        number_B = number_B.to(output_BK)
        if self.target.kind == "regression":
            loss_B = ((output_BK[:, 0] - number_B) / self.target.mean_and_std[1]).square()
        elif self.target.kind == "binary":
            loss_B = F.binary_cross_entropy_with_logits(output_BK[:, 0], number_B, reduction="none")
        else:
            loss_B = F.cross_entropy(output_BK, number_B.long(), reduction="none")
        if self.level_weight is not None:
            loss_B = loss_B * torch.from_numpy(self.level_weight).to(loss_B)[number_B.long()]
        return loss_B

    def validate(self, forward: Forward) -> dict[str, float]:
        """Of the validation subjects, each frame of theirs seen once: score, and mean loss of their outputs."""

        def output(inputs: dict[str, Any]) -> Tensor:
            return forward(**inputs)["output"]

        rows = window_outputs(output, self.shard_set, self.val_loader, self.place.device)
        means = subject_means([row for part in gather(rows, self.place) for row in part])
        truth_S = np.array([self.val[subject] for subject in means])
        output_SK = np.stack(list(means.values()))
        loss_S = self._loss(torch.from_numpy(output_SK), torch.from_numpy(truth_S))
        return {"score": self.score(truth_S, output_SK, self.target.kind), "loss": float(loss_S.mean())}


def fit_head(
    features: Mapping[str, Floats],
    numbers: Mapping[str, float],
    target: Target,
    groups: Sequence[FeatureGroup],
    level_weight: Floats | None,
    score: Validate,
) -> dict[str, Any]:
    """Feature scales and head of a model from the probe of its subject features.

    Parameters
    ----------
    features
        Subject to mean of the raw window features, `(F,)`, of the training subjects.
    numbers
        Subject to number.
    target, groups
        What is predicted; what the features are.
    level_weight
        Weight of each level, or None for equal ones.
    score
        (truth `(S,)`, output `(S, K)`, kind) -> a score, higher is better.

    Returns
    -------
    dict
        `state`: float32 arrays by their name in the model's state; `gap` and `spread` of left-out outputs;
        `features`, `loo_error`, `loo_score`, `num_subjects`: what the probe chose and how well it does.
    """
    subjects = sorted(features)
    x_SF = np.stack([features[subject] for subject in subjects])
    number_S = np.array([numbers[subject] for subject in subjects])
    probe = fit_probe(x_SF, _regressand(target, number_S), groups)
    shift_K, spread_K = np.zeros(target.num_outputs), np.ones(target.num_outputs)
    slope_K, offset_K = spread_K, shift_K
    if target.kind == "regression":
        shift_K, spread_K = np.array([target.mean]), np.array([target.std])
    else:
        sample_weight = None if level_weight is None else level_weight[number_S.astype(int)]
        slope_K, offset_K = calibrate(probe.loo_score, _regressand(target, number_S), sample_weight)
    weight_KF, bias_K = probe.weight * slope_K[:, None], probe.bias * slope_K + offset_K
    mean_F, scale_F = _feature_scale(x_SF, groups)
    state = {
        "pool.feature_mean": mean_F,
        "pool.feature_scale": scale_F,
        "head.weight": weight_KF / scale_F,
        "head.bias": bias_K + weight_KF @ mean_F,
        "output_scale": spread_K,
        "output_shift": shift_K,
    }
    loo_output = (probe.loo_score * slope_K + offset_K) * spread_K + shift_K
    gap, spread = _gap_and_spread(loo_output, number_S, target)
    return {
        "gap": gap,
        "spread": spread,
        "state": {name: value.astype(np.float32) for name, value in state.items()},
        "features": probe.shares,
        "loo_error": probe.loo_error,
        "loo_score": score(number_S, loo_output, target.kind),
        "num_subjects": len(subjects),
    }


def check_subjects(target: Target, train: Mapping[str, float], val: Mapping[str, float]) -> None:
    """Refuse a split whose parts cannot train or choose a model of the target."""
    for part, numbers in (("training", train), ("validation", val)):
        if not numbers:
            raise UsageError(
                f"--target {target.column}: none of the {part} subjects has a value and a run; check participants.tsv "
                "and the split"
            )


def _regressand(target: Target, number_S: Floats) -> Floats:
    """What ridge regresses on, `(S, K)`: z-scores, or +-1 per output."""
    if target.kind == "regression":
        mean, std = target.mean_and_std
        return ((number_S - mean) / std)[:, None]
    if target.kind == "binary":
        return np.where(number_S > 0, 1.0, -1.0)[:, None]
    return np.where(number_S[:, None] == np.arange(target.num_outputs), 1.0, -1.0)


def _prior(target: Target, train: Mapping[str, float], level_weight: Floats | None) -> Floats:
    """What to say of a subject before seeing it, `(K,)`: the logit of each level's (weighted) share, or the mean."""
    if target.kind == "regression":
        return np.array([target.mean])
    share = np.bincount(np.array(list(train.values()), int), minlength=len(target.levels)).astype(float)
    share = share * (1.0 if level_weight is None else level_weight)
    logit = np.log(share) - np.log(share.sum() - share)
    return logit[-1:] if target.kind == "binary" else logit


def _gap_and_spread(output_SK: Floats, number_S: Floats, target: Target) -> tuple[float, float]:
    """How far apart left-out outputs put the classes, and their variance inside classes, summed over outputs.

    Where left-out outputs are on the wrong side the gap is negative; `prepare` takes the spread for it then, which it
    equals for logits that are right.
    """
    if target.kind == "regression":
        return float(np.cov(output_SK[:, 0], number_S, bias=True)[0, 1]), float(output_SK.var())
    levels = range(len(target.levels))
    wanted = levels[1:] if target.kind == "binary" else levels
    gap = sum(output_SK[number_S == k, i].mean() - output_SK[number_S != k, i].mean() for i, k in enumerate(wanted))
    inside = [output_SK[number_S == k] - output_SK[number_S == k].mean(0) for k in levels]
    return float(gap), float(np.square(np.concatenate(inside)).sum(1).mean())


def _feature_scale(x_SF: Floats, groups: Sequence[FeatureGroup]) -> tuple[Floats, Floats]:
    """Mean of each feature, and a factor for each group that brings its total variance over subjects to 1."""
    scale_F = np.ones(x_SF.shape[1])
    for group in groups:
        total = float(x_SF[:, group.start : group.stop].var(axis=0).sum())
        scale_F[group.start : group.stop] = total**-0.5 if total > 1e-12 else 1.0
    return x_SF.mean(0), scale_F
