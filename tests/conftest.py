"""Fixtures that several rooms' tests share: tiny shard sets made through the public writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.format import Grid, RunEntry, xxh3
from shards.publish import publish_set, run_entry
from shards.values import decode, encode
from shards.writer import EncodedRun, write_shard

GRID = Grid(
    shape=(7, 8, 6),
    affine=((4.0, 0.0, 0.0, -12.0), (0.0, 4.0, 0.0, -14.0), (0.0, 0.0, 4.0, -10.0), (0.0, 0.0, 0.0, 1.0)),
)

MakeShardSet = Callable[..., dict[str, NDArray]]


@pytest.fixture
def mask() -> NDArray[np.bool_]:
    """An irregular mask on `GRID`."""
    return np.random.default_rng(11).random(GRID.shape) > 0.4


@pytest.fixture
def make_shard_set(mask: NDArray[np.bool_]) -> MakeShardSet:
    """Return a function that writes a shard set into a folder and returns run id -> source signal."""

    def make(
        folder: Path,
        *,
        frames: Sequence[int] = (37, 150, 83),
        dtype: str = "int8",
        tr_s: Sequence[float] | float = 2.0,
        runs_per_shard: int = 2,
        signals: Mapping[str, NDArray] | None = None,
        participants: str | None = None,
        seed: int = 0,
        num_wide: int = 0,
        mask: NDArray[np.bool_] = mask,
        grid: Grid = GRID,
    ) -> dict[str, NDArray]:
        rng = np.random.default_rng(seed)
        voxels = int(mask.sum())
        if signals is None:
            signals = {
                f"sub-{k:02d}_task-rest": (1000 + 20 * rng.standard_normal((t, voxels))).astype("f4")
                for k, t in enumerate(frames)
            }
        for signal in signals.values():
            signal[5, :num_wide] += 4000
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(signals)
        times = dict(zip(names, np.broadcast_to(tr_s, len(names)).tolist(), strict=True))
        entries: list[RunEntry] = []
        shards = []
        for number, first in enumerate(range(0, len(names), runs_per_shard)):
            shard = f"toy-{number:06d}.tar"
            runs = [_encode(name, signals[name], dtype, times[name]) for name in names[first : first + runs_per_shard]]
            written = write_shard(folder / shard, runs)
            shards.append(written.info)
            for run in runs:
                errors = _errors(run, signals[run.run_id])
                entries.append(run_entry(run, shard, written.places[run.run_id], **errors))
        publish_set(
            folder,
            name="toy",
            dtype=dtype,
            mask=mask,
            grid=grid,
            entries=entries,
            shards=shards,
            participants=None if participants is None else participants.encode(),
            mask_source="made by a test",
        )
        return dict(signals)

    return make


def _encode(run_id: str, signal: NDArray, dtype: str, tr_s: float) -> EncodedRun:
    subject = run_id.split("_")[0].removeprefix("sub-")
    meta = {"subject": subject, "session": "", "task": "rest", "run": "", "entities": {}, "tr_s": tr_s, "source": "toy"}
    return EncodedRun(run_id=run_id, meta=meta, encoded=encode(signal, dtype))


def _errors(run: EncodedRun, signal: NDArray) -> dict[str, object]:
    encoded = run.encoded
    decoded = decode(
        encoded.q,
        encoded.mean,
        encoded.scale,
        lossless=encoded.lossless,
        grid_slope=encoded.grid_slope,
        grid_inter=encoded.grid_inter,
    )
    error = np.abs(decoded.astype(np.float64) - signal)
    rms = float(np.sqrt((error**2).mean()))
    return {
        "source_bytes": signal.nbytes,
        "source_xxh3": xxh3(signal.tobytes()),
        "error_max": float(error.max()),
        "error_rms": rms,
        "error_rms_rel": rms / float(signal.std(0).mean()),
        "tsnr_median": 50.0,
        "mean_fd_mm": 0.1,
    }
