"""Phases 1 and 2: what a step computes, and what validation reports.

Shapes: B window, L frame, V voxel, D latent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from shards.loader import Batch, WindowLoader
from training.config import ResolvedConfig
from training.engine.collective import sum_over_ranks
from training.engine.environment import Place
from training.engine.randomness import random_state, restore_random_state
from training.networks.decoder import Decoder
from training.networks.encoder import Encoder
from training.networks.model import BoldModel, inputs_of
from training.networks.pooling import valid_frames
from training.networks.principal import start_at_principal_components
from training.pretraining import objectives
from training.pretraining.collapse import Scatter
from training.pretraining.coupled import Coupling, Embeddings, couple, is_coupled, kept
from training.pretraining.masking import hidden_frames

if TYPE_CHECKING:
    from training.pretraining.perceptual import Perceptual

logger = logging.getLogger(__name__)

Forward = Callable[..., dict[str, Tensor]]
VALIDATION_STEP = -1
RULES = ("mean", "previous", "linear")
COMPARISONS = {
    "mse": "masked frames",
    "latent_mse": "latents of masked frames",
    "ahead_mse": "latents from the frames before",
}
"""What validation of phase 2 calls its errors."""
Sums = dict[str, NDArray[np.float64]]
"""Name to sum and count."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Loss of each window `[B]`, with its graph, and its terms averaged over the rank's windows."""

    per_window: Tensor
    terms: dict[str, Tensor]


class Pretraining:
    """Reconstruction (phase 1), and reconstruction of hidden frames (phase 2).

    Parameters
    ----------
    config
        Resolved.
    place
        This rank.
    val_loader
        Tiles the validation runs; None if the split has none.
    """

    def __init__(self, config: ResolvedConfig, place: Place, val_loader: WindowLoader | None) -> None:
        self.config, self.place, self.val_loader = config, place, val_loader
        self.perceptual = self._perceptual()

    def _perceptual(self) -> Perceptual | None:
        if not self.config.perceptual_weight or self.config.perceptual_file is None:
            return None
        from training.pretraining.perceptual import Perceptual

        return Perceptual(self.config.perceptual_file, self.config.perceptual_slices).to(self.place.device)

    def prepare(self, model: BoldModel, loader: WindowLoader) -> dict[str, Any]:
        """Phase 1: start at the principal components of the first training frames of `loader` (one rank's)."""
        if self.config.phase != 1 or not self.config.pca_frames:
            return {}
        wanted = self.config.pca_frames

        def volumes() -> Iterator[Tensor]:
            left, loader.epoch, loader.position = wanted, 0, 0
            for batch in loader:
                valid_BL = valid_frames(batch.num_valid, batch.q.shape[1])
                residual_NV = model.volume.residual(batch.q, batch.gain, batch.shift)[valid_BL][:left]
                left -= len(residual_NV)
                yield model.volume.dense(residual_NV)
                if left <= 0:
                    return

        # the ancestors' networks have no such start; a configuration that asks for it is refused
        start_at_principal_components(cast(Encoder, model.encoder), cast(Decoder, model.decoder), volumes)
        return {"pca_frames": wanted}

    def turns(self, forward: Forward, batches: Iterator[Batch], step: int) -> Iterator[tuple[Batch, Losses]]:
        """Losses of each of an optimizer step's batches; one at a time, since the loader reuses its tensors.

        Where an objective looks at the windows of the whole step and there are several batches, all of them go
        through the model twice: first for their embeddings alone, then, with the same random numbers, as usual.
        """
        if self.config.accumulation == 1 or not is_coupled(self.config):
            for _ in range(self.config.accumulation):
                batch = next(batches)
                yield batch, self.losses(forward, batch, step)
            return
        whole_step = [kept(next(batches)) for _ in range(self.config.accumulation)]
        embeddings, states = [], []
        with torch.no_grad():
            for batch in whole_step:
                states.append(random_state())
                embeddings.append(self._embeddings(self._run(forward, batch, step)[0], batch))
        for batch, state, coupling in zip(whole_step, states, couple(embeddings, self.config, self.place), strict=True):
            restore_random_state(state)
            yield batch, self.losses(forward, batch, step, coupling)

    def losses(self, forward: Forward, batch: Batch, step: int, coupling: Coupling | None = None) -> Losses:
        """Losses of one batch.

        Parameters
        ----------
        forward
            The engine.
        batch
            This rank's windows.
        step
            Optimizer step; with a window's run and start it decides which frames are hidden.
        coupling
            What objectives that look at many windows say of this batch; None: this is the only one of the step.
        """
        out, hidden_BL = self._run(forward, batch, step)
        parts = self._reconstruction(out, self._valid(batch), hidden_BL)
        if self.perceptual is not None:
            model: Any = getattr(forward, "module", forward)
            key = self._key(batch, step)
            images = (out["reconstruction"], out["residual"])
            value_B = self.perceptual.loss(model.volume, *images, self._valid(batch), key)
            parts["perceptual"] = (self.config.perceptual_weight, value_B)
        if "forward_score" in out:
            told_B = objectives.direction_error(out["forward_score"], out["reversed_score"])
            parts["direction"] = (self.config.direction_weight, told_B)
        if "expected" in out and self.config.ahead_weight:
            apart_BLD = objectives.elementwise("mse", out["expected"], out["latent"].detach())
            ahead_B = objectives.window_mean(objectives.frame_error(apart_BLD), self._valid(batch))
            parts["ahead"] = (self.config.ahead_weight, ahead_B)
        total_B = torch.stack([weight * value_B for weight, value_B in parts.values()]).sum(0)
        terms = {name: value_B.detach().mean() for name, (_, value_B) in parts.items()}
        if is_coupled(self.config):
            embeddings = self._embeddings(out, batch)
            coupling = coupling or couple([embeddings], self.config, self.place)[0]
            terms |= {name: value_B.mean() for name, value_B in coupling.values.items()}
            total_B = total_B + coupling.attached(embeddings)
        return Losses(per_window=total_B, terms=terms)

    def _reconstruction(
        self, out: dict[str, Tensor], valid_BL: Tensor, hidden_BL: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Weight and value `[B]` of each objective that compares frames with what went in."""
        config, residual_BLV = self.config, out["residual"]
        error_BLV = objectives.elementwise(config.loss, out["reconstruction"], residual_BLV)
        error_BL = objectives.frame_error(error_BLV)
        parts = {"reconstruction": (1.0, objectives.window_mean(error_BL, valid_BL))}
        if hidden_BL is not None:
            parts["hidden"] = (1.0, objectives.window_mean(error_BL, hidden_BL))
        if hidden_BL is not None and config.latent_weight:
            apart_BLD = objectives.elementwise("mse", out["context"], out["latent"].detach())
            latent_B = objectives.window_mean(objectives.frame_error(apart_BLD), hidden_BL)
            parts["latent"] = (config.latent_weight, latent_B)
        if config.active_weight:
            active_BL = objectives.active_error(error_BLV, residual_BLV)
            parts["active"] = (config.active_weight, objectives.window_mean(active_BL, valid_BL))
        return parts

    @torch.no_grad()
    def validate(self, forward: Forward) -> dict[str, float]:
        """Errors on the validation windows, each frame once, and the state of the latent space.

        `mse` is the mean squared error, in units of the voxels' variance, of frames (phase 2: of hidden
        frames); `mse_mean`, `mse_previous`, `mse_linear` are those of rules that know nothing. Phase 2 also
        gives them for latents (`latent_mse`, ...), where voxel noise does not hide the differences, and says
        whether the best of those rules is beaten (`beats_trivial`) and by how much (`better_percent`);
        `ahead_mse`, ... do so for latents expected from the frames before, where the model expects any.
        `latent_rank` near 1 would mean collapse; `context_rank` is that of the contextual latents.
        `direction_told` is the share of windows that are told from their time reversal; 0.5 is chance.
        """
        if self.val_loader is None:
            return {}
        sums: Sums = {}
        scatters = {name: Scatter(self.config.latent or 0) for name in self._watched}
        for batch in self.val_loader:
            self._validate_batch(forward, batch, sums, scatters)
        names = sorted(sums)
        totals = sum_over_ranks(np.stack([sums[name] for name in names]), self.place)
        found = {name: float(total / max(count, 1.0)) for name, (total, count) in zip(names, totals, strict=True)}
        for name, scatter in scatters.items():
            found |= scatter.report(name, self.place)
        return found | self._verdict(found) if self.config.phase == 2 else found

    @property
    def _watched(self) -> tuple[str, ...]:
        """Embeddings that might collapse."""
        return ("latent", "context") if self.config.phase == 2 else ("latent",)

    def _validate_batch(self, forward: Forward, batch: Batch, sums: Sums, scatters: dict[str, Scatter]) -> None:
        valid_BL = self._valid(batch)
        out, hidden_BL = self._run(forward, batch, VALIDATION_STEP)
        latent_BLD, residual_BLV = out["latent"], out["residual"]
        if hidden_BL is None:
            rules = {"mean": torch.zeros_like(residual_BLV)}
            _compare(sums, "mse", residual_BLV, out["reconstruction"], valid_BL, rules)
        else:
            for name, truth, own in (("mse", "residual", "reconstruction"), ("latent_mse", "latent", "context")):
                rules = objectives.trivial_predictions(out[truth], hidden_BL, valid_BL)
                _compare(sums, name, out[truth], out[own], hidden_BL, rules)
        if "expected" in out:
            rules = {"mean": torch.zeros_like(latent_BLD), "previous": F.pad(latent_BLD[:, :-1], (0, 0, 1, 0))}
            _compare(sums, "ahead_mse", latent_BLD, out["expected"], valid_BL, rules)
        if "forward_score" in out:
            told_B = out["forward_score"] > out["reversed_score"]
            _count(sums, "direction_told", told_B, valid_BL.sum(1) > 1)
        for name, scatter in scatters.items():
            scatter.add(out[name][valid_BL])

    def _verdict(self, found: dict[str, float]) -> dict[str, float]:
        """Whether the best rule that knows nothing is beaten in each comparison; told in words, too."""
        verdict: dict[str, float] = {}
        for name, what in COMPARISONS.items():
            if name not in found:
                continue
            rule = min((rule for rule in RULES if f"{name}_{rule}" in found), key=lambda rule: found[f"{name}_{rule}"])
            own, best = found[name], found[f"{name}_{rule}"]
            prefix, percent = name.removesuffix("mse"), 100 * (best - own) / max(best, 1e-30)
            verdict |= {f"{prefix}beats_trivial": own < best, f"{prefix}better_percent": percent}
            judged = f"better by {percent:.1f} %" if own < best else f"NOT better ({-percent:.1f} % worse)"
            known = f"{best:.4f} for the best rule that knows nothing ({rule})"
            logger.info("%s: error %.4f against %s: %s", what, own, known, judged)
        return verdict

    def _run(self, forward: Forward, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """The model's outputs, and the frames that were hidden (phase 2)."""
        inputs = inputs_of(batch, self.place.device)
        if self.config.phase == 1:
            return forward(**inputs), None
        hidden = hidden_frames(
            batch.num_valid.numpy(),
            self._key(batch, step),
            num_frames=batch.q.shape[1],
            fraction=self.config.mask_fraction,
            span=self.config.mask_span,
        )
        hidden_BL = torch.from_numpy(hidden).to(self.place.device)
        return forward(**inputs, hidden=hidden_BL, reverse=self.config.direction_weight > 0), hidden_BL

    def _key(self, batch: Batch, step: int) -> NDArray[np.int64]:
        """Integers that name the windows of a batch and the step."""
        window = torch.stack([batch.run, batch.start], dim=1).numpy()
        return np.concatenate([np.broadcast_to(np.array([self.config.seed, step]), window.shape), window], axis=1)

    def _valid(self, batch: Batch) -> Tensor:
        return valid_frames(batch.num_valid, batch.q.shape[1]).to(self.place.device)

    def _embeddings(self, out: dict[str, Tensor], batch: Batch) -> Embeddings:
        run_B = batch.run.to(self.place.device)
        return Embeddings(context_BLD=out["context"], valid_BL=self._valid(batch), cls_BW=out["cls"], run_B=run_B)


def _count(sums: Sums, name: str, value: Tensor, counted: Tensor) -> None:
    """Add the values where `counted` to a sum, and how many they are."""
    added = np.array([float((value * counted).sum()), float(counted.sum())])
    sums[name] = sums.get(name, 0.0) + added


def _compare(
    sums: Sums, name: str, truth_BLX: Tensor, own_BLX: Tensor, counted_BL: Tensor, rules: dict[str, Tensor]
) -> None:
    """Add the squared errors of a prediction, and of rules that know nothing."""
    for key, prediction_BLX in {name: own_BLX, **{f"{name}_{rule}": value for rule, value in rules.items()}}.items():
        error_BL = objectives.frame_error(objectives.elementwise("mse", prediction_BLX, truth_BLX))
        _count(sums, key, error_BL, counted_BL)
