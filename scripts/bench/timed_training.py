"""A run of `train.py` as a process, and what its log says about time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[2] / "train.py"
POLL_S = 0.05


class TrainingError(RuntimeError):
    """train.py ended with another exit code than 0."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What was measured.

    Attributes
    ----------
    records
        Lines of the log.
    started_s
        Seconds from the start of the process to the first step: imports, the model, principal components.
    total_s
        Seconds of the process.
    """

    records: tuple[dict[str, Any], ...]
    started_s: float
    total_s: float

    def of(self, event: str) -> list[dict[str, Any]]:
        """Records of one kind."""
        return [record for record in self.records if record["event"] == event]

    def median(self, name: str, skip: int = 1) -> float:
        """Median of a figure over the training lines, the first `skip` left out where more are there.

        A line that follows a validation has its time in it; a median over enough lines does not.
        """
        values = [float(record[name]) for record in self.of("train")]
        return statistics.median(values[skip:] or values)


def timed_training(flags: Sequence[str], out: Path) -> Timed:
    """Train with these flags into a folder.

    Raises
    ------
    TrainingError
        With the last of what it printed.
    """
    began = time.perf_counter()
    printed = out.with_suffix(".txt")
    with printed.open("wb") as file:
        command = [sys.executable, str(TRAIN), *flags, "--out", str(out)]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        started_s = 0.0
        try:
            while process.poll() is None:
                if not started_s and (out / "log.jsonl").exists():
                    started_s = time.perf_counter() - began
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise TrainingError(f"{' '.join(command)}: exit code {process.returncode}: {printed.read_text()[-2000:]}")
    records = tuple(json.loads(line) for line in (out / "log.jsonl").read_text().splitlines())
    return Timed(records=records, started_s=started_s, total_s=time.perf_counter() - began)
