"""What is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shards.errors import UsageError
from training.config import TrainConfig
from training.start import check_window


def config(**flags: Any) -> TrainConfig:
    return TrainConfig(shards=("s",), out=Path("o"), window="30", **flags)


def loader(window_frames: int) -> Any:
    return SimpleNamespace(window_frames=window_frames)


def test_windows_longer_than_the_ancestors_positions_are_refused() -> None:
    with pytest.raises(UsageError, match="--window 30: 30 frames, the preset tff has positions for 29"):
        check_window(config(phase=2, init="none", preset="tff"), loader(30))


@pytest.mark.parametrize(
    ("flags", "frames"),
    [
        ({"phase": 2, "init": "none", "preset": "tff"}, 29),
        ({"phase": 1, "preset": "tff"}, 30),
        ({"phase": 2, "init": "none", "preset": "base"}, 3000),
    ],
)
def test_other_windows_are_not(flags: dict[str, Any], frames: int) -> None:
    check_window(config(**flags), loader(frames))
