"""A small cohort with a planted connectivity effect, and a stand-in for a trained model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import write_run
from numpy.typing import NDArray

from shards.reader import ShardSet
from shards.splits import Split, make_split

NUM_FRAMES = 60


@dataclass(frozen=True, kw_only=True)
class ToyStudy:
    """A shard set on disk, its split, and the truth of every subject."""

    folder: Path
    split: Split
    truth: dict[str, float]
    set_hash: str


def planted_signals(
    mask: NDArray[np.bool_], truth: dict[str, float], *, effect: float, seed: int, runs: int = 1
) -> dict[str, NDArray]:
    """Runs in which the front couples with the left half (truth 1) or not (truth 0), `effect` strong.

    The mean image and every voxel's variance are the same for all.
    """
    rng = np.random.default_rng(seed)
    x, y, _ = np.nonzero(mask)
    front, left = (y >= mask.shape[1] // 2), (x < mask.shape[0] // 2)
    signals = {}
    for subject, value in truth.items():
        for run in range(runs):
            shared, other = rng.standard_normal((2, NUM_FRAMES))
            weight = effect * value
            series = np.where(left[None], shared[:, None], 0.0)
            mixed = weight * shared + np.sqrt(max(0.0, 1 - weight**2)) * other
            series = np.where(front[None] & ~left[None], mixed[:, None], series)
            noise = rng.standard_normal((NUM_FRAMES, x.size))
            name = f"sub-{subject}_task-rest" + (f"_run-{run + 1}" if runs > 1 else "")
            signals[name] = (1000 + 10 * (series + noise)).astype("f4")
    return signals


@pytest.fixture
def make_study(make_shard_set: Callable[..., Any], mask: NDArray[np.bool_], tmp_path: Path) -> Callable[..., ToyStudy]:
    """Return a function that writes a cohort; half of the subjects are 'case', sites alternate in pairs."""

    def make(
        *, num_subjects: int = 40, effect: float = 0.9, kind: str = "binary", seed: int = 0, runs: int = 1
    ) -> ToyStudy:
        subjects = [f"{k:03d}" for k in range(num_subjects)]
        rng = np.random.default_rng(seed)
        truth = {
            subject: float(k % 2) if kind == "binary" else float(rng.uniform()) for k, subject in enumerate(subjects)
        }
        lines = ["participant_id\tgroup\tscore\tage\tsex\tsite\tfamily"]
        for k, subject in enumerate(subjects):
            group = ("control", "case")[int(truth[subject] > 0.5)]
            age, sex = 20 + rng.integers(0, 40), ("F", "M")[int(rng.integers(2))]
            site = ("leeds", "york")[k // 2 % 2]
            score = 100 + 20 * truth[subject]
            lines.append(f"sub-{subject}\t{group}\t{score:.3f}\t{age}\t{sex}\t{site}\tfam{k // 2}")
        folder = tmp_path / "set"
        signals = planted_signals(mask, truth, effect=effect, seed=seed, runs=runs)
        make_shard_set(folder, signals=signals, participants="\n".join(lines) + "\n", runs_per_shard=64)
        split = make_split(
            subjects,
            groups={subject: f"fam{k // 2}" for k, subject in enumerate(subjects)},
            fractions=(0.5, 0.15, 0.35),
            seed=seed,
            rule={"group": "family"},
        )
        with ShardSet(folder) as shard_set:
            return ToyStudy(folder=folder, split=split, truth=truth, set_hash=shard_set.manifest.set_hash)

    return make


@pytest.fixture
def make_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder whose model says what `say(subject)` gives for each window.

    The folder is a real one with random weights; only what is made of a window is replaced.
    """

    def make(
        study: ToyStudy,
        say: Callable[[str], list[float]],
        *,
        split: Split | None = None,
        **options: Any,
    ) -> Path:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)

        def predict(model: Any, *arguments: Any) -> list[dict[str, Any]]:
            return _predict_windows(say, *arguments)

        monkeypatch.setattr("training.predict.predict_windows", predict)
        return write_run(folder, study.folder, split or study.split, window="25", **options)

    return make


def _predict_windows(
    model: Callable[[str], list[float]],
    shard_set: ShardSet,
    runs: list[int],
    window: str,
    batch_size: int,
    threads: int,
) -> list[dict[str, Any]]:
    rows = []
    for run in runs:
        entry = shard_set.runs[run]
        for start in range(0, entry.num_frames, int(window)):
            rows.append(
                {
                    "run": run,
                    "subject": entry.subject,
                    "start": start,
                    "num_frames": min(int(window), entry.num_frames - start),
                    "output": np.asarray(model(entry.subject), dtype=np.float32),
                }
            )
    return rows
