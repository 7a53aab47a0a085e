"""The collapse monitor, against numpy, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from training.engine.environment import Place
from training.pretraining.collapse import Scatter


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    yield Place(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    dist.destroy_process_group()


def test_variance_and_rank_equal_numpy_whatever_the_parts(place: Place) -> None:
    x = torch.randn(60, 4) * torch.tensor([3.0, 1.0, 0.5, 0.1]) + 5
    scatter = Scatter(4)
    for part in x.split([10, 1, 49]):
        scatter.add(part)
    found = scatter.report("latent", place)
    covariance = np.cov(x.double().numpy().T, bias=True)
    share = np.linalg.eigvalsh(covariance) / np.trace(covariance)
    assert found["latent_variance"] == pytest.approx(np.trace(covariance) / 4)
    assert found["latent_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_collapsed_embeddings_have_rank_one(place: Place) -> None:
    scatter = Scatter(6)
    scatter.add(torch.randn(50, 1) * torch.randn(1, 6))
    assert scatter.report("context", place)["context_rank"] == pytest.approx(1, abs=1e-3)


def test_constant_embeddings_have_no_variance(place: Place) -> None:
    scatter = Scatter(3)
    scatter.add(torch.ones(20, 3))
    assert scatter.report("context", place)["context_variance"] == 0
