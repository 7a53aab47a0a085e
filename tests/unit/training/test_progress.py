"""Speed figures by a clock that is told what time it is."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from training.reporting.progress import Progress, memory_gb


@pytest.fixture
def clocked() -> tuple[Progress, SimpleNamespace]:
    """A run of 100 steps on 4 ranks of 2 windows, and its clock and loader."""
    state = SimpleNamespace(now=1000.0, stats=SimpleNamespace(wait_s=0.0), global_batch=8)
    return Progress(100, 0, state, clock=lambda: state.now), state


def batch(*num_valid: int) -> SimpleNamespace:
    return SimpleNamespace(num_valid=torch.tensor(num_valid))


def test_frames_are_those_of_all_ranks(clocked: tuple[Progress, SimpleNamespace]) -> None:
    progress, state = clocked
    for _ in range(5):
        progress.count(batch(20, 10))
    state.now += 2.0
    assert progress.report(5)["frames_per_s"] == 5 * 30 * 4 / 2.0


def test_figures_are_since_the_last_report(clocked: tuple[Progress, SimpleNamespace]) -> None:
    progress, state = clocked
    progress.count(batch(20, 20))
    state.now += 10.0
    progress.report(10)
    state.now, state.stats.wait_s = state.now + 4.0, 1.0
    found = progress.report(12)
    assert (found["frames_per_s"], found["data_wait"], found["step_s"]) == (0.0, 0.25, 2.0)


def test_the_time_left_forgets_the_slow_start(clocked: tuple[Progress, SimpleNamespace]) -> None:
    progress, state = clocked
    state.now += 600.0
    assert progress.report(10)["left_s"] == 90 * 60.0
    state.now += 20.0
    assert progress.report(20)["left_s"] == 80 * 2.0
    state.now += 60.0
    assert progress.report(30)["left_s"] == 70 * 4.0


def test_the_line_for_people() -> None:
    progress = Progress(20000, 0, SimpleNamespace(stats=SimpleNamespace(wait_s=0.0)))
    figures = {"frames_per_s": 12345.6, "data_wait": 0.0042, "memory_gb": 31.26, "left_s": 3 * 3600 + 125.0}
    line = progress.line(120, {"loss": 0.51239, "hidden": 0.25}, figures)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  step 120/20000  loss 0\.5124  hidden 0\.2500  12,346 frames/s  data wait 0\.4 %  31\.3 GB  "
        r"left 3:02:05",
        line,
    )


def test_memory_is_the_resident_peak_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory_gb() >= 0.9 * psutil.Process().memory_info().rss / 1e9
