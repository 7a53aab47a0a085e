"""Every test of this folder draws the same numbers each time."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed torch before each test."""
    torch.manual_seed(0)
