"""The methods paragraph, to paste into a paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ingest.report.wording import hours, number, of_runs, significant, tally
from shards.format import Manifest, RunEntry

NILEARN = "Abraham et al., 2014, doi:10.3389/fninf.2014.00014"
NIBABEL = "Brett et al., doi:10.5281/zenodo.591597"
ZARR = "Miles et al., 2020, doi:10.5281/zenodo.3773449"
FD = "Power et al., 2012, doi:10.1016/j.neuroimage.2011.10.018"
_STEPS = {"int8": ("8-bit", 16), "int16": ("16-bit", 1024)}


def methods(
    manifest: Manifest, rows: Sequence[RunEntry], qc: Mapping[str, Mapping[str, Any]], methods_cleaning: str
) -> str:
    """Grid, mask, cleaning, stored values with their measured error, software with references.

    Parameters
    ----------
    methods_cleaning
        What `ingest.cleaning.clean.methods_text` says; empty if the signal was not cleaned.
    """
    cleaning = methods_cleaning.strip() or "The signal was not filtered, regressed or censored at this step."
    said = (_runs(manifest, rows), *_motion(rows), _geometry(manifest, rows, qc), cleaning, *_values(manifest, rows))
    return " ".join((*said, _software(manifest)))


def _runs(manifest: Manifest, rows: Sequence[RunEntry]) -> str:
    subjects = len({row.subject for row in rows})
    signal = hours(sum(row.num_frames * row.tr_s for row in rows))
    times = {row.tr_s for row in rows}
    tr = f"{rows[0].tr_s:g} s" if len(times) == 1 else tally((f"{row.tr_s:g} s" for row in rows), "run")
    return (
        f"Preprocessed BOLD data ({of_runs(len(rows))} of {subjects:,} subject{'' if subjects == 1 else 's'}, "
        f"{sum(row.num_frames for row in rows):,} frames, {signal}; repetition time {tr}) were converted from NIfTI "
        f"to a shard set with boldstream {manifest.software.get('boldstream', '(version unknown)')} (set hash "
        f"{manifest.set_hash})."
    )


def _geometry(manifest: Manifest, rows: Sequence[RunEntry], qc: Mapping[str, Mapping[str, Any]]) -> str:
    shape = " × ".join(map(str, manifest.grid.shape))
    size = " × ".join(f"{edge:.4g}" for edge in manifest.grid.voxel_mm)
    resampled = sum(bool(qc.get(row.run_id, {}).get("resampled")) for row in rows)
    kind = {"linear": "trilinear interpolation", "cubic": "cubic B-splines"}.get(str(manifest.config.get("resample")))
    how = f" with {kind}" if kind else ""
    moved = f"; {of_runs(resampled)} {'was' if resampled == 1 else 'were'} resampled onto it{how}" if resampled else ""
    return (
        f"All runs lie on one grid of {shape} voxels of {size} mm in RAS+ orientation{moved}. The "
        f"{manifest.num_voxels:,} voxels of a mask ({manifest.mask_source}) were kept."
    )


def _motion(rows: Sequence[RunEntry]) -> list[str]:
    known = [row.mean_fd_mm for row in rows if math.isfinite(row.mean_fd_mm)]
    if not known:
        return []
    some = f" (median of the {of_runs(len(known))} with confounds)" if len(known) < len(rows) else " (median over runs)"
    return [
        f"Mean framewise displacement ({FD}) was {number(float(np.median(known)), 3)} mm"
        f"{some if len(rows) > 1 else ''}."
    ]


def _values(manifest: Manifest, rows: Sequence[RunEntry]) -> list[str]:
    lossless = sum(row.lossless for row in rows)
    said = [_encoding(manifest, rows)] if lossless < len(rows) else []
    if lossless:
        who = "Every run was" if lossless == len(rows) else f"{of_runs(lossless)} {'was' if lossless == 1 else 'were'}"
        said.append(f"{who} kept exactly, as the source's own integers.")
    errors = np.array([100 * row.error_rms_rel for row in rows if not row.lossless])
    if errors.size and manifest.dtype != "float32":
        worst = f" (median over runs; {significant(float(errors.max()))} % in the worst)" if errors.size > 1 else ""
        middle = significant(float(np.median(errors)))
        origin = "cleaned signal" if manifest.cleaning else "source"
        said.append(f"The rms difference to the {origin} was {middle} % of the temporal SD{worst}.")
    return said


def _encoding(manifest: Manifest, rows: Sequence[RunEntry]) -> str:
    if manifest.dtype not in _STEPS:
        what = {"float16": "half-precision z-scores with its mean and SD", "float32": "32-bit floating-point numbers"}
        return f"Each voxel's time series was stored as {what[manifest.dtype]}."
    bits, steps = _STEPS[manifest.dtype]
    stepped = [row.num_wide_voxels for row in rows if not row.lossless]
    wide = 100 * sum(stepped) / (manifest.num_voxels * len(stepped))
    share = f"so in {significant(wide, 2)} % of the time series" if wide else "in none of the time series"
    return (
        f"Each voxel's time series was stored as {bits} integers about its temporal mean, in steps of 1/{steps} of its "
        f"temporal SD, or wider where its largest deviation would otherwise be clipped ({share})."
    )


def _software(manifest: Manifest) -> str:
    version = manifest.software
    used = [f"NiBabel {version.get('nibabel', '')} ({NIBABEL})", f"zarr-python {version.get('zarr', '')} ({ZARR})"]
    if manifest.cleaning or "nilearn" in manifest.mask_source:
        used.insert(0, f"nilearn {version.get('nilearn', '')} ({NILEARN})")
    return (
        f"Shards are tar files of Zarr version 3 arrays. Software: Python {version.get('python', '')}, NumPy "
        f"{version.get('numpy', '')}, {', '.join(used)}."
    )
