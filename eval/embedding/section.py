"""The embeddings on the page: subjects as points, and what their distances go with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.context import Context
from eval.embedding.embeddings import Embeddings
from eval.embedding.projection import Explained, explained, mean_motion
from eval.page.canvas import CLASS_COLOURS, Drawing, drawn
from eval.page.section import Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
Values = Mapping[str, str | float]
MOST_LEVELS = 6
"""Levels with a colour of their own; the rarer ones share grey."""
MOST_VECTOR_POINTS = 1000
DOTS_PER_INCH = 200
"""Of the points, where there are more of them than a page should carry as vectors."""
OTHERS = "others"
PARTS_IN_WORDS = {"test": "test", "val": "validation", "train": "training"}


def section(context: Context, embeddings: Embeddings) -> Section:
    """What the embeddings are, the map of the subjects, and a table of what their distances go with."""
    found = _explained(context, embeddings)
    drawings = [_drawing(context, embeddings, embeddings.projection, _plane_words(embeddings))]
    if embeddings.neighbours is not None:
        drawings.append(_drawing(context, embeddings, embeddings.neighbours, _neighbour_words()))
    file_format = str(embeddings.facts["file_format"])
    names = (f"subjects.{file_format}", f"windows.{file_format}", "projection.tsv", "basis.npz", "embeddings.json")
    return Section(
        anchor="embeddings",
        title="What the model makes of the subjects",
        paragraphs=(_how(embeddings), _what(context, embeddings, found)),
        tables=(_table(found, context.config.subset),) if found else (),
        drawings=tuple(drawings),
        files=tuple(f"{embeddings.folder.name}/{name}" for name in names),
    )


def properties(context: Context, subjects: tuple[str, ...]) -> dict[str, Values]:
    """The target, and what else is known of the subjects, by name; numbers as float, levels as str."""
    target, cohort = context.target, context.cohort
    known = {who: context.values[who] for who in subjects if who in context.values}
    found: dict[str, Values] = {
        target.column: {who: target.levels[int(value)] for who, value in known.items()} if target.levels else known
    }
    for role in ("site", "sex"):
        found[role] = {who: raw for who, raw in cohort.values.get(role, {}).items() if who in set(subjects)}
    found["age"] = _numbers({who: cohort.values.get("age", {}).get(who, "") for who in subjects})
    motion = mean_motion(context, subjects)
    found["mean FD (mm)"] = {who: float(fd) for who, fd in zip(subjects, motion, strict=True) if np.isfinite(fd)}
    return {name: values for name, values in found.items() if len(set(values.values())) > 1}


def _numbers(raw: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for who, text in raw.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if np.isfinite(value):
            found[who] = value
    return found


def _explained(context: Context, embeddings: Embeddings) -> list[Explained]:
    """Of the scored subjects, whom the model was not fitted on."""
    subjects, vectors = embeddings.of_part(context.config.subset)
    found = [
        explained(name, values, subjects, vectors, context.config.seed)
        for name, values in properties(context, subjects).items()
    ]
    return [each for each in found if each is not None]


def _how(embeddings: Embeddings) -> str:
    facts = embeddings.facts
    extra = int(facts["num_dimensions"]) - int(facts["num_components"])
    head = f", and {extra} for what the head weighs beyond them" if extra else ""
    return (
        f"An embedding is what the head sees of a window (pooling '{facts['pooling']}', {facts['num_features']} "
        f"numbers), in {facts['num_dimensions']} dimensions: {facts['num_components']} principal components of "
        f"{facts['num_subjects_fitted']} training subjects{head}, so that the model's output is a linear function of "
        "it. A subject's embedding is the mean over its windows, weighted by frames. The target of no subject enters, "
        "except through the model."
    )


def _what(context: Context, embeddings: Embeddings, found: list[Explained]) -> str:
    subset = context.config.subset
    kept = embeddings.facts["variance_kept"].get(subset)
    share = (
        ""
        if kept is None
        else (
            f"Of the {PARTS_IN_WORDS[subset]} subjects' spread in all features the dimensions hold {100 * kept:.0f} %; "
            "the rest points in directions in which training subjects do not differ, as the noise of finite runs does. "
        )
    )
    clear = [each for each in found if each.p_value < 0.05]
    if not found:
        return share + "Too few of them have known properties to say what the embeddings go with."
    if not clear:
        return share + "None of the properties below explains more of their embeddings than a random order would."
    leading = max(clear, key=lambda each: each.share)
    names = ", ".join(f"{each.name} ({100 * each.share:.1f} %)" for each in sorted(clear, key=lambda each: -each.share))
    warning = "" if leading.name == context.target.column else f" What explains most is {leading.name}, not the target."
    return share + f"More than by chance (p < 0.05) they go with: {names}.{warning}"


def _table(found: list[Explained], subset: str) -> Table:
    return Table(
        columns=("property", "subjects", "share of variance explained", "p"),
        rows=tuple(
            (each.name, str(each.num_subjects), f"{100 * each.share:.1f} %", f"{each.p_value:.3f}") for each in found
        ),
        caption=f"Embeddings of {PARTS_IN_WORDS[subset]} subjects regressed on one property at a time (PERMANOVA, "
        "Euclidean distance, adjusted for degrees of freedom; p from 999 permutations of subjects, not corrected for "
        "the number of rows). A small negative share is what chance gives. Properties that go together, such as a "
        "target and a site, share what they explain.",
    )


def _plane_words(embeddings: Embeddings) -> tuple[str, str, str, str]:
    share = 100 * float(embeddings.facts["share_of_leading_two"])
    return (
        "Subjects in the two leading principal components",
        "component 1",
        "component 2",
        f"The plane in which training subjects differ most ({share:.0f} % of their variance; they lie further out "
        "than others, because it was fitted on them). Look for clouds that follow the site or motion rather than "
        "the target. No separation here does not mean that the model has none: the head may read directions of little "
        "variance.",
    )


def _neighbour_words() -> tuple[str, str, str, str]:
    return (
        "Subjects by t-SNE",
        "t-SNE 1 (no unit)",
        "t-SNE 2 (no unit)",
        "All dimensions of validation and test subjects, laid out so that near neighbours stay near. Distances between "
        "far points, and the sizes of clusters, mean nothing.",
    )


def _drawing(context: Context, embeddings: Embeddings, place_S2: Floats, words: tuple[str, str, str, str]) -> Drawing:
    title, across, up, caption = words
    known = properties(context, embeddings.subjects)
    names = [name for name in (context.target.column, "site", "mean FD (mm)") if name in known]
    rows = np.flatnonzero(np.isfinite(place_S2).all(axis=1))
    place_S2 = place_S2[rows]
    scored = np.array([embeddings.part[row] == context.config.subset for row in rows])

    def draw(figure: Figure) -> None:
        figure.set_dpi(DOTS_PER_INCH)
        axes = np.atleast_1d(figure.subplots(1, max(1, len(names)), sharex=True, sharey=True))
        for axis, name in zip(axes, names, strict=False):
            values = [known[name].get(embeddings.subjects[row]) for row in rows]
            _panel(axis, place_S2, values, scored)
            axis.set_title(name)
        if not names:
            axes[0].scatter(place_S2[:, 0], place_S2[:, 1], s=18, color=CLASS_COLOURS[0])
        for axis in axes:
            axis.set_xlabel(across)
            for dots in axis.collections:
                dots.set_rasterized(len(place_S2) > MOST_VECTOR_POINTS)
        axes[0].set_ylabel(up)

    part = PARTS_IN_WORDS[context.config.subset]
    return Drawing(
        title=title,
        uri=drawn(draw, 3.35 * max(1, len(names)) + 0.3, 3.7),
        alt=f"{title}, {len(rows)} points, coloured by {', '.join(names) or 'nothing'}",
        caption=f"A point a subject; large dots are {part} subjects, small pale ones the others. {caption}",
    )


def _panel(axis: Axes, place_S2: Floats, values: list[str | float | None], scored: npt.NDArray[np.bool_]) -> None:
    """Points coloured by a property: a colour a level, or a scale for numbers."""
    if all(isinstance(value, float) for value in values if value is not None):
        _scale(axis, place_S2, np.array([np.nan if v is None else float(v) for v in values]), scored)
        return
    colour_of = level_colours([value for value in values if isinstance(value, str)])
    for level, colour in colour_of.items():
        rows = np.array([value == level or (level == OTHERS and value not in colour_of) for value in values])
        axis.scatter(place_S2[rows & ~scored, 0], place_S2[rows & ~scored, 1], s=11, color=colour, alpha=0.3, lw=0)
        axis.scatter(
            place_S2[rows & scored, 0], place_S2[rows & scored, 1], s=34, color=colour, alpha=0.9, lw=0, label=level
        )
    axis.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.2), ncols=3, handletextpad=0.1, columnspacing=0.8)


def level_colours(levels: list[str]) -> dict[str, str]:
    """A colour for each of the most frequent levels, in their order; 'others' where there are more, or none known."""
    counted = sorted(set(levels), key=lambda level: (-levels.count(level), level))
    if len(counted) <= MOST_LEVELS:
        return dict(zip(sorted(counted), CLASS_COLOURS, strict=False))
    shown = sorted(counted[: MOST_LEVELS - 1])
    return dict(zip(shown, CLASS_COLOURS[1:], strict=False)) | {OTHERS: CLASS_COLOURS[0]}


def _scale(axis: Axes, place_S2: Floats, numbers: Floats, scored: npt.NDArray[np.bool_]) -> None:
    known = np.isfinite(numbers)
    low, high = np.percentile(numbers[known], [2, 98])
    look: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high, "lw": 0}
    for rows, size, alpha in ((known & ~scored, 11, 0.35), (known & scored, 34, 0.95)):
        points = axis.scatter(place_S2[rows, 0], place_S2[rows, 1], c=numbers[rows], s=size, alpha=alpha, **look)
    bar = axis.figure.colorbar(points, ax=axis, location="bottom", pad=0.02, shrink=0.8, aspect=28)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
