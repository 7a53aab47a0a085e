"""One run through the decoder: how well each method predicts its frames, and what a panel of it shows.

Shapes: B window, L frame, T frame of the run, V voxel, D component, P parcel, M method, F frequency bin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.reconstruction.agreement import Agreement, band_power, connectivity_agreement
from eval.reconstruction.methods import Method, predictions_of
from shards.reader import ShardSet

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.networks.model import BoldModel

Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]

MEASURES = ("mse", "temporal", "spatial", "connectivity")
HIDDEN_SHARE, HIDDEN_SPAN = 0.25, 3
"""Frames that are hidden, and in stretches of how many: what phase 2 trains with by default."""
NO_STEP = -1
OURS = "itself_ours"
CARPET_VOXELS = 400
CARPET_FRAMES = 400


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every run is put through.

    Attributes
    ----------
    model : training.networks.model.BoldModel
        Of phase 1 or 2.
    window : int or str
        Its window length.
    methods : tuple of Method
        In the order of all results.
    pca : torch.Tensor, shape (D, V)
        Components of training frames, on the model's device.
    labels : numpy.ndarray, shape (V,)
        Parcel of each voxel; -1 where it is in none.
    seed, batch_size, threads : int
        Seed of the hidden frames; windows at a time; threads that read.
    """

    model: BoldModel
    window: int | str
    methods: tuple[Method, ...]
    pca: Tensor
    labels: npt.NDArray[np.int64]
    seed: int
    batch_size: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Consecutive frames of a run by one method: number of the first, truth and prediction `(L, V)`, which count."""

    start: int
    key: str
    truth: Tensor
    own: Tensor
    counted: Tensor


def measure_run(bench: Bench, shard_set: ShardSet, run: int) -> Arrays:
    """How well every method predicts the frames of a run.

    Returns
    -------
    dict
        `measures` `(M, 4)` (columns as `MEASURES`), `power` `(3, F)` of the truth, of PCA and of the model, and
        `map` `(V,)`, the model's temporal correlation in each voxel.
    """
    device = bench.pca.device
    sums = {method.key: Agreement(shard_set.num_voxels, device) for method in bench.methods}
    series: dict[str, list[tuple[Floats, Floats]]] = {
        method.key: [] for method in bench.methods if method.task == "itself"
    }
    averaged = _Parcels(bench.labels, device)
    for frames in _frames(bench, shard_set, run):
        truth_LV, own_LV = frames.truth[frames.counted], frames.own[frames.counted]
        if len(truth_LV):
            sums[frames.key].add(truth_LV, own_LV)
            if frames.key in series:
                series[frames.key].append((averaged(truth_LV), averaged(own_LV)))
    joined = {
        key: [np.concatenate(part) for part in zip(*pairs, strict=True)] for key, pairs in series.items() if pairs
    }
    map_V = sums[OURS].temporal()
    tr_s = shard_set.runs[run].tr_s
    truth_TP, ours_TP = joined[OURS]
    powers = [band_power(values, tr_s) for values in (truth_TP, joined["itself_pca"][1], ours_TP)]
    rows = [_measures(sums[method.key], joined.get(method.key)) for method in bench.methods]
    return {"measures": np.array(rows), "power": np.array(powers), "map": map_V.astype(np.float32)}


def _measures(found: Agreement, series: list[Floats] | None) -> list[float]:
    temporal_V = found.temporal()
    known_V = temporal_V[np.isfinite(temporal_V)]
    temporal = float(np.median(known_V)) if known_V.size else float("nan")
    edges = float("nan") if series is None else connectivity_agreement(*series)
    return [found.mse, temporal, found.spatial, edges]


def example_run(bench: Bench, shard_set: ShardSet, run: int) -> Arrays:
    """What a panel of a run shows, true and as the model reconstructs it.

    Returns
    -------
    dict
        `frame` (its number), `volume_true`, `volume_ours` `(V,)`; `voxels` (up to 400 positions in the mask, by
        parcel), `carpet_true`, `carpet_ours` `(frames, voxels)`; `series_true`, `series_ours` `(T, P)`; all of
        them residuals in SD.
    """
    voxels = carpet_voxels(bench.labels)
    middle = shard_set.runs[run].num_frames // 2
    averaged = _Parcels(bench.labels, bench.pca.device)
    found: dict[str, list[npt.NDArray[Any]]] = {}
    for frames in _frames(bench, shard_set, run):
        if frames.key != OURS:
            continue
        for name, values_LV in (("true", frames.truth[frames.counted]), ("ours", frames.own[frames.counted])):
            found.setdefault(f"carpet_{name}", []).append(values_LV.cpu().numpy()[:, voxels])
            found.setdefault(f"series_{name}", []).append(averaged(values_LV))
            if frames.start <= middle < frames.start + len(values_LV):
                found[f"volume_{name}"] = [values_LV[middle - frames.start].cpu().numpy()]
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    joined |= {name: joined[name][:CARPET_FRAMES] for name in ("carpet_true", "carpet_ours")}
    return joined | {"voxels": voxels, "frame": np.array(middle), "run": np.array(run)}


def carpet_voxels(labels_V: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Up to 400 voxels, evenly spaced among all of them in the order of their parcels."""
    ordered = np.argsort(labels_V, kind="stable")
    count = min(CARPET_VOXELS, ordered.size)
    return np.asarray(ordered[np.linspace(0, ordered.size - 1, count).astype(int)], dtype=np.int64)


def _frames(bench: Bench, shard_set: ShardSet, run: int) -> Iterator[Frames]:
    """The run's windows, by every method; each window on its own."""
    import torch

    from training.networks.model import inputs_of
    from training.predict import tiling_loader

    device = bench.pca.device
    loader = tiling_loader(bench.model, shard_set, [run], bench.window, bench.batch_size, bench.threads)
    with loader, torch.no_grad():
        for batch in loader:
            inputs: dict[str, Any] = inputs_of(batch, device)
            hidden_BL = _hidden(bench, batch) if bench.model.phase == 2 else None
            for key, truth_BLV, own_BLV, counted_BL in predictions_of(bench.model, inputs, hidden_BL, bench.pca):
                for row, real in enumerate((batch.run >= 0).tolist()):
                    if real:
                        values = {"truth": truth_BLV[row], "own": own_BLV[row], "counted": counted_BL[row]}
                        yield Frames(start=int(batch.start[row]), key=key, **values)


def _hidden(bench: Bench, batch: Any) -> Tensor:
    """Frames to hide, a function of seed, run and start alone."""
    import torch

    from training.pretraining.masking import hidden_frames

    window = torch.stack([batch.run, batch.start], dim=1).numpy()
    key = np.concatenate([np.broadcast_to(np.array([bench.seed, NO_STEP]), window.shape), window], axis=1)
    num_frames = batch.q.shape[1]
    hidden = hidden_frames(batch.num_valid.numpy(), key, num_frames=num_frames, fraction=HIDDEN_SHARE, span=HIDDEN_SPAN)
    return torch.from_numpy(hidden).to(bench.pca.device)


class _Parcels:
    """Mean of each parcel's voxels."""

    def __init__(self, labels_V: npt.NDArray[np.int64], device: torch.device) -> None:
        import torch

        self._inside = torch.from_numpy(np.flatnonzero(labels_V >= 0)).to(device)
        self._labels = torch.from_numpy(labels_V[labels_V >= 0]).to(device)
        self._sizes = torch.bincount(self._labels).double()

    def __call__(self, values_LV: Tensor) -> Floats:
        """Of frames `(L, V)`, as `(L, P)`."""
        sums_LP = self._sizes.new_zeros(len(values_LV), len(self._sizes))
        sums_LP.index_add_(1, self._labels, values_LV[:, self._inside].double())
        found: Floats = (sums_LP / self._sizes).cpu().numpy()
        return found


def by_subject(runs: Mapping[int, Floats], shard_set: ShardSet) -> dict[str, Floats]:
    """Mean of each subject's runs, weighted by frames, `nan` entries left out."""
    found: dict[str, list[tuple[int, Floats]]] = {}
    for run, values in sorted(runs.items()):
        entry = shard_set.runs[run]
        found.setdefault(entry.subject, []).append((entry.num_frames, values))
    means = {}
    for who, rows in found.items():
        values = np.array([value for _, value in rows])
        weights = np.array([frames for frames, _ in rows], dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))
        known = np.isfinite(values)
        weight = (weights * known).sum(0)
        total = np.where(known, values * weights, 0.0).sum(0)
        means[who] = np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)
    return means
