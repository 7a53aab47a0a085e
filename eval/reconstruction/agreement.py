"""How well predicted frames agree with the true ones: sums over a run, in one pass and bounded memory.

Shapes: L frame, V voxel, T frame of a run, P parcel, F frequency bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = npt.NDArray[np.float64]

BIN_HZ = 0.01
NUM_BINS = 25
SEGMENT_S = 128.0
"""Length of Welch's segments; frequencies 1/128 Hz apart give each bin at least one."""
LEAST_FRAMES_OF_FC = 20


class Agreement:
    """Truth and one method's predictions of a run, frame by frame.

    Parameters
    ----------
    num_voxels : int
        V.
    device : torch.device
        Where the frames are.
    """

    def __init__(self, num_voxels: int, device: torch.device) -> None:
        import torch

        self.num_frames = 0
        self._error = self._spatial = 0.0
        self._sums_5V = torch.zeros(5, num_voxels, dtype=torch.float64, device=device)

    def add(self, truth_LV: Tensor, own_LV: Tensor) -> None:
        """Count some frames."""
        products = (truth_LV, own_LV, truth_LV.square(), own_LV.square(), truth_LV * own_LV)
        for row, values_LV in enumerate(products):
            self._sums_5V[row] += values_LV.sum(0, dtype=self._sums_5V.dtype)
        self.num_frames += len(truth_LV)
        self._error += float((truth_LV - own_LV).square().mean(1).double().sum())
        self._spatial += float(_correlations(truth_LV.double(), own_LV.double()).sum())

    @property
    def mse(self) -> float:
        """Mean squared error, in units of the voxels' variance over the run; `nan` without frames."""
        return self._error / self.num_frames if self.num_frames else float("nan")

    @property
    def spatial(self) -> float:
        """Correlation over voxels, averaged over frames; `nan` for a prediction without contrast."""
        return self._spatial / self.num_frames if self.num_frames else float("nan")

    def temporal(self) -> Floats:
        """Correlation over frames of each voxel, `(V,)`; `nan` where truth or prediction is constant."""
        if self.num_frames < 3:
            return np.full(self._sums_5V.shape[1], np.nan)
        truth, own, truth2, own2, both = (self._sums_5V / self.num_frames).cpu().numpy()
        variance = (truth2 - truth**2) * (own2 - own**2)
        usable = (truth2 - truth**2 > 1e-9) & (own2 - own**2 > 1e-12)
        return np.where(usable, (both - truth * own) / np.sqrt(np.where(usable, variance, 1.0)), np.nan)


def _correlations(truth_LV: Tensor, own_LV: Tensor) -> Tensor:
    """Correlation over voxels of each frame, `(L,)`; `nan` where a frame is constant."""
    truth_LV, own_LV = (x - x.mean(1, keepdim=True) for x in (truth_LV, own_LV))
    found: Tensor = (truth_LV * own_LV).sum(1) / (truth_LV.norm(dim=1) * own_LV.norm(dim=1))
    return found


def connectivity_agreement(truth_TP: Floats, own_TP: Floats) -> float:
    """Pearson correlation of the two connectivity matrices' edges; `nan` in short runs and for constant predictions."""
    from eval.parcels.parcels import connectivity

    if len(truth_TP) < LEAST_FRAMES_OF_FC or np.ptp(own_TP) < 1e-9:
        return float("nan")
    truth, own = connectivity(truth_TP), connectivity(own_TP)
    if truth.size < 3 or np.ptp(truth) == 0 or np.ptp(own) == 0:
        return float("nan")
    return float(np.corrcoef(truth, own)[0, 1])


def band_power(series_TP: Floats, tr_s: float) -> Floats:
    """Power spectral density, averaged over parcels and within bins of 0.01 Hz, `(F,)`, in SD^2 / Hz.

    Bins run from 0 to 0.25 Hz; `nan` where the run has no frequency in one: above Nyquist, or in a run that is
    shorter than 128 s.
    """
    from scipy.signal import welch

    length = min(len(series_TP), round(SEGMENT_S / tr_s))
    if length < 8:
        return np.full(NUM_BINS, np.nan)
    hz, power_FP = welch(series_TP, fs=1 / tr_s, nperseg=length, axis=0)
    where = np.floor(hz / BIN_HZ + 1e-9).astype(int)
    inside = (where < NUM_BINS) & (hz > 0)
    total = np.bincount(where[inside], weights=power_FP.mean(1)[inside], minlength=NUM_BINS)
    count = np.bincount(where[inside], minlength=NUM_BINS)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bin_centres_hz() -> Floats:
    """Middle of each bin of `band_power` in Hz, `(F,)`."""
    return np.asarray((np.arange(NUM_BINS) + 0.5) * BIN_HZ, dtype=np.float64)
