"""Which subjects are explained, and which of their windows.

Shapes: L frame, V voxel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.order import parse_window

if TYPE_CHECKING:
    from eval.context import Context


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Consecutive frames of a run.

    Attributes
    ----------
    run, start : int
        Number of the run, first frame.
    tr_s : float
        Repetition time in seconds.
    residual_LV : numpy.ndarray, shape (L, V), float32
        In units of each voxel's SD over its run.
    level_V, spread_V : numpy.ndarray, shape (V,), or None
        The intensity is level + spread * residual, for models that have that channel.
    """

    run: int
    start: int
    tr_s: float
    residual_LV: npt.NDArray[np.float32]
    level_V: npt.NDArray[np.float32] | None = None
    spread_V: npt.NDArray[np.float32] | None = None


def choose_subjects(
    values: Mapping[str, float], families: Mapping[str, str], count: int, *, classes: bool, seed: int
) -> tuple[str, ...]:
    """Subjects spread over the classes or the range of the target, one of each family as far as that goes.

    Parameters
    ----------
    values : mapping of str to float
        Target of each subject that may be chosen.
    families : mapping of str to str
        Family of each subject where it is known.
    count : int
        How many; all, where there are not more.
    classes : bool
        Whether values are numbers of classes, each of which gets the same share; else the range is covered evenly.
    seed : int
        Of the draw within a class.

    Returns
    -------
    tuple of str
        Sorted.
    """
    names = sorted(values)
    drawn = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    seen: set[str] = set()
    firsts: list[str] = []
    siblings: list[str] = []
    for name in drawn:
        family = families.get(name, "")
        (siblings if family and family in seen else firsts).append(name)
        seen.add(family)
    if classes:
        return tuple(sorted(_by_turns([*firsts, *siblings], values)[:count]))
    pool = firsts if len(firsts) >= count else [*firsts, *siblings]
    ranked = sorted(pool, key=lambda name: (values[name], name))
    return tuple(sorted(ranked[k] for k in spread(len(ranked), count)))


def _by_turns(names: list[str], values: Mapping[str, float]) -> list[str]:
    """The names, one class after the other in turns."""
    place: dict[float, int] = {}
    turn = {}
    for name in names:
        turn[name] = place[values[name]] = place.get(values[name], -1) + 1
    return sorted(names, key=lambda name: (turn[name], values[name]))


def spread(length: int, count: int) -> list[int]:
    """At most `count` of `length` places, evenly spread, each in the middle of its part."""
    count = min(count, length)
    return [(2 * k + 1) * length // (2 * count) for k in range(count)]


def read_windows(context: Context, subject: str, count: int) -> list[Window]:
    """Some whole windows of a subject, evenly spread over its runs (a run shorter than a window is one).

    Raises
    ------
    CorruptShardError
        The bytes of a window are damaged.
    """
    shard_set = context.shard_set
    places: list[tuple[int, int, int]] = []
    for run in context.cohort.runs[subject]:
        entry = shard_set.runs[run]
        length = min(int(parse_window(context.window, [entry.tr_s])[0]), entry.num_frames)
        places += [(run, start, length) for start in range(0, entry.num_frames - length + 1, length)]
    return [_read(context, *places[k]) for k in spread(len(places), count)]


def _read(context: Context, run: int, start: int, length: int) -> Window:
    shard_set = context.shard_set
    intensity = shard_set.intensity(run) if context.model.size.intensity else None
    return Window(
        run=run,
        start=start,
        tr_s=shard_set.runs[run].tr_s,
        residual_LV=np.ascontiguousarray(shard_set.residual(run, start, length), dtype=np.float32),
        level_V=None if intensity is None else intensity.level_V,
        spread_V=None if intensity is None else intensity.spread_V,
    )
