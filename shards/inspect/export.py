"""`inspect-fmri export`: a run back to NIfTI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.errors import UsageError
from shards.inspect.lookup import find_run
from shards.inspect.target import OneRunConfig
from shards.inspect.terminal import plural, printable, progress_bar, size


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig(OneRunConfig):
    """Write a run as NIfTI on the set's grid (RAS+ axes); outside the mask all is 0."""

    out: Path
    """File to write: *.nii.gz or *.nii."""
    what: Literal["signal", "residual", "mean", "std", "tsnr"] = "signal"
    """The signal in the source's units, residuals in SDs, or an image of the whole run."""
    start: int = 0
    """First frame."""
    frames: int | None = None
    """Number of frames (default: to the end)."""
    overwrite: bool = False
    """Replace --out if it exists."""

    def __post_init__(self) -> None:
        if self.start < 0 or (self.frames is not None and self.frames < 1):
            raise UsageError(f"--start {self.start} --frames {self.frames}: from 0 on, and at least 1")


def export(config: ExportConfig) -> int:
    """Export, with a bar on a terminal; returns the exit code."""
    from shards.export import export_run
    from shards.reader import ShardSet

    with ShardSet(config.location) as shard_set:
        run = find_run(shard_set, config.run_id)
        entry = shard_set.runs[run]
        series = config.what in ("signal", "residual")
        count = (config.frames or entry.num_frames - config.start) if series else 1
        with progress_bar("writing", count) as advance:
            export_run(
                shard_set,
                run,
                config.out,
                what=config.what,
                start=config.start,
                num_frames=config.frames,
                overwrite=config.overwrite,
                advance=advance,
            )
    frames = f", {plural(count, 'frame')}" if series else ""
    print(printable(f"{config.out}: {config.what} of {entry.run_id}{frames}, {size(config.out.stat().st_size)}"))
    return 0
