"""How fast a run goes: frames per second, share of time waiting for data, memory, time left."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from shards.loader import Batch, WindowLoader


class Progress:
    """Speed since the last report.

    Parameters
    ----------
    num_steps
        Optimizer steps of the whole run.
    step
        Steps done before this process.
    loader
        The training loader, which measures its consumer's waiting.
    """

    def __init__(self, num_steps: int, step: int, loader: WindowLoader) -> None:
        self.num_steps, self.loader = num_steps, loader
        self.last_step, self.last_time = step, time.perf_counter()
        self.last_wait_s = loader.stats.wait_s
        self.frames = 0

    def count(self, batch: Batch) -> None:
        """Note a batch of this rank."""
        self.frames += int(batch.num_valid.sum())

    def report(self, step: int) -> dict[str, float]:
        """Figures since the last report, of this rank."""
        now, wait_s = time.perf_counter(), self.loader.stats.wait_s
        elapsed = max(now - self.last_time, 1e-9)
        figures = {
            "frames_per_s": self.frames / elapsed,
            "data_wait": (wait_s - self.last_wait_s) / elapsed,
            "step_s": elapsed / max(1, step - self.last_step),
            "memory_gb": memory_gb(),
        }
        self.last_step, self.last_time, self.last_wait_s, self.frames = step, now, wait_s, 0
        return figures

    def line(self, step: int, loss: float, figures: dict[str, Any]) -> str:
        """One line for people."""
        left_s = int((self.num_steps - step) * figures["step_s"])
        return (
            f"step {step}/{self.num_steps}  loss {loss:.4f}  {figures['frames_per_s']:,.0f} frames/s  "
            f"data wait {100 * figures['data_wait']:.1f} %  {figures['memory_gb']:.1f} GB  "
            f"left {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"
        )


def memory_gb() -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
