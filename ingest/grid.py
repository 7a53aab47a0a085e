"""The common grid: canonical (RAS+) orientation, the most frequent grid, and where a voxel lies in a file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ingest.failures import RunError
from ingest.nifti import Header
from shards.format import Grid

TOLERANCE_MM = 1e-3


def canonical_grid(header: Header) -> Grid:
    """The grid of a file after flipping and permuting its axes to the nearest RAS+ orientation."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    stored = header.shape[:3]
    orientation = io_orientation(header.affine)
    affine = header.affine @ inv_ornt_aff(orientation, stored) + 0.0  # no negative zeros
    shape = [0, 0, 0]
    for axis, target in enumerate(orientation[:, 0].astype(int)):
        shape[target] = stored[axis]
    return Grid(shape=(shape[0], shape[1], shape[2]), affine=tuple(tuple(map(float, row)) for row in affine))


def stored_positions(header: Header) -> NDArray[np.intp]:
    """Where each canonical voxel lies in a stored frame.

    Returns
    -------
    ndarray of intp
        (x, y, z) on the canonical grid; flat positions in the file's Fortran order.
    """
    from nibabel.orientations import apply_orientation, io_orientation

    shape = header.shape[:3]
    flat = np.arange(np.prod(shape), dtype=np.intp).reshape(shape, order="F")
    positions: NDArray[np.intp] = apply_orientation(flat, io_orientation(header.affine))
    return positions


def same_grid(one: Grid, two: Grid) -> bool:
    """Whether two grids have one shape and affines within 1e-3 mm."""
    return one.shape == two.shape and bool(
        np.allclose(np.asarray(one.affine), np.asarray(two.affine), rtol=0, atol=TOLERANCE_MM)
    )


def most_frequent(grids: Iterable[Grid]) -> Grid:
    """The grid that most runs have; of equally frequent ones, that of the first run."""
    groups: list[Grid] = []
    counts: list[int] = []
    for grid in grids:
        known = next((k for k, other in enumerate(groups) if same_grid(grid, other)), None)
        if known is None:
            groups.append(grid)
            counts.append(1)
        else:
            counts[known] += 1
    return groups[counts.index(max(counts))]


def other_grid(found: Grid, wanted: Grid) -> RunError:
    """The failure of a run that lies on another grid than the set's."""
    return RunError(
        "grid",
        f"{describe(found)}, the set's is {describe(wanted)}",
        "resample it with --resample linear, or ingest it into a set of its own (another --out)",
        "other-grid",
    )


def describe(grid: Grid) -> str:
    """Shape, voxel size and origin of a grid in one phrase."""
    shape = " x ".join(map(str, grid.shape))
    voxel = " x ".join(f"{size:.4g}" for size in grid.voxel_mm)
    origin = ", ".join(f"{row[3]:.4g}" for row in grid.affine[:3])
    return f"{shape} at {voxel} mm from ({origin})"
