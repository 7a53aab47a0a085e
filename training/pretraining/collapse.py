"""Whether embeddings collapse: how much they vary, and in how many directions.

Shapes: N embedding, D their width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.engine.collective import sum_over_ranks
from training.engine.environment import Place
from training.pretraining.objectives import effective_rank


class Scatter:
    """Running count, sum and second moments of embeddings.

    Parameters
    ----------
    width
        D.
    """

    def __init__(self, width: int) -> None:
        self.values = np.zeros(1 + width + width * width)
        self.width = width

    def add(self, embedding_ND: Tensor) -> None:
        """Count some embeddings."""
        x_ND = embedding_ND.double().cpu().numpy()
        self.values += np.concatenate([[len(x_ND)], x_ND.sum(0), (x_ND.T @ x_ND).ravel()])

    def report(self, name: str, place: Place) -> dict[str, float]:
        """Variance a dimension and effective rank (1 to D) over all ranks, as `name_variance` and `name_rank`."""
        total = sum_over_ranks(self.values, place)
        count = max(total[0], 1.0)
        mean_D, second_DD = total[1 : 1 + self.width] / count, total[1 + self.width :].reshape(self.width, -1) / count
        covariance_DD = second_DD - np.outer(mean_D, mean_D)
        rank = effective_rank(torch.from_numpy(covariance_DD))
        return {f"{name}_variance": float(np.trace(covariance_DD) / self.width), f"{name}_rank": rank}
