"""The journal: JSON lines that every reader takes, and none twice after a restart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from training.reporting.journal import Journal


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_line_has_event_step_time_and_values(tmp_path: Path) -> None:
    Journal(tmp_path, True).write("train", 3, loss=0.5, beats=True)
    (found,) = records(tmp_path)
    told = datetime.fromisoformat(found.pop("time"))
    assert abs(datetime.now(UTC) - told) < timedelta(minutes=1)
    assert found == {"event": "train", "step": 3, "loss": 0.5, "beats": True}


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    Journal(tmp_path, True).write("train", 1, grad_norm=float("inf"), loss=float("nan"))
    assert records(tmp_path)[0]["grad_norm"] is None and records(tmp_path)[0]["loss"] is None


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    Journal(tmp_path, False).write("train", 1, loss=1.0)
    assert not (tmp_path / "log.jsonl").exists()


def test_rewinding_drops_what_is_going_to_happen_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, True)
    for step in range(5):
        journal.write("train", step)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    journal.rewind(2)
    assert [record["step"] for record in records(tmp_path)] == [0, 1, 2]
    journal.rewind(0)
    assert records(tmp_path) == []
