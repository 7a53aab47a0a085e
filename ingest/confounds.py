"""Confounds and motion parameters of a run, in whichever of four forms they come.

===============================  ===========================================================================
`table`  any other name          tab-separated with a header: fMRIPrep's `desc-confounds_timeseries.tsv`,
                                 XCP-D's `motion.tsv`; translations in mm, rotations in radians
`hcp`    Movement_Regressors.txt  6 or 12 numbers a line: translations in mm, rotations in DEGREES, then the
                                 derivatives of both, as the file has them
`fsl`    *.par                   6 numbers a line: rotations in radians first, then translations in mm
`dcan`   *_motion.tsv of         a header and fields between any white space: `trans_x_mm` ... `rot_x_degrees`
         abcd-hcp-pipeline       ... or `X` ... `RotX` ..., rotations in DEGREES
===============================  ===========================================================================

All leave here with fMRIPrep's names and units: `trans_x` in mm, `rot_x` in radians, `framewise_displacement` in mm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ingest.failures import RunError
from ingest.text_file import read_text

HEAD_RADIUS_MM = 50.0
"""Arm that turns rotations into mm (Power et al. 2012, doi:10.1016/j.neuroimage.2011.10.018)."""
TRANSLATIONS = ("trans_x", "trans_y", "trans_z")
ROTATIONS = ("rot_x", "rot_y", "rot_z")
DISPLACEMENT = "framewise_displacement"

Column = NDArray[np.float64]
Kind = Literal["table", "hcp", "fsl", "dcan"]

_HCP_NAME = "Movement_Regressors.txt"
_DERIVATIVE = "_derivative1"
_DCAN = re.compile(r"(?P<trans>[XYZ])(?P<trans_dt>Dt)?|Rot(?P<rot>[XYZ])(?P<rot_dt>Dt)?")
_DCAN_LONG = re.compile(r"(?P<name>(?:trans|rot)_[xyz])_(?:mm|degrees)(?P<dt>_dt)?")


@dataclass(frozen=True, kw_only=True)
class Confounds:
    """The columns of a run's confounds."""

    columns: dict[str, Column]
    """In the file's order, (time,) each; what is no number (`n/a`, empty cells) is nan."""
    kind: Kind


def read_confounds(path: Path, num_frames: int) -> Confounds:
    """Read the confounds of a run of `num_frames` frames.

    XCP-D may cut censored frames out of its series but never out of `motion.tsv`; then the rows that
    `outliers.tsv` beside it marks are left out here too.

    Raises
    ------
    RunError
        Stage `confounds`: the file cannot be read, is not what its name says, or its rows are not the run's frames.
    """
    lines = _lines(path)
    kind: Kind
    if path.name == _HCP_NAME:
        kind, columns = "hcp", _hcp(_numbers(path, lines, (6, 12)))
    elif path.suffix == ".par":
        kind, columns = "fsl", _fsl(_numbers(path, lines, (6,)))
    elif lines and _is_dcan(lines[0].split()):
        kind, columns = "dcan", _dcan(_table(path, [line.split() for line in lines]))
    else:
        kind, columns = "table", _table(path, [line.split("\t") for line in lines])
    num_rows = len(next(iter(columns.values()), ()))
    if num_rows != num_frames:
        columns = _without_censored(path, columns, num_frames)
    return Confounds(columns=columns, kind=kind)


def framewise_displacement_mm(columns: Mapping[str, Column]) -> Column | None:
    """Framewise displacement of each frame in mm.

    Returns
    -------
    float64 array (time,) or None
        The column of that name if there is one; else `power_displacement_mm` of the motion parameters; None
        where neither is there.
    """
    if DISPLACEMENT in columns:
        return columns[DISPLACEMENT]
    if any(name not in columns for name in TRANSLATIONS + ROTATIONS):
        return None
    trans_mm_T3, rot_rad_T3 = (np.stack([columns[name] for name in names], 1) for names in (TRANSLATIONS, ROTATIONS))
    return power_displacement_mm(trans_mm_T3, rot_rad_T3)


def power_displacement_mm(trans_mm_T3: NDArray[np.float64], rot_rad_T3: NDArray[np.float64]) -> Column:
    """Framewise displacement of Power et al. 2012: sum of absolute steps, rotations as arcs on a sphere of 50 mm.

    Parameters
    ----------
    trans_mm_T3
        Translations in mm, (time, axis).
    rot_rad_T3
        Rotations in radians, (time, axis).

    Returns
    -------
    float64 array (time,)
        In mm; nan for the first frame, which has none before it.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a broken estimate is infinite or nan, and no more than that
        steps_mm_T6 = np.abs(np.diff(np.hstack([trans_mm_T3, HEAD_RADIUS_MM * rot_rad_T3]), axis=0))
        return np.concatenate([[math.nan], steps_mm_T6.sum(axis=1)])


def _lines(path: Path) -> list[str]:
    """The lines that are not blank; one of tabs alone is a row of empty cells."""
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            "confounds", f"{path.name} cannot be read ({error})", "restore or remove it", "unreadable"
        ) from None
    return [line for line in text.splitlines() if line.strip(" ")]


def _numbers(path: Path, lines: Sequence[str], widths: Sequence[int]) -> NDArray[np.float64]:
    """A file of nothing but numbers, (time, column)."""
    rows = [line.split() for line in lines]
    width = len(rows[0]) if rows else 0
    try:
        if width not in widths or any(len(row) != width for row in rows):
            raise ValueError(f"{width} columns in its first line")
        return np.array(rows, np.float64)
    except ValueError as error:
        raise RunError(
            "confounds",
            f"{path.name}: {error}, wanted {' or '.join(map(str, widths))} numbers in every line",
            "restore or remove it",
            "malformed",
        ) from None


def _hcp(values: NDArray[np.float64]) -> dict[str, Column]:
    names = [name + end for end in ("", _DERIVATIVE) for name in TRANSLATIONS + ROTATIONS]
    columns = dict(zip(names, values.T, strict=False))
    return {name: np.deg2rad(column) if name.startswith("rot") else column for name, column in columns.items()}


def _fsl(values: NDArray[np.float64]) -> dict[str, Column]:
    return dict(zip(ROTATIONS + TRANSLATIONS, values.T, strict=True))


def _is_dcan(header: Sequence[str]) -> bool:
    return {"X", "Y", "Z", "RotX", "RotY", "RotZ"} <= set(header) or {"trans_x_mm", "rot_x_degrees"} <= set(header)


def _dcan(columns: dict[str, Column]) -> dict[str, Column]:
    renamed = {_dcan_name(name): column for name, column in columns.items()}
    return {name: np.deg2rad(column) if name.startswith("rot_") else column for name, column in renamed.items()}


def _dcan_name(name: str) -> str:
    """The name that fMRIPrep has for a column of DCAN's, or the same name."""
    if match := _DCAN_LONG.fullmatch(name):
        return match["name"] + (_DERIVATIVE if match["dt"] else "")
    if match := _DCAN.fullmatch(name):
        kind, axis = ("trans", match["trans"]) if match["trans"] else ("rot", match["rot"])
        return f"{kind}_{axis.lower()}" + (_DERIVATIVE if match[f"{kind}_dt"] else "")
    return name


def _table(path: Path, rows: Sequence[Sequence[str]]) -> dict[str, Column]:
    """Columns below a header."""
    header = [name.strip() for name in rows[0]] if rows else []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise RunError(
                "confounds",
                f"{path.name}: row {number} has {len(row)} cells, its header {len(header)}",
                "restore or remove it",
                "malformed",
            )
    if len(set(header)) != len(header):
        raise RunError("confounds", f"{path.name}: a column is there twice", "restore or remove it", "malformed")
    cells = zip(*rows[1:], strict=True) if len(rows) > 1 else ([] for _ in header)
    return {name: _column(column) for name, column in zip(header, cells, strict=True)}


def _column(cells: Sequence[str]) -> Column:
    try:
        return np.array(["nan" if cell in ("n/a", "") else cell for cell in cells], np.float64)
    except ValueError:
        return np.array([_number(cell) for cell in cells], np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _without_censored(path: Path, columns: dict[str, Column], num_frames: int) -> dict[str, Column]:
    """The rows of frames that XCP-D kept, if that explains why there are more rows than frames."""
    num_rows = len(next(iter(columns.values()), ()))
    outliers = path.with_name(re.sub(r"(_desc-filtered)?_motion\.tsv$", "_outliers.tsv", path.name))
    if num_rows > num_frames and outliers != path and outliers.is_file():
        marks = _table(outliers, [line.split("\t") for line in _lines(outliers)]).get(DISPLACEMENT)
        if marks is not None and len(marks) == num_rows and np.count_nonzero(marks == 0) == num_frames:
            return {name: column[marks == 0] for name, column in columns.items()}
    raise RunError(
        "confounds",
        f"{path.name} has {num_rows} rows, the run {num_frames} frames",
        "make both from the same run",
        "other-length",
    )
