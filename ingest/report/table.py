"""The table of all runs: as text for its first page, and packed for the script that sorts and filters it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ingest.report.measures import MEASURES, Measured
from ingest.report.wording import decimals, number
from shards.format import RunEntry

PAGE = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column: its heading, what it means, and a value a run (text, or a number or None)."""

    key: str
    label: str
    meaning: str
    values: list[Any]
    digits: int | None = None
    """Decimals of a number; None for text."""

    def text(self, row: int) -> str:
        """One cell."""
        value = self.values[row]
        if self.digits is None:
            return str(value)
        return "–" if value is None else number(value, self.digits)


def columns(
    rows: Sequence[RunEntry],
    qc: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Measured],
) -> list[Column]:
    """The columns; one that no run has a value for is left out."""
    own = [qc.get(row.run_id, {}) for row in rows]
    notes: list[Mapping[str, Any]] = [one.get("cleaning") or {} for one in own]
    labels = {measure.key: measure.label for measure in MEASURES}
    far = {labels[key]: found.far for key, found in measured.items()}
    by_measure = {key: (found.values, decimals(found.measure, found.median)) for key, found in measured.items()}
    moved = [None if one.get("fd_over_half") is None else 100 * one["fd_over_half"] for one in own]

    def numeric(key: str, label: str, meaning: str, values: Iterable[Any], digits: int) -> Column:
        rounded = [
            None if value is None or not math.isfinite(value) else round(float(value), digits) for value in values
        ]
        return Column(key=key, label=label, meaning=meaning, values=rounded, digits=digits)

    found = [
        Column(key="run", label="run", meaning="run_id", values=[row.run_id for row in rows]),
        Column(key="out", label="stands out in", meaning="beyond 3.5 robust SDs", values=_names(far, len(rows))),
        numeric("tsnr", "tSNR", "median over voxels of mean / SD", *by_measure["tsnr"]),
        numeric("fd", "mean FD (mm)", "mean framewise displacement", *by_measure["fd"]),
        numeric("moved", "FD > 0.5 mm (%)", "frames with a displacement above 0.5 mm", moved, 0),
        numeric("intensity", "intensity", "median over voxels of the temporal mean", *by_measure["intensity"]),
        numeric("error", "error (% SD)", "rms quantisation error; – is without loss", *by_measure["error"]),
        numeric(
            "constant", "constant voxels", "voxels that do not vary", [one.get("num_constant_voxels") for one in own], 0
        ),
        numeric(
            "outside",
            "outside view",
            "voxels of the mask outside the run's field of view",
            [one.get("num_outside_field_of_view") for one in own],
            0,
        ),
        numeric("frames", "frames", "as stored", [row.num_frames for row in rows], 0),
        numeric("tr", "TR (s)", "repetition time", [row.tr_s for row in rows], _tr_digits(rows)),
        numeric("dropped", "dropped", "frames removed by cleaning", [note.get("num_dropped") for note in notes], 0),
        numeric("censored", "censored", "frames censored by cleaning", [note.get("num_censored") for note in notes], 0),
        numeric(
            "regressors",
            "regressors",
            "columns regressed out by cleaning",
            [note.get("num_regressors") for note in notes],
            0,
        ),
        Column(key="source", label="source", meaning="file it was made from", values=[row.source for row in rows]),
    ]
    return [column for column in found if any(value is not None for value in column.values)]


def _tr_digits(rows: Sequence[RunEntry]) -> int:
    """As many decimals as the repetition times have, three at most."""
    return max(len(f"{row.tr_s:.3f}".rstrip("0").partition(".")[2]) for row in rows)


def packed(table: Sequence[Column]) -> str:
    """The columns as JSON that may stand in a `<script>` element.

    Texts that repeat are numbered; other texts leave out what they share with the one before. In a source,
    U+0001 stands for the run's id and U+0002 for its subject: so the sources of a layout become a few.
    """
    runs = next(column.values for column in table if column.key == "run")
    text = json.dumps(
        [_packed_column(_shortened(column, runs)) for column in table],
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _shortened(column: Column, runs: Sequence[str]) -> Column:
    if column.key != "source":
        return column
    clean = (source.replace("\1", "\ufffd").replace("\2", "\ufffd") for source in column.values)
    named = zip(clean, runs, strict=True)
    values = [source.replace(run, "\1").replace(run.partition("_")[0], "\2") for source, run in named]
    return replace(column, values=values)


def _packed_column(column: Column) -> dict[str, Any]:
    head = {"key": column.key, "label": column.label, "digits": column.digits}
    values = column.values
    if column.digits is not None:
        whole = [int(value) if value is not None and value == int(value) else value for value in values]
        return {**head, "values": whole}
    levels = sorted(set(values))
    if len(levels) <= max(1, len(values) // 4):
        place = {level: k for k, level in enumerate(levels)}
        return {**head, "levels": levels, "index": [place[value] for value in values]}
    shared = [0, *(_shared(*pair) for pair in itertools.pairwise(values))]
    return {**head, "shared": shared, "rest": [value[count:] for value, count in zip(values, shared, strict=True)]}


def _shared(before: str, text: str) -> int:
    """Length of the common start, up to a character that a script would count as two."""
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1] <= "\uffff", zip(before, text, strict=False))
    )


def _names(far: Mapping[str, np.ndarray], count: int) -> list[str]:
    names = [""] * count
    for label, which in far.items():
        for index in np.flatnonzero(which):
            names[index] += f", {label}" if names[index] else label
    return names
