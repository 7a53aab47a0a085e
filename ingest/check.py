"""Is this run fit for ingest? Header, number of frames, repetition time: one run at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ingest.failures import RunError
from ingest.nifti import MAX_TR_S, Header, read_header
from ingest.record import RunRecord
from ingest.text_file import read_text

MIN_TR_S = 0.01
"""Below, seconds and milliseconds were mistaken for each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRun:
    """A run whose header has passed."""

    record: RunRecord
    header: Header
    tr_s: float


def check_run(record: RunRecord, *, min_frames: int, tr_s: float | None) -> CheckedRun:
    """Read the header of a run and check it.

    Parameters
    ----------
    record
        The run as found.
    min_frames
        Fewest frames allowed.
    tr_s
        Repetition time in seconds that goes before everything (--tr), or None.

    Raises
    ------
    RunError
        Stage `open`, `header`, `frames` or `tr`.
    """
    header = read_header(record.bold)
    if len(header.shape) != 4:
        shape = " x ".join(map(str, header.shape))
        hint = "CIFTI is not volumetric, take the NIfTI volume" if len(header.shape) > 4 else "leave it out (--exclude)"
        raise RunError("header", f"{len(header.shape)}D ({shape}), wanted 4D: x, y, z, time", hint, "not-4d")
    if header.num_frames < min_frames:
        reason = f"{header.num_frames} frames, wanted {min_frames} or more"
        raise RunError("frames", reason, "leave it out, or lower --min-frames", "too-few-frames")
    return CheckedRun(record=record, header=header, tr_s=_tr_s(record, header, tr_s))


def _tr_s(record: RunRecord, header: Header, override: float | None) -> float:
    """--tr, else the table, else the sidecar, else the header."""
    sidecar = _sidecar_tr_s(record.sidecar) if override is None and record.tr_s is None else None
    found = [value for value in (override, record.tr_s, sidecar, header.tr_s) if value is not None]
    if not MIN_TR_S <= found[0] <= MAX_TR_S:
        shown = "none" if math.isnan(found[0]) else f"{found[0]:g} s"
        raise RunError(
            "tr",
            f"repetition time is {shown}, wanted {MIN_TR_S:g} to {MAX_TR_S:g} s",
            "add RepetitionTime (seconds) to the JSON beside the file, or give --tr",
            "no-repetition-time",
        )
    return found[0]


def _sidecar_tr_s(path: Path | None) -> float | None:
    if path is None:
        return None
    try:
        value = json.loads(read_text(path)).get("RepetitionTime")
        if isinstance(value, bool):
            raise TypeError("RepetitionTime is no number")
        return None if value is None else float(value)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{path.name} cannot be used ({error})"
        raise RunError("tr", reason, "correct or remove the JSON file", "bad-sidecar") from None
