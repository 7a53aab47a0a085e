"""Which columns are regressed out of a run, which frames are censored, and how many are dropped at its start.

Presets are nilearn's (`nilearn.interfaces.fmriprep.load_confounds_strategy`), which takes fMRIPrep's confounds:

    ..._desc-confounds_timeseries.tsv     columns; n/a in the first row of derivatives (the second row stands in)
    ..._desc-confounds_timeseries.json    which CompCor component is of which mask (only `compcor` needs it)

It finds them by the name of the BOLD file, which fails for uncompressed images, for two tables of one subject whose
names differ in entities only, for tables in another folder, and for folders with `tsv` in their name. So it is shown
the run's own table under names that it takes, whatever the files are called.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.cleaning.config import COSINE_PERIOD_S, SCRUB_DVARS, SCRUB_FD_MM, SCRUB_SEGMENT_FRAMES, CleaningConfig
from ingest.confounds import Confounds, framewise_displacement_mm, read_confounds
from ingest.failures import RunError
from ingest.layouts.names import parse_name
from ingest.layouts.tree import stem
from ingest.record import RunRecord

Array = NDArray[np.float64]

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
TISSUE = ("csf", "white_matter")
_EXPANSIONS = ("", "_derivative1", "_power2", "_derivative1_power2")
_AROMA = "smoothAROMAnonaggr"
_DENOISED = (_AROMA, "denoised", "denoisedSmoothed", "interpolated")
"""What fMRIPrep and XCP-D call series without their confounds."""
_BY_NAME = "name columns with --confounds instead, which works for every table"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to do with the frames and confounds of one run."""

    names: tuple[str, ...]
    """Columns that are regressed out."""
    regressors_TR: Array
    """(time, regressor), all frames of the run, finite."""
    num_first: int
    """Frames to drop at the start."""
    kept_T: NDArray[np.bool_]
    """(time,), all frames of the run: False where one is censored."""


def select(record: RunRecord, config: CleaningConfig, num_frames: int, tr_s: float) -> Selection:
    """Choose regressors and frames for one run.

    Raises
    ------
    RunError
        Stage `confounds` (the table cannot be read or has another length) or `clean` (it lacks what is asked for).
    """
    chosen: dict[str, Array] = {}
    kept_T = np.ones(num_frames, dtype=bool)
    num_first = config.drop_first
    if config.can_censor or config.confounds or config.drop_non_steady:
        path = _table(record, config)
        table = read_confounds(path, num_frames)
        if config.clean != "none":
            chosen, kept_T = _preset(record, path, table, config, tr_s)
        chosen |= _named(table, path, config.confounds)
        kept_T = kept_T & ~_over_thresholds(table, path, config, num_frames)
        if config.drop_non_steady:
            num_first = max(num_first, _num_non_steady(table, path))
    regressors = [_without_gaps(name, column, path) for name, column in chosen.items()]
    return Selection(
        names=tuple(chosen),
        regressors_TR=np.stack(regressors, axis=1) if regressors else np.empty((num_frames, 0)),
        num_first=num_first,
        kept_T=kept_T,
    )


def _table(record: RunRecord, config: CleaningConfig) -> Path:
    if record.confounds is not None:
        return record.confounds
    asked = ", ".join(f"--{name.replace('_', '-')}" for name in _flags_that_need_a_table(config))
    raise RunError(
        "clean",
        f"{asked} needs a confounds table, found none for {record.bold.name}",
        "put *_desc-confounds_timeseries.tsv beside it, name it in a table of runs (--layout table), or leave the run "
        "out (--exclude)",
        "no-confounds",
    )


def _flags_that_need_a_table(config: CleaningConfig) -> list[str]:
    names = ("clean", "confounds", "drop_non_steady", "censor_fd_mm", "censor_dvars")
    return [name for name in names if getattr(config, name) not in ("none", (), False, None)]


def _preset(
    record: RunRecord, path: Path, table: Confounds, config: CleaningConfig, tr_s: float
) -> tuple[dict[str, Array], NDArray[np.bool_]]:
    """Columns and kept frames as nilearn's preset has them."""
    preset = config.clean
    if table.kind != "table":
        raise RunError(
            "clean",
            f"--clean {preset} needs the columns of fMRIPrep, {path.name} has only motion parameters",
            f"{_BY_NAME}: --confounds 'trans_*' 'rot_*'",
            "no-confounds",
        )
    _chk_denoised_before(record, preset)
    num_frames = len(next(iter(table.columns.values())))
    _chk_columns(table, path, preset, num_frames * tr_s)
    if preset == "compcor" and not path.with_suffix(".json").is_file():
        raise RunError(
            "clean",
            f"--clean compcor needs {path.with_suffix('.json').name} beside the table, which says of which mask a "
            "component is",
            "copy it from fMRIPrep's output (1.4 or later), or choose another preset",
            "no-confounds",
        )
    frame, sample_mask = _load(path, preset, _parameters(config))
    kept_T = np.ones(num_frames, dtype=bool)
    if sample_mask is not None:
        kept_T[:] = False
        kept_T[sample_mask] = True
    return {str(name): frame[name].to_numpy(np.float64) for name in frame}, kept_T


def _chk_denoised_before(record: RunRecord, preset: str) -> None:
    """A preset takes its regressors out of data that still hold them."""
    desc = parse_name(stem(record.bold.name))[0].get("desc", "")
    if preset == "ica_aroma" and desc != _AROMA:
        raise RunError(
            "clean",
            f"--clean ica_aroma is what follows fMRIPrep's own AROMA step, it takes *_desc-{_AROMA}_bold files, "
            f"found {record.bold.name}",
            "give those files in a table of runs (--layout table), or choose another preset",
            "not-denoised",
        )
    if preset != "ica_aroma" and desc in _DENOISED:
        raise RunError(
            "clean",
            f"--clean {preset} wants a run whose confounds are still in it, {record.bold.name} is denoised already",
            "take the *_desc-preproc_bold files, or leave --clean out",
            "already-denoised",
        )


def _chk_columns(table: Confounds, path: Path, preset: str, duration_s: float) -> None:
    """Say which columns are missing: nilearn names some of them, and goes on without cosines."""
    needed = [f"{name}{end}" for name in MOTION for end in _EXPANSIONS] if preset != "ica_aroma" else []
    if preset == "scrubbing":
        needed += [f"{name}{end}" for name in TISSUE for end in _EXPANSIONS]
        needed += ["framewise_displacement", "std_dvars"]
    elif preset != "compcor":
        needed += TISSUE
    if duration_s >= COSINE_PERIOD_S:
        needed.append("cosine00")
    if missing := [name for name in needed if name not in table.columns]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise RunError(
            "clean",
            f"--clean {preset} needs columns that {path.name} lacks: {', '.join(missing[:5])}{more}",
            f"use the table of fMRIPrep 1.4 or later, or {_BY_NAME}",
            "missing-columns",
        )


def _parameters(config: CleaningConfig) -> dict[str, Any]:
    """What is not left to nilearn's defaults: they changed in 0.13."""
    if config.clean != "scrubbing":
        return {}
    return {
        "scrub": SCRUB_SEGMENT_FRAMES,
        "fd_threshold": SCRUB_FD_MM if config.censor_fd_mm is None else config.censor_fd_mm,
        "std_dvars_threshold": SCRUB_DVARS if config.censor_dvars is None else config.censor_dvars,
    }


def _load(path: Path, preset: str, parameters: dict[str, Any]) -> tuple[Any, NDArray[np.integer] | None]:
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    try:
        with _names_for_nilearn(path, preset) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # no frame is left: we say so ourselves
            frame, sample_mask = load_confounds_strategy(image, denoise_strategy=preset, demean=False, **parameters)
    except (ValueError, LookupError, TypeError, OSError) as error:
        said = " ".join(str(error).split())
        raise RunError(
            "clean",
            f"nilearn cannot take --clean {preset} from {path.name}: {said}",
            f"mend the table, or {_BY_NAME}",
            "malformed",
        ) from None
    return frame, sample_mask


@contextmanager
def _names_for_nilearn(path: Path, preset: str) -> Iterator[str]:
    """Give the path of an image (there is none) that nilearn finds this table by."""
    root = Path(tempfile.gettempdir())
    if "tsv" in str(root):  # nilearn finds the JSON by replacing it in the whole path
        raise RunError(
            "clean",
            f"nilearn cannot read the JSON of a table below {root}",
            "set TMPDIR to another folder",
            "unreadable",
        )
    folder = root / f"confounds-{secrets.token_hex(8)}"  # hexadecimal: no tsv in this name either
    folder.mkdir(mode=0o700)
    try:
        for file in (path, path.with_suffix(".json")):
            suffix = ".json" if file.suffix == ".json" else ".tsv"
            (folder / f"sub-0_desc-confounds_timeseries{suffix}").symlink_to(file.resolve())
        yield str(folder / f"sub-0_desc-{_AROMA if preset == 'ica_aroma' else 'preproc'}_bold.nii.gz")
    finally:
        shutil.rmtree(folder)


def _named(table: Confounds, path: Path, patterns: tuple[str, ...]) -> dict[str, Array]:
    """The columns that --confounds asks for, in the table's order."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in table.columns):
            there = ", ".join(list(table.columns)[:8])
            raise RunError(
                "clean",
                f"--confounds {pattern!r} fits no column of {path.name} (which has {len(table.columns)}: {there}, ...)",
                "correct the name or pattern",
                "missing-columns",
            )
    return {
        name: column
        for name, column in table.columns.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _over_thresholds(table: Confounds, path: Path, config: CleaningConfig, num_frames: int) -> NDArray[np.bool_]:
    """Frames above --censor-fd-mm or --censor-dvars; n/a is not. The preset `scrubbing` has applied them itself."""
    over_T = np.zeros(num_frames, dtype=bool)
    if config.clean == "scrubbing":
        return over_T
    for flag, limit, values_T in (
        ("--censor-fd-mm", config.censor_fd_mm, framewise_displacement_mm(table.columns)),
        ("--censor-dvars", config.censor_dvars, table.columns.get("std_dvars")),
    ):
        if limit is None:
            continue
        if values_T is None:
            wanted = "framewise_displacement or six motion parameters" if "fd" in flag else "a column std_dvars"
            reason = f"{flag} needs {wanted}, {path.name} has none"
            raise RunError("clean", reason, "leave the flag or the run out", "missing-columns")
        over_T |= np.nan_to_num(values_T, nan=0.0) > limit
    return over_T


def _num_non_steady(table: Confounds, path: Path) -> int:
    """Number of frames that are marked at the start of the run."""
    if table.kind != "table":
        raise RunError(
            "clean",
            f"--drop-non-steady needs fMRIPrep's confounds table, {path.name} has only motion parameters",
            "give the number of frames with --drop-first",
            "no-confounds",
        )
    marks = [column for name, column in table.columns.items() if name.startswith("non_steady_state_outlier")]
    marked_T = np.any([column > 0 for column in marks], axis=0) if marks else np.zeros(1, dtype=bool)
    return int(np.argmin(np.append(marked_T, False)))


def _without_gaps(name: str, column_T: Array, path: Path) -> Array:
    """Derivatives are n/a in the first row: the first number stands in for n/a before it; no other gap is allowed."""
    known = np.flatnonzero(np.isfinite(column_T))
    first = int(known[0]) if len(known) else len(column_T)
    if first + len(known) < len(column_T) or not len(known):
        gap = first + int(np.argmin(np.isfinite(column_T[first:]))) if len(known) else 0
        raise RunError(
            "clean",
            f"column {name} of {path.name} has no number in row {gap + 1} (of {len(column_T)})",
            "leave this column out of --confounds, or mend the table",
            "not-finite",
        )
    return np.concatenate([np.full(first, column_T[first]), column_T[first:]]) if first else column_T
