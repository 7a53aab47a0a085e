"""Tell windows from their time reversal, on subjects that the model and the probe have not seen.

    python scripts/arrow_of_time.py --run runs/p1 runs/p2 --shards shards --out arrow.json

A check that a trained model carries the order of frames, with labels that are free and exact: each window is shown
forward and reversed. A ridge probe on lagged second moments of the model's tokens (`training.reversal`) is fitted on
the training subjects and scored on the test subjects. Beside it stand what must be at chance: the same on windows
whose frames were shuffled, and everything static (means and covariances of frame latents and of parcels, so static
functional connectivity), which is the same in both directions; and, as a reference, the same probe on parcel means
without any model.

What is told apart is linear lag structure: slice timing and the delay of each region's vessels count as much as
neural dynamics. Do not call it neural irreversibility.

Several runs with splits of one set (split-fmri folds) are folds: their mean is reported, since scores pooled over
folds are biased. Subjects are what is left out, counted and resampled; where one person's runs are to take that
place, name the runs as subjects at ingest and say so. Intervals are 95 % bootstraps over the test subjects, the fit
held fixed.

Exit codes: 0 done, 2 usage, 5 output unusable, 6 run and shard set do not belong together, 7 damaged shards.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import EXIT_OK, BoldstreamError, MismatchError, OutputError, UsageError
from shards.flags import read_flags

if TYPE_CHECKING:
    from shards.reader import ShardSet
    from training.checkpoints.export import LoadedModel
    from training.reversal import Pairs

Floats = NDArray[np.float64]
NO_MODEL = "no model"
SHUFFLED_WINDOWS = 1000
"""The control shows each test window in as many orders as make about so many; fewer would leave it noisy."""
RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True)
class ArrowConfig:
    """Tell windows from their time reversal, on subjects that the model and the probe have not seen."""

    run: tuple[Path, ...]
    """Finished runs of train.py, of any phase; those of several splits are folds."""
    shards: str
    """Folder or URL of the shard set."""
    out: Path | None = None
    """JSON file to write."""
    window: str | None = None
    """Window length in frames (20) or seconds (16s); default: the model's."""
    skip_frames: int = 10
    """Frames left out at either end of a run, where scanner and filters settle."""
    part: Literal["test", "val"] = "test"
    """Part of the split to score."""
    atlas: Path | None = None
    """3-D NIfTI of integer labels for the parcels; default: geometric parcels."""
    resamples: int = 2000
    """Bootstrap resamples of the subjects."""
    seed: int = 0
    """Seed of shuffles and resamples."""

    def __post_init__(self) -> None:
        if self.skip_frames < 0:
            raise UsageError(f"--skip_frames {self.skip_frames}: must be at least 0")
        if self.resamples < 1:
            raise UsageError(f"--resamples {self.resamples}: must be at least 1")
        if self.out is not None and self.out.exists():
            raise OutputError(f"--out {self.out}: is already there; name another file")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One probe, scored on unseen subjects; `resampled_*` are its values in each bootstrap resample."""

    run: str
    model: str
    sees: str
    features: str
    dimensions: int
    penalty: float
    left_out_error: float
    num_train_windows: int
    num_train_subjects: int
    num_windows: int
    num_subjects: int
    auroc: float
    accuracy: float
    resampled_auroc: Floats
    resampled_accuracy: Floats


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Windows of the training and of the test subjects, as (run, first frame), and their length."""

    shard_set: ShardSet
    split_hash: str
    train: list[tuple[int, int]]
    test: list[tuple[int, int]]
    window: int

    @property
    def runs(self) -> list[int]:
        """Every run with a window."""
        return sorted({run for run, _ in self.train + self.test})

    def cut(self, series: dict[int, NDArray[np.float32]]) -> tuple[Pairs, Pairs]:
        """Windows of the training and of the test subjects."""
        from training.reversal import cut

        return tuple(cut(series, self.shard_set, places, self.window) for places in (self.train, self.test))


def main() -> int:
    """Read flags, print a table; returns the exit code."""
    import tyro

    try:
        parse = partial(tyro.cli, ArrowConfig, description=__doc__, use_underscores=True)
        return tell(read_flags(parse, "scripts/arrow_of_time.py"))
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def tell(config: ArrowConfig) -> int:
    """Fit and score every probe of every run."""
    from shards.reader import ShardSet
    from shards.writer import write_atomic

    with ShardSet(config.shards) as shard_set:
        rows = list(all_rows(config, shard_set))
    table = [summary([row], row.run) for row in rows]
    for same in groups_of(rows):
        if len(same) > 1:
            table.append(summary(same, f"mean of {len(same)}"))
    print(f"{'run':24} {'model':8} {'sees':28} {'AUROC of windows':>22} {'accuracy of subjects':>24}")
    for line in table:
        print(
            f"{line['run'][-24:]:24} {line['model']:8} {line['sees']:28} "
            f"{as_text(line['auroc']):>22} {as_text(line['accuracy']):>24}"
        )
    if config.out is not None:
        record = {"settings": {k: str(v) for k, v in asdict(config).items()}, "results": table}
        try:
            write_atomic(config.out, json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"--out {config.out}: {error.strerror}; choose another file") from None
    return EXIT_OK


def all_rows(config: ArrowConfig, shard_set: ShardSet) -> Iterator[Row]:
    """Rows of each run, and once for each split those that need no model."""
    from training.checkpoints.export import load_model

    done: set[tuple[str, int]] = set()
    for folder in config.run:
        loaded = load_model(folder)
        cohort = open_cohort(config, shard_set, folder, loaded)
        yield from model_rows(config, cohort, folder, loaded)
        if (cohort.split_hash, cohort.window) not in done:
            done.add((cohort.split_hash, cohort.window))
            yield from parcel_rows(config, cohort, folder)


def open_cohort(config: ArrowConfig, shard_set: ShardSet, folder: Path, loaded: LoadedModel) -> Cohort:
    """Training and test runs of a run's split, and the window length.

    Raises
    ------
    MismatchError
        The shard set has another mask.
    UsageError
        A part has no runs here, or the window does not fit.
    """
    from shards.order import parse_window

    if not np.array_equal(loaded.model.volume.mask.numpy().astype(bool), shard_set.mask):
        raise MismatchError(
            f"{shard_set.location}: its mask ({shard_set.num_voxels} voxels) is not that of {folder} "
            f"({loaded.model.volume.num_voxels} voxels); give the shard set of the training"
        )
    parts = {part: loaded.split.runs(shard_set, part) for part in ("train", config.part)}
    for part, runs in parts.items():
        if not runs:
            raise UsageError(f"{folder}: no run of its {part} subjects is in {shard_set.location}; give its shard set")
    text = config.window or str(loaded.config["window"])
    lengths = parse_window(text, [shard_set.runs[run].tr_s for runs in parts.values() for run in runs])
    if len(set(lengths.tolist())) > 1:
        raise UsageError(f"--window {text}: runs of several repetition times give several lengths; give it in frames")
    positions = loaded.model.size.positions
    if positions is not None and loaded.model.phase > 1 and lengths[0] >= positions:
        raise UsageError(f"--window {text}: the transformer of {folder} takes less than {positions} frames")
    window = int(lengths[0])
    train, test = (places_of(shard_set, runs, window, config) for runs in parts.values())
    return Cohort(shard_set=shard_set, split_hash=loaded.split.hash, train=train, test=test, window=window)


def places_of(shard_set: ShardSet, runs: Sequence[int], window: int, config: ArrowConfig) -> list[tuple[int, int]]:
    """(run, first frame) of the windows of some runs, the same in every call.

    Raises
    ------
    UsageError
        No run is long enough.
    """
    from training.reversal import window_starts

    found: list[tuple[int, int]] = []
    for run in runs:
        rng = np.random.default_rng([config.seed, run])
        starts = window_starts(shard_set.runs[run].num_frames, window, config.skip_frames, rng)
        found.extend((run, start) for start in starts)
    if not found:
        longest = max(shard_set.runs[run].num_frames for run in runs)
        raise UsageError(
            f"{shard_set.location}: no whole window of {window} frames in runs of at most {longest} without "
            f"{config.skip_frames} frames at either end; lower --window or --skip_frames"
        )
    return found


def model_rows(config: ArrowConfig, cohort: Cohort, folder: Path, loaded: LoadedModel) -> Iterator[Row]:
    """Tokens, tokens of shuffled windows, and the static part of the frame latents."""
    from training import reversal

    model = loaded.model
    latents = cohort.cut({run: reversal.latents_of(model, cohort.shard_set, run) for run in cohort.runs})
    copies = -(-SHUFFLED_WINDOWS // len(cohort.test))
    mixed = [reversal.shuffled(pairs, config.seed, n) for pairs, n in zip(latents, (1, copies), strict=True)]
    name = f"phase {model.phase}"
    for sees, (train, test), choices in (
        ("order of tokens", [reversal.in_context(model, pairs) for pairs in latents], reversal.ORDER),
        ("shuffled frames (control)", [reversal.in_context(model, pairs) for pairs in mixed], reversal.ORDER),
        ("static part of latents", latents, reversal.STATIC),
    ):
        yield scored(config, cohort, str(folder), name, sees, train, test, choices)


def parcel_rows(config: ArrowConfig, cohort: Cohort, folder: Path) -> Iterator[Row]:
    """The same probe on parcel means: order, and static functional connectivity."""
    from eval.parcels.parcels import atlas_parcels, geometric_parcels, parcel_series
    from training import reversal

    parcels = atlas_parcels(cohort.shard_set, config.atlas) if config.atlas else geometric_parcels(cohort.shard_set)
    train, test = cohort.cut({run: parcel_series(cohort.shard_set, run, parcels) for run in cohort.runs})
    for sees, choices in (("order of parcel means", reversal.ORDER), ("static FC of parcels", reversal.STATIC)):
        yield scored(config, cohort, str(folder), NO_MODEL, sees, train, test, choices)


def scored(
    config: ArrowConfig,
    cohort: Cohort,
    run: str,
    model: str,
    sees: str,
    train: Pairs,
    test: Pairs,
    choices: Mapping[str, Sequence[str]],
) -> Row:
    """Fit a probe, and score it on the test windows and on every resample of their subjects."""
    from eval.scoring.bootstrap import resample_counts
    from training.reversal import fit_direction

    probe = fit_direction(train, choices)
    units, unit_N = np.unique(test.unit, return_inverse=True)
    # the same resamples for every probe of a split, others for another fold
    counts_BU = resample_counts(config.resamples, len(units), seed=config.seed + int(cohort.split_hash[:8], 16))
    counts_BU = np.concatenate([np.ones((1, len(units)), np.int64), counts_BU])
    auroc_B, accuracy_B = direction_metrics(probe.score(test), unit_N, counts_BU)
    return Row(
        run=run,
        model=model,
        sees=sees,
        features=probe.features,
        dimensions=probe.dimensions,
        penalty=probe.penalty,
        left_out_error=probe.error,
        num_train_windows=len(train.unit),
        num_train_subjects=len(np.unique(train.unit)),
        num_windows=len(test.unit),
        num_subjects=len(units),
        auroc=float(auroc_B[0]),
        accuracy=float(accuracy_B[0]),
        resampled_auroc=auroc_B[1:],
        resampled_accuracy=accuracy_B[1:],
    )


def direction_metrics(
    score_N: Floats, unit_N: NDArray[np.int64], counts_BU: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """AUROC of windows, and the share of subjects whose mean score has the right sign (0 counts half).

    Parameters
    ----------
    score_N
        Of each window shown forward; shown backward it is the negative.
    unit_N, counts_BU
        Subject of each window; how often each subject counts in resample b.
    """
    from eval.scoring.weighted import weighted_scores

    truth, output = np.repeat([1.0, 0.0], len(score_N)), np.concatenate([score_N, -score_N])[:, None]
    auroc_B = np.concatenate(
        [
            weighted_scores(truth, output, "binary", counts_BU[k : k + RESAMPLES_AT_ONCE, np.tile(unit_N, 2)])["auroc"]
            for k in range(0, len(counts_BU), RESAMPLES_AT_ONCE)
        ]
    )
    mean_U = np.bincount(unit_N, score_N) / np.bincount(unit_N)
    right_U = (mean_U > 0) + 0.5 * (mean_U == 0)
    return auroc_B, counts_BU @ right_U / counts_BU.sum(1)


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that ask the same of several runs."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.sees), []).append(row)
    return list(groups.values())


def summary(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """One row as JSON, or the mean of several (folds: of their values, not of pooled scores)."""
    found: dict[str, Any] = {"run": name, "model": rows[0].model, "sees": rows[0].sees}
    for key in ("auroc", "accuracy"):
        value = float(np.mean([getattr(row, key) for row in rows]))
        resampled = np.mean([getattr(row, f"resampled_{key}") for row in rows], axis=0)
        low, high = np.nanpercentile(resampled, [2.5, 97.5]).tolist()
        found[key] = {"value": value, "low": low, "high": high}
    if len(rows) == 1:
        details = {k: v for k, v in vars(rows[0]).items() if not k.startswith("resampled_")}
        found = details | found
    return found


def as_text(estimate: dict[str, float]) -> str:
    """A value and its interval."""
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
