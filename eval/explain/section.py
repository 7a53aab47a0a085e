"""The part of the report that shows an explanation."""

from __future__ import annotations

import numpy as np

from eval.explain.brains import draw_attention, draw_checks, draw_importance, draw_significance
from eval.explain.explanation import GROUP, IMPORTANCE, Explanation, Z
from eval.explain.groups import ALPHA, NUM_SHUFFLES, peaks
from eval.page.section import Section, Table

NUM_PEAKS, APART_MM = 6, 20.0
CLEAR = 0.5
"""Rank correlation from which two maps of the group are called alike."""
WEAK = 0.2
"""Rank correlation below which they are called unlike."""
COMPLETE = 0.05
"""Median gap up to which attributions are called complete."""


def section(found: Explanation) -> Section:
    """Maps, checks and attention over time, in words, tables and figures.

    Parameters
    ----------
    found : Explanation
        From `eval.explain.stage.explain`.
    """
    return Section(
        anchor="explanation",
        title="What the model looks at",
        paragraphs=(*_what(found), _map_in_words(found), _checks_in_words(found), _attention_in_words(found)),
        tables=(_peaks_table(found), _checks_table(found)),
        drawings=(draw_significance(found), draw_importance(found), draw_checks(found), draw_attention(found)),
        files=tuple(f"{found.folder.name}/{name}" for name in (GROUP, Z, IMPORTANCE, "subjects.tsv")),
    )


def _what(found: Explanation) -> tuple[str, str]:
    options = found.options
    output = "each output" if len(found.target.levels) > 2 else ("the logit" if found.target.levels else "the output")
    first = (
        f"Integrated gradients split what the model says of a window among its voxels: {output} minus what it would be "
        "if every frame were the subject's mean image. What the mean image itself tells is therefore not on the maps. "
        f"{len(found.subjects)} {found.subset} subjects, spread over the "
        f"{'classes' if found.target.levels else 'range of the target'}, were explained in at most "
        f"{options['windows']} windows each, with {options['steps']} points a path and {options['noise_samples']} "
        "noisy copies of each window for SmoothGrad-squared. Whether the model is right about a subject played no part "
        "in the choice." + _wrong_in_words(found)
    )
    if found.target.levels:
        how = (
            "The map of the group is the mean over classes of what each voxel adds to the margin of the subject's own "
            "class (its logit minus the others'); what all subjects have in common cancels in it, and its sum over "
            f"voxels is the mean margin, {found.group_V.sum():.3g} here."
        )
    else:
        how = (
            f"The map of the group is the slope of each voxel's contribution on {found.target.column}; what all "
            "subjects have in common cancels in it, and its sum over voxels is the slope of the model's output, "
            f"{found.group_V.sum():.3g} here (1 would be perfect)."
        )
    return first, how + (
        " A voxel is on it because the model uses it, not because the brain needs it: attributions describe the model."
    )


def _wrong_in_words(found: Explanation) -> str:
    if not found.target.levels:
        return ""
    wrong = sum(each.correct is False for each in found.subjects)
    return (
        f" These windows alone put {len(found.subjects) - wrong} of them into the right class; all are in the maps, "
        "and subjects.tsv marks those that are wrong."
    )


def _map_in_words(found: Explanation) -> str:
    passed = int((np.abs(found.z_V) >= found.threshold).sum())
    if not passed:
        return (
            f"What came out: no voxel stands out from shuffled labels (largest |z| {np.abs(found.z_V).max():.2f}, "
            f"{found.threshold:.2f} needed for p < {ALPHA:g} over all voxels, {NUM_SHUFFLES} shuffles). The map should "
            "not be read region by region."
        )
    return (
        f"What came out: {passed} of {found.z_V.size} voxels stand out from shuffled labels (p < {ALPHA:g} over all "
        f"voxels, {NUM_SHUFFLES} shuffles), {int((found.z_V >= found.threshold).sum())} of them in the direction of "
        "the truth."
    )


def _checks_in_words(found: Explanation) -> str:
    median, worst = found.completeness
    whole = "are complete" if median <= COMPLETE else "are NOT complete (raise --steps)"
    told = f"The attributions {whole}: the median window misses {median:.2%} of the change, the worst {worst:.2%}."
    random = [abs(each.group) for each in found.randomised]
    if max(random) >= CLEAR:
        told += (
            f" But a model with shuffled weights gives a map like ours (rank correlation up to {max(random):.2f}): "
            "the map shows the data more than what was learned, do not interpret it."
        )
    else:
        told += f" Models with shuffled weights give other maps (rank correlations up to {max(random):.2f} in size)."
    squared = max(each.importance for each in found.randomised)
    if squared >= WEAK:
        told += (
            f" SmoothGrad-squared depends less on what was learned (up to {squared:.2f}): read it as where the "
            "signal enters the network, and the map of the group as what the readout makes of it."
        )
    if found.halves.size:
        mean = float(found.halves.mean())
        alike = "agree" if mean >= CLEAR else "agree in part" if mean >= WEAK else "do not agree"
        told += f" Maps of two halves of the subjects {alike} (mean rank correlation {mean:.2f})."
    return told


def _attention_in_words(found: Explanation) -> str:
    if not found.attention_matters:
        return (
            "Attention over time: the last projection of the transformer is zero, as it is before phase 2, so nothing "
            "of what it attends to reaches the output."
        )
    weight = found.attention.weight_NHG.sum((0, 1))
    reach = float(np.abs(found.attention.lags) @ weight / weight.sum())
    length = f"{reach * found.tr_s:.1f} s" if found.tr_s else f"{reach:.1f} frames"
    cls = float(found.attention.cls_NH.mean() / found.attention.num_queries)
    return (
        f"Attention over time: frames look {length} away on average over layers and heads, and give {cls:.0%} of their "
        "weight to the CLS token. Weights say what is mixed, not what decides."
    )


def _peaks_table(found: Explanation) -> Table:
    where = found.positions_mm
    rows = [
        (
            ", ".join(f"{mm:.0f}" for mm in where[voxel]),
            f"{found.z_V[voxel]:.2f}",
            f"{found.p_V[voxel]:.4f}",
            f"{found.group_V[voxel]:.2g}",
        )
        for voxel in peaks(found.z_V, where, count=NUM_PEAKS, apart_mm=APART_MM)
    ]
    return Table(
        columns=("x, y, z (mm)", "z", "p over all voxels", "contribution of the voxel"),
        rows=tuple(rows),
        caption=f"The strongest voxels of the smoothed map, at least {APART_MM:.0f} mm apart; the contribution is that "
        "of the map before smoothing.",
    )


def _checks_table(found: Explanation) -> Table:
    rows = [
        ("Attributions add up to the change of the output", f"median gap {found.completeness[0]:.2%}", "below 5 %"),
    ]
    for level, name in (("readout", "readout"), ("everything", "all weights")):
        those = [each for each in found.randomised if each.level == level]
        rows.append((f"Map of the group, {name} shuffled", _list([each.group for each in those]), "near 0"))
        rows.append((f"SmoothGrad-squared, {name} shuffled", _list([each.importance for each in those]), "near 0"))
    if found.halves.size:
        low, high = np.quantile(found.halves, [0.05, 0.95])
        halves = f"{found.halves.mean():.2f} ({low:.2f} to {high:.2f})"
        rows.append(("Map of the group, two halves of the subjects", halves, "near 1"))
    return Table(
        columns=("check", "found", "wanted"),
        rows=tuple(rows),
        caption="Maps are compared by rank correlation over voxels after smoothing; one number for each shuffle of "
        "weights, mean and 5 to 95 % range over halvings.",
    )


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
