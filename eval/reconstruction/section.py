"""Reconstruction on the page: a table task by task, and panels of one typical run."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eval.context import Context
from eval.page.section import Section, Table
from eval.reconstruction.methods import TASKS, Method
from eval.reconstruction.panels import carpets, matrices, slices, spectrum, voxel_map, voxel_series
from eval.reconstruction.stage import MAP, RESULT, TABLE, Reconstruction

Floats = npt.NDArray[np.float64]

PARTS_IN_WORDS = {"test": "test", "val": "validation", "train": "training"}


def section(context: Context, found: Reconstruction | None) -> Section | None:
    """How well frames come back; None where there is no decoder at hand."""
    if found is None:
        return None
    shard_set = context.shard_set
    return Section(
        anchor="reconstruction",
        title="How well frames are reconstructed",
        paragraphs=(_how(context, found), *verdicts(found), _example(found)),
        tables=(_table(found),),
        drawings=(
            slices(shard_set, found),
            voxel_series(shard_set, found),
            carpets(shard_set, found),
            matrices(found),
            spectrum(found),
            voxel_map(shard_set, found),
        ),
        files=tuple(f"{found.folder.name}/{name}" for name in (TABLE, MAP, RESULT)),
    )


def _how(context: Context, found: Reconstruction) -> str:
    facts, part = found.facts, PARTS_IN_WORDS[context.config.subset]
    latents = facts["latents"]
    neighbours = " (the latents of a window's other frames help)" if facts["phase"] == 2 else ""
    return (
        f"Every frame of {len(found.subjects)} {part} subjects went through the phase-{facts['phase']} run "
        f"'{facts['run']}' that the model started from: {context.shard_set.num_voxels:,} voxels become {latents} "
        f"numbers, and voxels again{neighbours}. Values are residuals: each voxel in units of its SD over the run, so "
        f"1 is the error of the mean image. PCA with {latents} components of {facts['pca_frames']} training frames is "
        "the linear model of the same size. Much of a voxel's variance is noise that no model of this size can or "
        "should bring back: compare rows, and do not expect 0."
    )


def verdicts(found: Reconstruction) -> tuple[str, ...]:
    """One sentence a task: the model against the rule that does best."""
    said = []
    for task, name in TASKS.items():
        rows = [row for row, method in enumerate(found.methods) if method.task == task]
        if rows:
            said.append(_verdict(found, name, rows))
    return tuple(said)


def _verdict(found: Reconstruction, task: str, rows: list[int]) -> str:
    ours = next(row for row in rows if found.methods[row].is_ours)
    error_SM = found.measures[:, :, 0]
    known = np.isfinite(error_SM[:, rows]).all(axis=1)
    if not known.any():
        return f"{task.capitalize()}: no run is long enough."
    mean_M = error_SM[known].mean(axis=0)
    best = min((row for row in rows if row != ours), key=lambda row: float(mean_M[row]))
    percent = 100 * (1 - mean_M[ours] / mean_M[best])
    lower = int((error_SM[known, ours] < error_SM[known, best]).sum())
    told = f"{abs(percent):.1f} % {'lower' if percent > 0 else 'higher'} than"
    return (
        f"{task.capitalize()}: the model's squared error is {told} that of the best rule, {found.methods[best].label} "
        f"({mean_M[ours]:.3f} against {mean_M[best]:.3f}); it is lower in {lower} of {int(known.sum())} subjects."
    )


def _example(found: Reconstruction) -> str:
    return (
        f"The panels show {found.example_id}, the run whose error is the median of all runs, reconstructed with "
        "nothing hidden; it was not chosen by its looks."
    )


def _table(found: Reconstruction) -> Table:
    return Table(
        columns=("task", "from", "squared error", "r over time", "r over voxels", "r of connectivity"),
        rows=tuple(_row(found, row, method) for row, method in enumerate(found.methods)),
        caption="Mean (SD) over subjects. Squared error: in units of the voxels' variance, 1 for the mean image. r "
        "over time: Pearson correlation of true and predicted series, median over voxels. r over voxels: of true and "
        "predicted frame, mean over frames. r of connectivity: of the edges of the two parcel correlation matrices. "
        "Hidden: a quarter of the frames, in stretches of 3. A dash: undefined.",
    )


def _row(found: Reconstruction, row: int, method: Method) -> tuple[str, ...]:
    return (TASKS[method.task], method.label, *(_cell(found.measures[:, row, k]) for k in range(4)))


def _cell(values_S: Floats) -> str:
    known = values_S[np.isfinite(values_S)]
    if not known.size:
        return "\N{EN DASH}"
    spread = f" ({known.std(ddof=1):.3f})" if known.size > 1 else ""
    return f"{known.mean():.3f}{spread}"
