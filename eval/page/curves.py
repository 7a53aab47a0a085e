"""Learning curves: what the logs of the three phases say, read from the run folders behind the checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.lineage import Ancestor
from eval.page.canvas import BEST_COLOUR, CLASS_COLOURS, OUR_COLOUR, Drawing, drawn
from eval.page.prose import counted, listed, number
from eval.page.section import Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = "log.jsonl"
TRIVIAL = "_mean"
"""Errors of the mean image are logged under the name of the model's error and this."""
NAMES = {
    "mse": "frames, relative error",
    "ahead_mse": "next latents, relative error",
    "latent_mse": "hidden latents, relative error",
}
PHASES = {1: "autoencoder", 2: "sequence", 3: "target"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The log of one run.

    Attributes
    ----------
    phase : int
        1, 2 or 3.
    loss : tuple of (int, float)
        Step and training loss.
    validation : mapping of str to tuple of (int, float)
        By name: the subject-level score (phase 3), or an error as a share of the mean image's (phases 1 and 2).
    chosen : int or None
        Step whose weights were kept.
    """

    phase: int
    loss: tuple[tuple[int, float], ...]
    validation: Mapping[str, tuple[tuple[int, float], ...]]
    chosen: int | None


def training_section(checkpoint: Path, behind: Sequence[Ancestor]) -> Section:
    """How the model was trained, phase by phase.

    Parameters
    ----------
    checkpoint : Path
        Folder of the phase-3 run.
    behind : sequence of Ancestor
        The runs that its weights came from, the nearest first.
    """
    places = [(3, checkpoint), *((run.phase, run.folder) for run in behind)]
    found = [curve for phase, folder in places if folder and phase and (curve := read_curve(folder, phase))]
    curves = found[::-1]
    gone = [run for run in behind if run.folder is None]
    paragraphs = [
        "Training loss above, validation below, as the runs logged them. The validation subjects chose the weights "
        "that were kept (dotted line); the scored subjects took no part. Look for curves that have levelled off, "
        "and for a validation curve that turns back while the loss still falls: that is overfitting."
    ]
    paragraphs += [f"The run {run.named}, which the weights came from, cannot be shown: {run.reason}." for run in gone]
    if not behind:
        paragraphs.append("The phase-3 run started from random weights: there was no pre-training.")
    missing = [str(folder / LOG) for phase, folder in places if folder and phase not in {c.phase for c in curves}]
    if missing:
        paragraphs.append(f"Without a readable log: {listed(missing)}.")
    return Section(
        anchor="training",
        title="Training",
        paragraphs=tuple(paragraphs),
        tables=(_table(curves),) if curves else (),
        drawings=(_drawing(curves),) if curves else (),
    )


def read_curve(folder: Path, phase: int) -> Curve | None:
    """The log of a run folder; None where it has none, or nothing was logged."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    events = [event for event in map(_event, lines) if event]
    train, val = ([event for event in events if event["event"] == kind] for kind in ("train", "val"))
    chosen = [event["chosen_step"] for event in events if event["event"] == "end" and "chosen_step" in event]
    validation = _scores(val) if phase == 3 else _ratios(val)
    loss = _series(train, lambda event: event.get("loss"))
    if not loss and not validation:
        return None
    return Curve(phase=phase, loss=loss, validation=validation, chosen=chosen[-1] if chosen else None)


def _event(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that a crash cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    known = isinstance(found, dict) and isinstance(found.get("step"), int) and isinstance(found.get("event"), str)
    return found if known else None


def _scores(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    found = _series(events, lambda event: event.get("score"))
    return {"score of validation subjects": found} if found else {}


def _ratios(events: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Each error that a trivial one was logged for, as a share of it."""
    return {
        words: series
        for name, words in NAMES.items()
        if (series := _series(events, lambda event, name=name: _share(event, name)))
    }


def _share(event: Mapping[str, Any], name: str) -> float | None:
    own, trivial = event.get(name), event.get(f"{name}{TRIVIAL}")
    return own / trivial if own is not None and trivial else None


def _series(events: Iterable[Mapping[str, Any]], value: Any) -> tuple[tuple[int, float], ...]:
    pairs = ((event["step"], value(event)) for event in events)
    return tuple((step, float(found)) for step, found in pairs if found is not None and math.isfinite(found))


def _drawing(curves: Sequence[Curve]) -> Drawing:
    def draw(figure: Figure) -> None:
        axes = figure.subplots(2, len(curves), squeeze=False, sharex="col", height_ratios=(1, 1.15))
        for curve, upper, lower in zip(curves, *axes, strict=True):
            upper.set_title(f"Phase {curve.phase}: {PHASES[curve.phase]}")
            _line(upper, curve.loss, color="#5a6570")
            _validation(lower, curve)
            lower.set_xlabel("optimizer steps")
            for axis in (upper, lower):
                axis.grid(axis="y", color="#e8ecef", lw=0.8)
                if curve.chosen is not None:
                    axis.axvline(curve.chosen, color="#5a6570", ls=(0, (1, 2)), lw=1.2)
        axes[0][0].set_ylabel("training loss")
        axes[1][0].set_ylabel("validation")

    return Drawing(
        title="Learning curves",
        uri=drawn(draw, 3.45 * len(curves) + 0.3, 5.4),
        alt=f"Training loss and validation of {counted(len(curves), 'phase')}",
        caption="Validation in phases 1 and 2: squared error as a share of that of the mean (dashed, 1), of each "
        "voxel for frames and of each dimension for latents; below it, something was learnt. In phase 3: the score "
        "by which weights are chosen (AUROC, balanced accuracy or R²). "
        "Dotted: the step that was kept.",
    )


def _validation(axis: Axes, curve: Curve) -> None:
    for index, (name, points) in enumerate(curve.validation.items()):
        _line(axis, points, color=(OUR_COLOUR, BEST_COLOUR, CLASS_COLOURS[3])[index], label=name)
    if curve.phase < 3:
        axis.axhline(1, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
    if curve.validation:
        axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(-0.05, -0.26), handlelength=1.4)


def _line(axis: Axes, points: Sequence[tuple[int, float]], **style: Any) -> None:
    if points:
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, lw=1.8, marker="o" if len(points) < 12 else None, ms=3.5, **style)


def _table(curves: Sequence[Curve]) -> Table:
    rows = []
    for curve in curves:
        last = [f"{name} {number(points[-1][1])}" for name, points in curve.validation.items() if points]
        steps = max([0, *(step for step, _ in curve.loss), *(s for p in curve.validation.values() for s, _ in p)])
        chosen = "unknown" if curve.chosen is None else str(curve.chosen)
        rows.append((f"{curve.phase}: {PHASES[curve.phase]}", str(steps), chosen, "; ".join(last)))
    return Table(columns=("Phase", "Steps logged", "Step kept", "Last validation"), rows=tuple(rows))
