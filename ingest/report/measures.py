"""What is measured on every run of a set, and which runs lie far from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shards.format import RunEntry

Floats = NDArray[np.float64]
Worse = Literal["lower", "higher", "either"]

FAR = 3.5
"""Robust z from which a run stands out (Iglewicz and Hoaglin 1993)."""
FEWEST = 8
"""Runs from which a spread says something; with fewer none stands out."""
_MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One figure of every run."""

    key: str
    label: str
    unit: str
    worse: Worse
    """The direction that deserves a look."""
    logarithmic: bool
    """Compared by ratio, where all values are positive."""
    least: float
    """Smallest spread that counts: relative (or the log of a ratio), unless `absolute`."""
    absolute: bool = False
    """`least` is in the measure's unit."""


MEASURES = (
    Measure(key="tsnr", label="tSNR", unit="", worse="lower", logarithmic=False, least=0.05),
    Measure(key="fd", label="mean FD", unit="mm", worse="higher", logarithmic=False, least=0.2),
    Measure(key="error", label="quantisation error", unit="%", worse="higher", logarithmic=False, least=0.1),
    Measure(
        key="constant", label="constant voxels", unit="%", worse="higher", logarithmic=False, least=0.3, absolute=True
    ),
    Measure(key="intensity", label="intensity", unit="", worse="either", logarithmic=True, least=0.1),
    Measure(key="minutes", label="length", unit="min", worse="lower", logarithmic=True, least=0.2),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A measure on all runs; arrays are (run,), nan where a run has no value."""

    measure: Measure
    values: Floats
    median: float
    """nan if no run has a value."""
    z: Floats
    """Distance from the median in robust SDs."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Runs that have a value."""
        return np.isfinite(self.values)

    @property
    def badness(self) -> Floats:
        """`z` turned so that larger is worse; -inf where a run has no value."""
        turned = {"lower": -self.z, "higher": self.z, "either": np.abs(self.z)}[self.measure.worse]
        return np.where(self.known, turned, -np.inf)

    @property
    def far(self) -> NDArray[np.bool_]:
        """Runs that stand out; none where there are too few runs to tell."""
        if np.count_nonzero(self.known) < FEWEST:
            return np.zeros(self.values.shape, bool)
        return self.badness > FAR

    def worst(self, count: int) -> list[int]:
        """The `count` worst runs that have a value, worst first, equal ones in order."""
        order = np.argsort(-self.badness, kind="stable")
        return [int(index) for index in order[:count] if self.known[index]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Standout:
    """A run that stands out, and in what, worst first."""

    index: int
    measures: tuple[str, ...]


def measure_runs(rows: Sequence[RunEntry], qc: Mapping[str, Mapping[str, Any]], num_voxels: int) -> dict[str, Measured]:
    """All measures by key.

    Parameters
    ----------
    rows
        The runs.
    qc
        run_id to the figures of `ingest.quality.run_quality`; a run or a figure may be missing.
    num_voxels
        Voxels of the mask.
    """
    own = [qc.get(row.run_id, {}) for row in rows]
    values = {
        "tsnr": [row.tsnr_median for row in rows],
        "fd": [row.mean_fd_mm for row in rows],
        "error": [np.nan if row.lossless else 100 * row.error_rms_rel for row in rows],
        "constant": 100 * _column(own, "num_constant_voxels") / num_voxels,
        "intensity": _column(own, "intensity_median"),
        "minutes": [row.num_frames * row.tr_s / 60 for row in rows],
    }
    return {measure.key: _measured(measure, np.asarray(values[measure.key], np.float64)) for measure in MEASURES}


def standouts(measured: Mapping[str, Measured]) -> list[Standout]:
    """Runs beyond `FAR` in any measure, the farthest first."""
    far = {key: found.far for key, found in measured.items()}
    indices = np.flatnonzero(np.any(list(far.values()), axis=0))
    found = []
    for index in map(int, indices):
        reasons = [key for key in far if far[key][index]]
        reasons.sort(key=lambda key: -measured[key].badness[index])
        found.append(Standout(index=index, measures=tuple(reasons)))
    return sorted(found, key=lambda standout: -measured[standout.measures[0]].badness[standout.index])


def pictured(measured: Mapping[str, Measured], num_worst: int, num_typical: int) -> tuple[list[int], list[int]]:
    """Runs to show: the farthest from the rest, and ordinary ones evenly spaced in tSNR.

    Returns
    -------
    worst, typical
        Indices; no run is in both. Runs that stand out are never among the typical ones.
    """
    badness = np.max([found.badness for found in measured.values()], axis=0)
    order = np.argsort(-badness, kind="stable")
    worst = [int(index) for index in order[:num_worst]]
    ordinary = [int(index) for index in order[num_worst:] if badness[index] <= FAR]
    ordinary.sort(key=lambda index: measured["tsnr"].values[index])
    places = {round(place) for place in np.linspace(0, len(ordinary) - 1, num_typical)} if ordinary else set()
    return worst, [ordinary[place] for place in sorted(places)]


def _column(own: Sequence[Mapping[str, Any]], key: str) -> Floats:
    return np.array([np.nan if one.get(key) is None else one[key] for one in own], np.float64)


def _measured(measure: Measure, values: Floats) -> Measured:
    known = np.isfinite(values)
    values = np.where(known, values, np.nan)
    if not known.any():
        return Measured(measure=measure, values=values, median=np.nan, z=np.full(values.shape, np.nan))
    by_ratio = measure.logarithmic and bool((values[known] > 0).all())
    compared = np.log(values) if by_ratio else values
    middle = float(np.median(compared[known]))
    least = measure.least if measure.absolute or by_ratio else measure.least * abs(middle)
    spread = max(_MAD_TO_SD * float(np.median(np.abs(compared[known] - middle))), least)
    z = np.zeros(values.shape) if spread == 0 else (compared - middle) / spread
    return Measured(
        measure=measure, values=values, median=float(np.median(values[known])), z=np.where(known, z, np.nan)
    )
