"""Figures that say what a run is like: for the report, the ledger and the run's JSON in its shard."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest.nifti import Header
from shards.values import Encoded

FD_LIMIT_MM = 0.5
"""Framewise displacement above which a frame counts as moved (Power et al. 2012)."""


def run_quality(
    header: Header, encoded: Encoded, fd_mm: NDArray[np.float64] | None, num_outside: int | None
) -> dict[str, Any]:
    """What there is to say about a run beside its row in runs.tsv; JSON-able.

    Parameters
    ----------
    header
        Of the source.
    encoded
        The run as it is stored.
    fd_mm
        Framewise displacement of each frame of the source, (time,); None where it is not known.
    num_outside
        Voxels of the mask outside the field of view of a resampled run; None if it was not resampled.
    """
    quality: dict[str, Any] = {
        "orientation": stored_orientation(header),
        "num_frames_source": header.num_frames,
        "intensity_median": float(np.median(encoded.mean.astype(np.float64))),
        "num_constant_voxels": int((encoded.std == 0).sum()),
    }
    if num_outside is not None:
        quality["resampled"] = True
        quality["num_outside_field_of_view"] = num_outside
    known = np.array([]) if fd_mm is None else fd_mm[np.isfinite(fd_mm)]
    if len(known):
        quality["fd_max_mm"] = float(known.max())
        quality["fd_over_half"] = float((known > FD_LIMIT_MM).mean())
    return quality


def stored_orientation(header: Header) -> str:
    """Directions in which the stored axes run, such as `LAS`; the shard set's are always `RAS`."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(header.affine))
