"""The page's sentences: how the set stands, what to look at first, why a run stands out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.failures import Failure
from ingest.report.groups import Duplicates
from ingest.report.measures import FAR, FEWEST, Measured, Standout
from ingest.report.wording import decimals, hours, number, of_runs, quantity, tally
from ingest.sizes import format_size
from shards.format import Manifest, RunEntry

NO_MOTION = (
    "Motion is not known: no run came with a confounds table that has framewise displacement or the six "
    "motion parameters."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """How the set stands: a title, its tone ('good', 'look', 'bad') and a sentence or two."""

    title: str
    tone: str
    sentences: tuple[str, ...]


def headline(
    manifest: Manifest | None, rows: Sequence[RunEntry], num_failed: int, standouts: Sequence[Standout]
) -> Headline:
    """The first lines of the page."""
    if manifest is None or not rows:
        title = f"No run was ingested: {_failed(num_failed)}" if num_failed else "No run was ingested"
        first = "Nothing is stored yet. The failures below say why and what to do."
        return Headline(
            title=title, tone="bad", sentences=(first if num_failed else "No failure is on record either.",)
        )
    subjects = len({row.subject for row in rows})
    title = f"{of_runs(len(rows))} of {subjects:,} subject{'' if subjects == 1 else 's'}"
    title += f" stored, {num_failed:,} failed" if num_failed else " stored, none failed"
    num_in, num_out = sum(row.source_bytes for row in rows), stored_bytes(manifest)
    size = (
        f"{hours(sum(row.num_frames * row.tr_s for row in rows)).capitalize()} of signal; {format_size(num_in)} of "
        f"NIfTI in, {format_size(num_out)} of shards out ({num_in / max(1, num_out):.1f} to 1)."
    )
    tone = "look" if num_failed or standouts else "good"
    return Headline(title=title, tone=tone, sentences=(size, _standing(len(rows), len(standouts))))


def stored_bytes(manifest: Manifest) -> int:
    """Bytes of all shards."""
    return sum(shard.num_bytes for shard in manifest.shards)


def _failed(count: int) -> str:
    return "the one that was found failed" if count == 1 else f"all {count:,} that were found failed"


def _standing(num_runs: int, num_far: int) -> str:
    if num_runs < FEWEST:
        return (
            f"With fewer than {FEWEST} runs none can be told to stand out: the worst in each figure are listed below."
        )
    if not num_far:
        return f"No run lies farther than {FAR} robust SDs from the set's median in any figure."
    verb = "stands" if num_far == 1 else "stand"
    return f"{of_runs(num_far)} {verb} out from the rest and {'is' if num_far == 1 else 'are'} named below."


def notices(
    rows: Sequence[RunEntry],
    qc: Mapping[str, Mapping[str, Any]],
    failures: Sequence[Failure],
    duplicates: Sequence[Duplicates],
    measured: Mapping[str, Measured],
    cleaned: bool,
) -> list[str]:
    """What concerns the set as a whole, the most urgent first."""
    said = []
    if failures:
        said.append(f"{of_runs(len(failures))} failed, at stage: {tally((one.stage for one in failures), 'run')}.")
    across = sum(twins.across_subjects for twins in duplicates)
    if across:
        said.append(
            f"{across:,} file content{'' if across == 1 else 's'} occur{'s' if across == 1 else ''} under more than "
            "one subject: one of them is probably mislabelled, and a split by subject would leak it."
        )
    if len({row.tr_s for row in rows}) > 1:
        said.append(
            f"The repetition time differs: {tally((f'{row.tr_s:g} s' for row in rows), 'run')}. A window of a given "
            "number of frames then covers different spans of time; --resample-tr makes them one."
        )
    said += _motion(rows, measured["fd"]) if rows else []
    if rows and measured["tsnr"].median < 2:
        said.append(
            "tSNR is near 0 because the runs had their mean removed before ingest; neither it nor the mean images say "
            "anything here."
        )
    resampled = [row.run_id for row in rows if qc.get(row.run_id, {}).get("resampled")]
    if resampled:
        said.append(f"{of_runs(len(resampled))} lay on another grid and were resampled: look for them in the table.")
    if cleaned:
        said.append(
            "The runs were cleaned: tSNR, quantisation error and pictures are those of the cleaned signal, motion is "
            "that of the source."
        )
    return said


def _motion(rows: Sequence[RunEntry], fd: Measured) -> list[str]:
    known = int(np.count_nonzero(fd.known))
    if not known:
        return [NO_MOTION]
    said = []
    high = int(np.count_nonzero(fd.values[fd.known] > 0.5))
    if high:
        said.append(f"Mean FD is above 0.5 mm in {of_runs(high)}; many studies leave such runs out.")
    if known < len(rows):
        said.append(f"Motion is known for {known:,} of {len(rows):,} runs only; the others had no confounds table.")
    return said


def reason(found: Measured, row: RunEntry, own: Mapping[str, Any], index: int, num_voxels: int) -> str:
    """Why a run stands out in a measure, with its numbers."""
    measure, value, median = found.measure, float(found.values[index]), found.median
    far = f"(robust z {_z(float(found.z[index]))})"
    told = quantity(measure, value, median)
    usual = f"the set's median is {quantity(measure, median, median)}"
    if measure.key == "constant":
        return f"{own['num_constant_voxels']:,} of {num_voxels:,} voxels ({told}) do not vary in time, {usual} {far}"
    if measure.key == "intensity" and value > 0 and median > 0:
        ratio = value / median
        times = f"{ratio:.3g} times" if ratio >= 0.01 else f"1/{1 / ratio:.0f} of"
        return f"median intensity {told}, {times} the set's {quantity(measure, median, median)} {far}"
    if measure.key == "fd" and own.get("fd_over_half") is not None:
        return f"mean FD {told} with {100 * own['fd_over_half']:.0f} % of the frames above 0.5 mm, {usual} {far}"
    if measure.key == "error":
        return f"quantisation error {told} of the temporal SD, {usual}: rare large deviations made its steps wide {far}"
    if measure.key == "minutes":
        return f"{told} of signal ({row.num_frames:,} frames), {usual} {far}"
    return f"{measure.label} {told}, {usual} {far}"


def _z(z: float) -> str:
    return number(z, 1) if abs(z) < 99.95 else number(z)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstList:
    """The worst runs in one measure, or why there are none."""

    title: str
    entries: tuple[tuple[int, str, bool], ...]
    """Index, value in words, whether it stands out."""
    note: str


def worst_lists(measured: Mapping[str, Measured], count: int) -> list[WorstList]:
    """The worst runs by tSNR, motion, quantisation error and constant voxels."""
    titles = {
        "tsnr": "Lowest tSNR",
        "fd": "Most motion (mean FD)",
        "error": "Largest quantisation error",
        "constant": "Most constant voxels",
    }
    return [_worst_list(measured[key], title, count) for key, title in titles.items()]


def _worst_list(found: Measured, title: str, count: int) -> WorstList:
    key, far = found.measure.key, found.far
    known = found.values[found.known]
    note = ""
    if key == "fd" and not known.size:
        note = NO_MOTION
    elif key == "error" and not known.any():
        note = "Every run is stored without loss."
    elif key == "constant" and not known.size:
        note = "Not recorded when these runs were ingested."
    elif key == "constant" and not known.any():
        note = "Every voxel of the mask varies in every run."
    if note:
        return WorstList(title=title, entries=(), note=note)
    worst = [index for index in found.worst(count) if key != "constant" or found.values[index] > 0]
    entries = [
        (index, quantity(found.measure, float(found.values[index]), found.median), bool(far[index])) for index in worst
    ]
    shown = quantity(found.measure, found.median, found.median)
    unit = " of the temporal SD" if key == "error" else " of the mask" if key == "constant" else ""
    note = f"Median of the set: {shown}{unit}." if known.size > 1 else ""
    return WorstList(title=title, entries=tuple(entries), note=note)


def summary_of(found: Measured) -> str:
    """`Median 53.8, from 12.4 to 60.2 over 34 runs.`"""
    known, median = found.values[found.known], found.median
    digits, unit = decimals(found.measure, median), f" {found.measure.unit}" if found.measure.unit else ""
    if known.size == 1:
        return f"The one value is {number(float(known[0]), digits)}{unit}."
    ends = f"from {number(float(known.min()), digits)} to {number(float(known.max()), digits)}"
    return f"Median {number(median, digits)}{unit}, {ends} over {of_runs(known.size)}."
