"""The stage `explain`: attributions of some subjects, by our model and by models with shuffled weights.

A part is one subject with one model; what is made of all of them is in `results`.

Shapes: W window, K output, V voxel.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.context import Context, subjects_to_score
from eval.explain.choice import choose_subjects, read_windows
from eval.explain.explanation import Explanation
from eval.explain.groups import margins
from eval.explain.results import OURS, read_explanation, results
from shards.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

DRAWS = 2
"""Models with shuffled weights of each level."""
RANDOMISED_STEPS = 4
"""Points of their paths at most: their maps need not be complete, only like or unlike ours."""
Arrays = Mapping[str, npt.NDArray[Any]]


def explain(context: Context, subjects: int, windows: int, steps: int, noise_samples: int) -> Explanation:
    """Attribute the model's outputs to voxels, and check the attributions.

    Parameters
    ----------
    context : Context
        The model and its shard set.
    subjects : int
        Scored subjects to explain at most, spread over the classes or the range of the target.
    windows : int
        Windows of each of them.
    steps : int
        Points of the path of integrated gradients.
    noise_samples : int
        Noisy copies of a window for SmoothGrad-squared.

    Returns
    -------
    Explanation
        The same on every rank.

    Raises
    ------
    UsageError
        The subjects are all of one class, or all have the same value.
    """
    everyone = subjects_to_score(context, context.config.subset)
    chosen = choose_subjects(
        {subject: context.values[subject] for subject in everyone},
        context.cohort.families or {},
        subjects,
        classes=context.target.kind != "regression",
        seed=context.config.seed,
    )
    if len({context.values[subject] for subject in chosen}) < 2:
        raise UsageError(
            f"--subjects {subjects}: the {len(chosen)} subjects to explain all have the same {context.target.column}, "
            "at least two values are needed for a map; raise it, or leave the maps out with --skip explain"
        )
    options = {"windows": windows, "steps": steps, "noise_samples": noise_samples, "seed": context.config.seed}
    stage = context.stage("explain", subset=context.config.subset, subjects=list(chosen), **options)
    record = context.ranks.first(stage.record)
    if record is None:
        work = _Work(context, chosen, options)
        log.info("explain: %d subjects, %d maps", len(chosen), len(work.names))
        found = dict(stage.parts(work.names, work.part))
        files, facts = results(context, chosen, found, work.twins) if context.ranks.is_first else ({}, {})
        record = stage.finish(files, facts)
    return read_explanation(
        context, record["facts"], folder=stage.folder, files=tuple(sorted(record["files"])), options=options
    )


class _Work:
    """What is computed, a part at a time."""

    def __init__(self, context: Context, chosen: Sequence[str], options: Mapping[str, int]) -> None:
        from eval.explain.randomised import LEVELS

        self.context, self.options = context, options
        self.twins = {f"{level}-{draw}": (level, draw) for level in LEVELS for draw in range(DRAWS)}
        self.names = [f"{key}_{subject}" for key in (OURS, *self.twins) for subject in chosen]
        self._twin: tuple[str, nn.Module] | None = None

    def part(self, name: str) -> Arrays:
        """Maps of one subject by one model."""
        from eval.explain.attention import attention_over_time
        from eval.explain.gradients import attribute

        key, subject = name.split("_", 1)
        context, ours = self.context, key == OURS
        windows = read_windows(context, subject, self.options["windows"])
        num_outputs = len(context.target.output_names)
        model = context.model if ours else self._shuffled(key)
        found = [
            attribute(
                model,
                window,
                margins(np.array([context.values[subject]]), context.target.kind, num_outputs)[0].tolist(),
                steps=self.options["steps"] if ours else min(self.options["steps"], RANDOMISED_STEPS),
                noise_samples=self.options["noise_samples"] if ours else 0,
                batch_size=context.config.batch_size,
                seed=context.config.seed,
            )
            for window in windows
        ]
        arrays = {
            "signed_KV": np.mean([each.signed_KV for each in found], axis=0).astype(np.float32),
            "squared_V": np.mean([each.squared_V for each in found], axis=0).astype(np.float32),
        }
        if not ours:
            return arrays
        attention = attention_over_time(model, windows)
        runs = context.cohort.runs[subject]
        return arrays | {
            "output_WK": np.stack([each.output_K for each in found]),
            "change_WK": np.stack([each.change_K for each in found]),
            "attributed_WK": np.stack([each.signed_KV.sum(1) for each in found]),
            "tr_s": np.array([window.tr_s for window in windows]),
            "background_V": np.mean([context.shard_set.statistics(run).mean for run in runs], axis=0),
            **{f"attention_{name}": np.asarray(value) for name, value in asdict(attention).items()},
        }

    def _shuffled(self, key: str) -> nn.Module:
        """The model with shuffled weights of that name; one is kept."""
        from eval.explain.randomised import randomised

        if self._twin is None or self._twin[0] != key:
            level, draw = self.twins[key]
            self._twin = key, randomised(self.context.model, level, 1000 * self.context.config.seed + draw)
        return self._twin[1]
