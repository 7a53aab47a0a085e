"""What `eval-fmri` can be asked for; the fields are the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from shards.errors import UsageError

Subset = Literal["test", "val"]
PATH_STEPS, NOISE_SAMPLES = 8, 3
SkippedStage = Literal["baselines", "controls", "embed", "explain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonConfig:
    """What every command needs."""

    checkpoint: Path
    """Folder of the phase-3 run (what train.py --out wrote)."""
    shards: str
    """Folder or URL of the shard set that it was trained on."""
    out: Path
    """Folder for the results. Each stage has a folder of its own in it; one that is done is not repeated."""
    subset: Subset = "test"
    """Subjects to score. Validation subjects chose the checkpoint: their scores flatter the model."""
    seed: int = 0
    """Seed of everything that is drawn: resamples, permutations, inner folds, shuffles, noise."""
    batch_size: int = 8
    """Windows per forward pass; changes speed and memory only."""
    threads: int = 2
    """Threads that read shards."""

    def __post_init__(self) -> None:
        at_least(self, batch_size=1, threads=1, seed=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig(CommonConfig):
    """Predict every subject of the validation and the scored part, each frame seen once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselinesConfig(CommonConfig):
    """Fit the baselines on the training subjects, and predict the same subjects as our model does."""

    atlas: Path | None = None
    """3-D NIfTI of integer labels for region series and connectivity (default: geometric parcels)."""
    models: tuple[str, ...] = ()
    """Keys of the baselines to fit; all by default (an unknown key lists them)."""

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        check_atlas(self.atlas)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig(CommonConfig):
    """Write what the model makes of every window and every subject, and a map of the subjects."""

    file_format: Literal["npz", "parquet"] = "npz"
    """parquet needs pyarrow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainConfig(CommonConfig):
    """Which voxels decide, how well frames are reconstructed, and where the model looks in time."""

    subjects: int = 20
    """Subjects to explain, spread over the classes or the range of the target."""
    windows: int = 4
    """Windows of each of them."""
    steps: int = PATH_STEPS
    """Points of the path of integrated gradients."""
    noise_samples: int = NOISE_SAMPLES
    """Noisy copies of a window for SmoothGrad-squared."""
    pretrained: Path | None = None
    """Phase-1 or phase-2 run whose decoder reconstructs (default: the run that the checkpoint started from)."""

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        at_least(self, subjects=1, windows=1, steps=2, noise_samples=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(CommonConfig):
    """Run what is missing of all of it, and write one page that opens offline."""

    atlas: Path | None = None
    """3-D NIfTI of integer labels for region series and connectivity (default: geometric parcels)."""
    models: tuple[str, ...] = ()
    """Keys of the baselines to fit; all by default (an unknown key lists them)."""
    file_format: Literal["npz", "parquet"] = "npz"
    """Of the embeddings; parquet needs pyarrow."""
    explain_subjects: int = 20
    """Subjects whose outputs are traced back to voxels."""
    explain_windows: int = 4
    """Windows of each of them."""
    pretrained: Path | None = None
    """Phase-1 or phase-2 run whose decoder reconstructs (default: the run that the checkpoint started from)."""
    skip: tuple[SkippedStage, ...] = ()
    """Stages to leave out of the page."""
    compare: tuple[Path, ...] = ()
    """Other phase-3 runs of the same split and target: a row each, compared pairwise with ours."""
    bootstrap: int = 2000
    """Resamples of subjects behind each interval."""
    permutations: int = 1000
    """Label permutations behind each p-value."""

    def __post_init__(self) -> None:
        CommonConfig.__post_init__(self)
        at_least(self, bootstrap=100, permutations=100, explain_subjects=1, explain_windows=1)
        check_atlas(self.atlas)


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregateConfig:
    """Put the reports of several seeds or splits of the same task together."""

    reports: Annotated[Positional[tuple[Path, ...]], arg(metavar="REPORT [REPORT ...]")]
    """Folders that eval-fmri report wrote."""
    out: Path
    """Folder for aggregate.json and aggregate.html."""


def check_atlas(atlas: Path | None) -> None:
    """Refuse an atlas that is not there, before anything is computed."""
    if atlas is not None and not atlas.is_file():
        raise UsageError(f"--atlas {atlas}: no such file; give a 3-D NIfTI of integer labels")


def at_least(config: object, **limits: int) -> None:
    """Refuse numbers that are too small.

    Raises
    ------
    UsageError
        Names the flag.
    """
    for name, least in limits.items():
        value = getattr(config, name)
        if value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least {least} is needed")
