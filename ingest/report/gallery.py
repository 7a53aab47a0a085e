"""Which runs are shown as pictures, and what stands below each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingest.report.measures import Measured, pictured
from ingest.report.pictures import MaskPicture, RunPicture, draw_mask, draw_run
from ingest.report.wording import quantity
from shards.errors import BoldstreamError, ShardError
from shards.format import RunEntry
from shards.reader import ShardSet

NUM_WORST = NUM_TYPICAL = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One run in pictures."""

    row: RunEntry
    picture: RunPicture
    figures: str
    """tSNR, motion and error in a line."""
    reasons: tuple[str, ...]
    """Why it stands out, if it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """The pictures, and what kept others from being drawn."""

    worst: tuple[Card, ...]
    typical: tuple[Card, ...]
    mask: MaskPicture | None
    problems: tuple[str, ...]


def draw_gallery(
    folder: Path, rows: Sequence[RunEntry], measured: Mapping[str, Measured], reasons: Mapping[int, Sequence[str]]
) -> Gallery:
    """Read and draw at most `NUM_WORST` + `NUM_TYPICAL` runs of the set in `folder`, and its mask.

    Parameters
    ----------
    rows
        In order of run_id.
    reasons
        Index of a run to why it stands out.
    """
    worst, typical = pictured(measured, NUM_WORST, NUM_TYPICAL)
    try:
        shard_set = ShardSet(folder)
    except (BoldstreamError, OSError) as error:
        return Gallery(worst=(), typical=(), mask=None, problems=(str(error),))
    with shard_set:
        if {row.run_id for row in rows} - {entry.run_id for entry in shard_set.runs}:
            return Gallery(worst=(), typical=(), mask=None, problems=(f"{folder} holds other runs than the table",))
        painter = _Painter(shard_set, rows, measured, reasons)
        return Gallery(
            worst=painter.cards(worst),
            typical=painter.cards(typical),
            mask=painter.mask(),
            problems=tuple(painter.problems),
        )


class _Painter:
    """Draws runs of an open set; what cannot be read costs its own picture."""

    def __init__(
        self,
        shard_set: ShardSet,
        rows: Sequence[RunEntry],
        measured: Mapping[str, Measured],
        reasons: Mapping[int, Sequence[str]],
    ) -> None:
        self.shard_set, self.rows, self.measured, self.reasons = shard_set, rows, measured, reasons
        self.place = {entry.run_id: index for index, entry in enumerate(shard_set.runs)}
        self.problems: list[str] = []

    def cards(self, indices: Sequence[int]) -> tuple[Card, ...]:
        cards = (self._card(index) for index in indices)
        return tuple(card for card in cards if card is not None)

    def mask(self) -> MaskPicture | None:
        try:
            return draw_mask(self.shard_set, [self.place[row.run_id] for row in self.rows])
        except ShardError as error:
            self.problems.append(str(error))
            return None

    def _card(self, index: int) -> Card | None:
        row = self.rows[index]
        try:
            picture = draw_run(self.shard_set, self.place[row.run_id])
        except ShardError as error:
            self.problems.append(str(error))
            return None
        reasons = tuple(self.reasons.get(index, ()))
        return Card(row=row, picture=picture, figures=_figures(self.measured, index), reasons=reasons)


def _figures(measured: Mapping[str, Measured], index: int) -> str:
    shown = [measured[key] for key in ("tsnr", "fd", "error") if measured[key].known[index]]
    return ", ".join(
        f"{one.measure.label} {quantity(one.measure, float(one.values[index]), one.median)}" for one in shown
    )
