"""Phases 1 and 2: what a step computes, and what validation reports.

Shapes: B window, L frame, V voxel, D latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.loader import Batch, WindowLoader
from training import objectives
from training.collective import gather_rows, sum_over_ranks
from training.config import TrainConfig
from training.environment import Place
from training.masking import hidden_frames
from training.model import BoldModel, inputs_of
from training.pooling import valid_frames
from training.principal import start_at_principal_components

Forward = Callable[..., dict[str, Tensor]]
VALIDATION_STEP = -1


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

    def __init__(self, config: TrainConfig, place: Place, val_loader: WindowLoader | None) -> None:
        self.config, self.place, self.val_loader = config, place, val_loader

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

        start_at_principal_components(model.encoder, model.decoder, volumes)
        return {"pca_frames": wanted}

    def losses(self, forward: Forward, batch: Batch, step: int) -> Losses:
        """Losses of one batch.

        Parameters
        ----------
        forward
            The engine.
        batch
            This rank's windows.
        step
            Optimizer step; with a window's run and start it decides which frames are hidden.
        """
        config, device = self.config, self.place.device
        inputs = inputs_of(batch, device)
        num_valid_B = batch.num_valid.to(device)
        valid_BL = valid_frames(num_valid_B, batch.q.shape[1])
        hidden_BL = self._hidden(batch, step) if config.phase == 2 else None
        out = forward(**inputs, hidden=hidden_BL)
        error_BLV = objectives.elementwise(config.loss, out["reconstruction"], out["residual"])
        error_BL = objectives.frame_error(error_BLV)
        parts_B = {"reconstruction": objectives.window_mean(error_BL, valid_BL)}
        total_B = parts_B["reconstruction"]
        if hidden_BL is not None:
            parts_B["hidden"] = objectives.window_mean(error_BL, hidden_BL)
            total_B = total_B + parts_B["hidden"]
        if config.active_weight:
            active_BL = objectives.active_error(error_BLV, out["residual"])
            parts_B["active"] = objectives.window_mean(active_BL, valid_BL)
            total_B = total_B + config.active_weight * parts_B["active"]
        if config.phase == 2 and config.contrast_weight:
            parts_B["contrast"] = self._contrast(out["context"], valid_BL)
            total_B = total_B + config.contrast_weight * parts_B["contrast"]
        return Losses(per_window=total_B, terms={name: value.detach().mean() for name, value in parts_B.items()})

    @torch.no_grad()
    def validate(self, forward: Forward) -> dict[str, float]:
        """Errors on the validation windows, each frame once, and the state of the latent space.

        `mse` is the mean squared error, in units of the voxels' variance, of frames (phase 2: of hidden
        frames); `mse_mean`, `mse_previous`, `mse_linear` are those of rules that know nothing. Phase 2 also
        gives them for latents (`latent_mse`, ...), where voxel noise does not hide the differences.
        `latent_rank` near 1 would mean collapse.
        """
        if self.val_loader is None:
            return {}
        sums: dict[str, float] = {}
        latents = _Scatter(self.config.latent or 0)
        for batch in self.val_loader:
            self._validate_batch(forward, batch, sums, latents)
        names = sorted(sums)
        totals = sum_over_ranks(np.array([sums[name] for name in names]), self.place)
        total = dict(zip(names, totals.tolist(), strict=True))
        found = {name: value / max(total["frames"], 1.0) for name, value in total.items() if name != "frames"}
        return found | latents.report(self.place)

    def _validate_batch(self, forward: Forward, batch: Batch, sums: dict[str, float], latents: _Scatter) -> None:
        valid_BL = valid_frames(batch.num_valid, batch.q.shape[1]).to(self.place.device)
        hidden_BL = self._hidden(batch, VALIDATION_STEP) if self.config.phase == 2 else None
        out = forward(**inputs_of(batch, self.place.device), hidden=hidden_BL)
        counted_BL = valid_BL if hidden_BL is None else hidden_BL
        comparisons = [("mse", out["residual"], out["reconstruction"])]
        if hidden_BL is not None:
            comparisons.append(("latent_mse", out["latent"], out["context"]))
        for name, truth_BLX, own_BLX in comparisons:
            predictions = {name: own_BLX, f"{name}_mean": torch.zeros_like(truth_BLX)}
            if hidden_BL is not None:
                trivial = objectives.trivial_predictions(truth_BLX, hidden_BL, valid_BL)
                predictions |= {f"{name}_{rule}": value for rule, value in trivial.items()}
            for key, prediction_BLX in predictions.items():
                error_BL = objectives.frame_error(objectives.elementwise("mse", prediction_BLX, truth_BLX))
                sums[key] = sums.get(key, 0.0) + float((error_BL * counted_BL).sum())
        sums["frames"] = sums.get("frames", 0.0) + float(counted_BL.sum())
        latents.add(out["latent"][valid_BL])

    def _hidden(self, batch: Batch, step: int) -> Tensor:
        key = torch.stack([batch.run, batch.start], dim=1).numpy()
        seeds = np.broadcast_to(np.array([self.config.seed, step]), key.shape)
        hidden = hidden_frames(
            batch.num_valid.numpy(),
            np.concatenate([seeds, key], axis=1),
            num_frames=batch.q.shape[1],
            fraction=self.config.mask_fraction,
            span=self.config.mask_span,
        )
        return torch.from_numpy(hidden).to(self.place.device)

    def _contrast(self, context_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        all_ALD, all_valid_AL = context_BLD, valid_BL
        if self.place.world_size > 1:
            all_ALD, all_valid_AL = gather_rows(context_BLD), gather_rows(valid_BL.to(torch.uint8)).bool()
        first = self.place.rank * len(context_BLD)
        temperature = self.config.contrast_temperature
        return objectives.neighbour_contrast(context_BLD, valid_BL, all_ALD, all_valid_AL, first, temperature)


class _Scatter:
    """Running count, sum and second moments of latents."""

    def __init__(self, latent: int) -> None:
        self.values = np.zeros(1 + latent + latent * latent)
        self.latent = latent

    def add(self, latent_ND: Tensor) -> None:
        x = latent_ND.double().cpu().numpy()
        self.values += np.concatenate([[len(x)], x.sum(0), (x.T @ x).ravel()])

    def report(self, place: Place) -> dict[str, float]:
        total = sum_over_ranks(self.values, place)
        count, mean = max(total[0], 1.0), total[1 : 1 + self.latent] / max(total[0], 1.0)
        covariance = total[1 + self.latent :].reshape(self.latent, self.latent) / count - np.outer(mean, mean)
        rank = objectives.effective_rank(torch.from_numpy(covariance))
        return {"latent_variance": float(np.trace(covariance) / self.latent), "latent_rank": rank}
