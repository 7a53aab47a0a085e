"""The mask of a set: given, or the runs' own brain masks combined, or computed from the runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ingest.check import CheckedRun
from ingest.failures import RunError
from ingest.grid import canonical_grid, describe, same_grid, stored_positions
from ingest.nifti import Header, for_each_frame, read_header
from shards.errors import UsageError
from shards.format import Grid

MAX_OWN_MASKS = 200
MAX_MEAN_RUNS = 5
MIN_PART_OF_GRID = 0.05
"""A computed mask with less of the grid than this is taken for a failure of the method."""
_SIGNAL_PART = 0.2  # of the 98th percentile of the mean image

T = TypeVar("T")
Failed = Callable[[CheckedRun, RunError], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SetMask:
    """The mask of a set and where it comes from."""

    voxels: NDArray[np.bool_]
    """(x, y, z) on the canonical grid."""
    source: str
    """In words, for the manifest."""


def given_mask(path: Path, grid: Grid) -> SetMask:
    """The mask of --mask.

    Raises
    ------
    UsageError
        It cannot be read, lies on another grid, or is empty.
    """
    try:
        voxels = _read_mask(path, grid)
    except RunError as error:
        raise UsageError(f"--mask {path}: {error.reason}; {error.remedy}") from None
    return SetMask(voxels=voxels, source=f"given: {path.name}")


def grid_of_given(path: Path) -> Grid:
    """The grid of --mask; raises `UsageError` if its header cannot be read."""
    try:
        return canonical_grid(read_header(path))
    except RunError as error:
        raise UsageError(f"--mask {path}: {error.reason}; {error.remedy}") from None


def combined_mask(runs: Sequence[CheckedRun], grid: Grid) -> tuple[SetMask | None, list[str]]:
    """The runs' own masks combined: voxels in at least half of them.

    Parameters
    ----------
    runs
        In order of run_id; of more than 200 with a mask, 200 evenly spaced ones are read.

    Returns
    -------
    mask
        None if no run has a usable mask or none of their voxels is in half of them.
    notes
        One line for each mask that could not be used.
    """
    paths = [run.record.mask for run in runs if run.record.mask is not None]
    votes = np.zeros(grid.shape, np.int32)
    count, notes = 0, []
    for path in evenly(paths, MAX_OWN_MASKS):
        try:
            votes += _read_mask(path, grid)
            count += 1
        except RunError as error:
            notes.append(f"brain mask not used: {path.name}: {error.reason}")
    voxels = 2 * votes >= max(count, 1)
    if not count or not voxels.any():
        return None, notes
    source = f"brain masks of the runs: voxels in at least half of {count} masks"
    return SetMask(voxels=voxels, source=source), notes


def computed_mask(runs: Sequence[CheckedRun], grid: Grid, failed: Failed) -> SetMask | None:
    """A mask from the mean image of up to 5 runs, evenly spaced in order of run_id.

    nilearn's `compute_epi_mask` decides; where it finds next to nothing (single slices, tiny grids),
    voxels above 20 % of the 98th percentile of the mean image that vary in time are taken. Of runs without a
    mean (XCP-D's are centred on zero) it is all that vary.

    Parameters
    ----------
    failed
        Called with each run that could not be read; another one takes its place.

    Returns
    -------
    SetMask or None
        None if no run could be read or none has a varying voxel.
    """
    total, varying, count = np.zeros(grid.shape), np.zeros(grid.shape, bool), 0
    first_choice = list(evenly(runs, MAX_MEAN_RUNS))
    chosen_ids = {run.record.run_id for run in first_choice}
    for run in [*first_choice, *(run for run in runs if run.record.run_id not in chosen_ids)]:
        if count == min(MAX_MEAN_RUNS, len(runs)):
            break
        try:
            mean, varies = _mean_image(run)
        except RunError as error:
            failed(run, error)
            continue
        total += mean
        varying |= varies
        count += 1
    if not varying.any():
        return None
    mean_image = total / count
    what = f"the mean image of {count} run{'s' if count > 1 else ''}"
    low, high = np.percentile(mean_image[varying], [2, 98])
    if low < -_SIGNAL_PART * high:
        return SetMask(voxels=varying, source=f"computed: voxels that vary, since {what} is centred on zero")
    voxels = _epi_mask(mean_image, grid)
    if voxels.sum() >= MIN_PART_OF_GRID * voxels.size and (voxels & varying).any():
        return SetMask(voxels=voxels, source=f"computed: nilearn compute_epi_mask of {what}")
    voxels = varying & (mean_image > _SIGNAL_PART * np.percentile(mean_image, 98))
    if not voxels.any():
        return None
    return SetMask(voxels=voxels, source=f"computed: varying voxels above 20 % of the 98th percentile of {what}")


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly spaced, the first one included."""
    return [items[k * len(items) // most] for k in range(most)] if len(items) > most else list(items)


def _read_mask(path: Path, grid: Grid) -> NDArray[np.bool_]:
    header = read_header(path)
    found = canonical_grid(header)
    if len(header.shape) != 3:
        raise RunError("mask", f"{len(header.shape)}D, wanted 3D", "give a mask of one volume", "not-3d")
    if not same_grid(found, grid):
        raise RunError(
            "mask", f"grid is {describe(found)}, the runs' is {describe(grid)}", "resample the mask", "other-grid"
        )
    positions = stored_positions(header)
    voxels = np.zeros(grid.shape, bool)

    def keep(_: int, frame: NDArray) -> None:
        voxels[:] = np.nan_to_num(_signal(frame, header))[positions] != 0

    for_each_frame(path, header, keep)
    if not voxels.any():
        raise RunError("mask", "no voxel in it", "give a mask with voxels", "empty")
    return voxels


def _mean_image(run: CheckedRun) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean over time, and whether a voxel varies, both (x, y, z); voxels that are not finite count as 0."""
    header = run.header
    size = header.frame_bytes // header.dtype.itemsize
    total, first, varies = np.zeros(size), np.zeros(size, header.dtype.newbyteorder("=")), np.zeros(size, bool)

    def add(t: int, frame: NDArray) -> None:
        if t == 0:
            first[:] = frame
        np.add(total, frame, out=total)
        np.logical_or(varies, frame != first, out=varies)

    with np.errstate(invalid="ignore", over="ignore"):
        for_each_frame(run.record.bold, header, add)
        mean = _signal(total / header.num_frames, header)
    finite = np.isfinite(mean)
    positions = stored_positions(header)
    return np.where(finite, mean, 0.0)[positions], (varies & finite)[positions]


def _signal(stored: NDArray, header: Header) -> NDArray[np.float64]:
    return stored.astype(np.float64) * header.slope + header.inter


def _epi_mask(mean_image: NDArray[np.float64], grid: Grid) -> NDArray[np.bool_]:
    import nibabel
    from nilearn.masking import compute_epi_mask

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nibabel.Nifti1Image(mean_image.astype(np.float32), np.asarray(grid.affine))
            voxels: NDArray[np.bool_] = np.asarray(compute_epi_mask(image).dataobj) != 0
    except (ValueError, IndexError, TypeError):  # nilearn refuses images of one slice or without contrast
        return np.zeros(grid.shape, bool)
    return voxels
