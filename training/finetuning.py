"""Phase 3: a probe in closed form on the frozen tokens, then gradient steps that must beat it.

Shapes: B window, L frame, D latent, W width, F feature, K output, S subject.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shards.errors import UsageError
from shards.loader import Batch, WindowLoader
from shards.reader import ShardSet
from training.collective import first_rank_does, gather, sum_over_ranks
from training.config import TrainConfig
from training.environment import Place
from training.model import BoldModel, inputs_of
from training.predict import subject_means, window_outputs
from training.pretraining import Forward, Losses
from training.probe import calibrate, fit_probe
from training.targets import Target, level_weights

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
        config: TrainConfig,
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
        windows = _collect(model, loader, self.place)
        model.pool.fit_whitening(*_mean_and_covariance(windows, model.size.latent, self.place))
        features = _subject_features(model, windows, self.shard_set, self.place)

        def fit() -> dict[str, Any]:
            return self._fit_probe(model, features)

        found = first_rank_does(fit, self.place)
        state = found.pop("state")
        model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
        return found

    def _fit_probe(self, model: BoldModel, features: Mapping[str, Floats]) -> dict[str, Any]:
        subjects = sorted(features)
        x_SF = np.stack([features[subject] for subject in subjects])
        number_S = np.array([self.train[subject] for subject in subjects])
        target = self.target
        probe = fit_probe(x_SF, _regressand(target, number_S), model.pool.groups)
        weight_KF, bias_K = probe.weight, probe.bias
        if target.kind != "regression":
            sample_weight = None if self.level_weight is None else self.level_weight[number_S.astype(int)]
            slope_K, offset_K = calibrate(probe.loo_score, _regressand(target, number_S), sample_weight)
            weight_KF, bias_K = weight_KF * slope_K[:, None], bias_K * slope_K + offset_K
        mean_F, scale_F = _feature_scale(x_SF, model)
        shift_K, spread_K = np.zeros(target.num_outputs), np.ones(target.num_outputs)
        if target.kind == "regression":
            shift_K[:], spread_K[:] = target.mean, target.std
        state = {
            "pool.feature_mean": mean_F,
            "pool.feature_scale": scale_F,
            "head.weight": weight_KF / scale_F,
            "head.bias": bias_K + weight_KF @ mean_F,
            "output_scale": spread_K,
            "output_shift": shift_K,
        }
        loo_output = probe.loo_score * spread_K + shift_K
        return {
            "state": {name: value.astype(np.float32) for name, value in state.items()},
            "features": probe.features,
            "dimensions": probe.dimensions,
            "penalty": probe.penalty,
            "loo_error": probe.loo_error,
            "loo_score": self.score(number_S, loo_output, target.kind),
            "num_subjects": len(subjects),
        }

    def losses(self, forward: Forward, batch: Batch, step: int) -> Losses:
        """Cross-entropy of logits, or squared error in units of the training subjects' SD, per window."""
        del step
        output_BK = forward(**inputs_of(batch, self.place.device))["output"]
        numbers = [self.numbers[self.shard_set.runs[run].subject] for run in batch.run.tolist()]
        number_B = torch.tensor(numbers, dtype=torch.float32, device=output_BK.device)
        if self.target.kind == "regression":
            loss_B = ((output_BK[:, 0] - number_B) / self.target.std).square()
        elif self.target.kind == "binary":
            loss_B = F.binary_cross_entropy_with_logits(output_BK[:, 0], number_B, reduction="none")
        else:
            loss_B = F.cross_entropy(output_BK, number_B.long(), reduction="none")
        if self.level_weight is not None:
            weights = torch.from_numpy(self.level_weight).to(loss_B)
            loss_B = loss_B * weights[number_B.long()]
        return Losses(per_window=loss_B, terms={"target": loss_B.detach().mean()})

    def validate(self, forward: Forward) -> dict[str, float]:
        """Score of the validation subjects, each frame of theirs seen once."""

        def output(inputs: dict[str, Any]) -> Tensor:
            return forward(**inputs)["output"]

        rows = window_outputs(output, self.shard_set, self.val_loader, self.place.device)
        means = subject_means([row for part in gather(rows, self.place) for row in part])
        truth_S = np.array([self.val[subject] for subject in means])
        return {"score": self.score(truth_S, np.stack(list(means.values())), self.target.kind)}


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
        return ((number_S - target.mean) / target.std)[:, None]
    if target.kind == "binary":
        return np.where(number_S > 0, 1.0, -1.0)[:, None]
    return np.where(number_S[:, None] == np.arange(target.num_outputs), 1.0, -1.0)


def _feature_scale(x_SF: Floats, model: BoldModel) -> tuple[Floats, Floats]:
    """Mean of each feature, and a factor for each group that brings its total variance over subjects to 1."""
    scale_F = np.ones(x_SF.shape[1])
    for group in model.pool.groups:
        total = float(x_SF[:, group.start : group.stop].var(axis=0).sum())
        scale_F[group.start : group.stop] = total**-0.5 if total > 1e-12 else 1.0
    return x_SF.mean(0), scale_F


class _Windows:
    """Tokens of this rank's windows: run, real frames, contextual latents, CLS outputs."""

    def __init__(self) -> None:
        self.run: list[int] = []
        self.num_valid: list[int] = []
        self.context: list[Tensor] = []
        self.cls: list[Tensor] = []


@torch.no_grad()
def _collect(model: BoldModel, loader: WindowLoader, place: Place) -> _Windows:
    windows = _Windows()
    for batch in loader:
        context_BLD, cls_BW = model.tokens(**inputs_of(batch, place.device))
        for k, run in enumerate(batch.run.tolist()):
            if run >= 0:
                valid = int(batch.num_valid[k])
                windows.run.append(run)
                windows.num_valid.append(valid)
                windows.context.append(context_BLD[k, :valid].float())
                windows.cls.append(cls_BW[k].float())
    return windows


def _mean_and_covariance(windows: _Windows, latent: int, place: Place) -> tuple[Tensor, Tensor]:
    """Of all training frames' contextual latents, all ranks together."""
    sums = np.zeros(1 + latent + latent**2)
    for context in windows.context:
        x = context.double().cpu().numpy()
        sums += np.concatenate([[len(x)], x.sum(0), (x.T @ x).ravel()])
    total = sum_over_ranks(sums, place)
    mean = total[1 : 1 + latent] / total[0]
    covariance = total[1 + latent :].reshape(latent, latent) / total[0] - np.outer(mean, mean)
    return torch.from_numpy(mean).float(), torch.from_numpy(covariance)


@torch.no_grad()
def _subject_features(model: BoldModel, windows: _Windows, shard_set: ShardSet, place: Place) -> dict[str, Floats]:
    """Frame-weighted mean of the raw window features of each subject, on every rank."""
    sums: dict[str, Floats] = {}
    frames: dict[str, int] = {}
    for run, valid, context, cls in zip(windows.run, windows.num_valid, windows.context, windows.cls, strict=True):
        num_valid = torch.tensor([valid], device=context.device)
        feature_F = model.pool.raw(context[None], cls[None], num_valid)[0].double().cpu().numpy()
        who = shard_set.runs[run].subject
        sums[who] = sums.get(who, 0.0) + valid * feature_F
        frames[who] = frames.get(who, 0) + valid
    total: dict[str, Floats] = {}
    count: dict[str, int] = {}
    for part_sums, part_frames in gather((sums, frames), place):
        for who, value in part_sums.items():
            total[who] = total.get(who, 0.0) + value
            count[who] = count.get(who, 0) + part_frames[who]
    return {who: total[who] / count[who] for who in total}
