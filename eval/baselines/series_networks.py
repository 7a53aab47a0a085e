"""Networks on windows of region series: a perceptron on single frames, and a recurrent network.

Shapes: B window, T frame, P region, H hidden, K output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameMLP(nn.Module):
    """The same perceptron on every frame, its hidden units averaged over time, then a linear readout.

    It knows which patterns of regions occur together, and nothing of their order. After "meanMLP" of Popov et al.
    2024, "A simple but tough-to-beat baseline for fMRI time-series classification".
    """

    def __init__(self, num_regions: int, num_outputs: int, *, hidden: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Linear(num_regions, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
        )
        self.readout = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, num_outputs))

    def forward(self, series_BTP: Tensor, num_frames_B: Tensor) -> Tensor:
        """Outputs `(B, K)` of windows, of each the first `num_frames` frames."""
        output_BK: Tensor = self.readout(mean_over_time(self.frames(series_BTP), num_frames_B))
        return output_BK


class SeriesLSTM(nn.Module):
    """A long short-term memory over the frames, its states averaged over time, then a linear readout.

    Hochreiter and Schmidhuber 1997, "Long short-term memory".
    """

    def __init__(self, num_regions: int, num_outputs: int, *, hidden: int = 48, dropout: float = 0.3) -> None:
        super().__init__()
        self.memory = nn.LSTM(num_regions, hidden, batch_first=True)
        self.readout = nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout), nn.Linear(hidden, num_outputs))

    def forward(self, series_BTP: Tensor, num_frames_B: Tensor) -> Tensor:
        """Outputs `(B, K)` of windows, of each the first `num_frames` frames."""
        state_BTH, _ = self.memory(series_BTP)
        output_BK: Tensor = self.readout(mean_over_time(state_BTH, num_frames_B))
        return output_BK


def mean_over_time(state_BTH: Tensor, num_frames_B: Tensor) -> Tensor:
    """Mean of the first `num_frames` states of each window, shape (B, H)."""
    frame_T = torch.arange(state_BTH.shape[1], device=state_BTH.device)
    real_BT1 = (frame_T[None] < num_frames_B[:, None]).to(state_BTH.dtype)[:, :, None]
    return (state_BTH * real_BT1).sum(dim=1) / num_frames_B[:, None]
