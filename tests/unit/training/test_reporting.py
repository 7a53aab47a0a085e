"""What a step tells the journal and DeepSpeed's monitors."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed as dist

from training.reporting.journal import Journal
from training.reporting.steps import report_step, report_validation

SPEED = {"frames_per_s": 800.0, "data_wait": 0.1, "step_s": 0.5, "memory_gb": 2.0, "left_s": 60.0}


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def engine(*, monitored: bool = True, norm: float | None = 2.0, fp16: bool = False) -> Any:
    written: list[tuple[str, float, int]] = []
    return SimpleNamespace(
        get_global_grad_norm=lambda: norm,
        get_lr=lambda: [0.01],
        fp16_enabled=lambda: fp16,
        optimizer=SimpleNamespace(loss_scale=1024.0),
        skipped_steps=3,
        global_samples=48,
        monitor=SimpleNamespace(enabled=monitored, write_events=written.extend),
        written=written,
    )


def report(folder: Path, told: Any) -> dict[str, Any]:
    progress = SimpleNamespace(report=lambda step: SPEED, line=lambda step, losses, speed: f"{step} {losses}")
    terms = {"hidden": torch.tensor(0.25), "contrast": torch.tensor(1.5)}
    report_step(Journal(folder, True), told, progress, terms, 1.75, 6)
    return json.loads((folder / "log.jsonl").read_text())


def test_monitors_get_all_that_the_journal_gets_over_samples(tmp_path: Path) -> None:
    told = engine()
    record = report(tmp_path, told)
    expected = {"loss": 1.75, "hidden": 0.25, "contrast": 1.5, "lr": 0.01, "grad_norm": 2.0} | SPEED
    assert {name: record[name] for name in expected} == expected
    assert {name: value for name, value, _ in told.written} == {f"Train/{name}": v for name, v in expected.items()}
    assert {samples for *_, samples in told.written} == {48}


def test_a_norm_that_is_not_kept_is_null_and_no_event(tmp_path: Path) -> None:
    told = engine(norm=None)
    assert report(tmp_path, told)["grad_norm"] is None
    assert "Train/grad_norm" not in [name for name, *_ in told.written]


def test_fp16_tells_its_scale(tmp_path: Path) -> None:
    record = report(tmp_path, engine(fp16=True))
    assert (record["loss_scale"], record["skipped_steps"]) == (1024.0, 3.0)


def test_no_monitor_no_event(tmp_path: Path) -> None:
    told = engine(monitored=False)
    report(tmp_path, told)
    assert told.written == []


def test_validation_is_told_to_all_three(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = engine()
    logging.getLogger("training").propagate = True
    with caplog.at_level(logging.INFO, logger="training"):
        report_validation(Journal(tmp_path, True), told, {"mse": 0.5, "beats_trivial": True, "latent_rank": 3.0}, 6)
    assert json.loads((tmp_path / "log.jsonl").read_text())["mse"] == 0.5
    assert told.written == [("Val/mse", 0.5, 48), ("Val/beats_trivial", 1.0, 48), ("Val/latent_rank", 3.0, 48)]
    assert "step 6 validation: mse 0.5, latent_rank 3" in caplog.text
