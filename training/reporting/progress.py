"""How fast a run goes: frames per second, share of time waiting for data, memory, time left."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
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
    clock
        Seconds from any origin.
    """

    def __init__(
        self, num_steps: int, step: int, loader: WindowLoader, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.num_steps, self.loader, self.clock = num_steps, loader, clock
        self.last_step, self.last_time = step, clock()
        self.last_wait_s = loader.stats.wait_s
        self.frames = 0
        self._settled: tuple[int, float] | None = None

    def count(self, batch: Batch) -> None:
        """Note a batch of this rank; those of the others hold as many windows."""
        self.frames += int(batch.num_valid.sum()) * self.loader.global_batch // len(batch.num_valid)

    def report(self, step: int) -> dict[str, float]:
        """Figures since the last report.

        Returns
        -------
        dict
            `frames_per_s` of all ranks together; of this rank `data_wait` (share of the time that the loop stood
            waiting for the loader), `step_s`, and `memory_gb` (peak); `left_s`, by the mean step since the
            first report, validation and checkpoints included.
        """
        now, wait_s = self.clock(), self.loader.stats.wait_s
        elapsed = max(now - self.last_time, 1e-9)
        step_s = elapsed / max(1, step - self.last_step)
        figures = {
            "frames_per_s": self.frames / elapsed,
            "data_wait": (wait_s - self.last_wait_s) / elapsed,
            "step_s": step_s,
            "memory_gb": memory_gb(),
            "left_s": (self.num_steps - step) * self._mean_step_s(step, now, step_s),
        }
        self.last_step, self.last_time, self.last_wait_s, self.frames = step, now, wait_s, 0
        return figures

    def line(self, step: int, values: dict[str, float], figures: dict[str, Any]) -> str:
        """One line for people: the time of day, the step's loss and its terms, and `figures`."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        left_s = int(figures["left_s"])
        return (
            f"{time.strftime('%H:%M:%S')}  step {step}/{self.num_steps}  {losses}  "
            f"{figures['frames_per_s']:,.0f} frames/s  data wait {100 * figures['data_wait']:.1f} %  "
            f"{figures['memory_gb']:.1f} GB  left {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"
        )

    def _mean_step_s(self, step: int, now: float, step_s: float) -> float:
        """Mean since the first report, since the first steps also start kernels and compile."""
        if self._settled is None:
            self._settled = (step, now)
            return step_s
        first_step, first_time = self._settled
        return (now - first_time) / max(1, step - first_step)


def memory_gb() -> float:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
