"""The report's sections on controls, identity and confounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.controls.association import Association, Correlation
from eval.controls.confounding import MOTION, Adjusted, Confounding
from eval.controls.figures import SOURCES, adjusted_figure, groups_figure, similarity_figure
from eval.controls.fingerprint import Fingerprint
from eval.controls.groups import GroupScore
from eval.controls.probes import CONTROLS
from eval.controls.sides import COMPARISONS
from eval.page.prose import interval, listed, number
from eval.page.section import Section, Table
from eval.page.verdict import standing
from eval.scoring.assessment import Assessment, Row
from eval.scoring.metrics import Kind, headline
from eval.subjects import OURS
from eval.targets import Target

MOST_COLUMNS = 6
"""Groups that fit beside each other; more are in the file only."""
MOST_DRAWN = 14


def controls_section(assessment: Assessment, target: Target) -> Section | None:
    """What is left of our model when something is taken away; None where no control was scored."""
    rows = [row for row in assessment.rows if row.model.key in {control.key for control in CONTROLS}]
    if not rows:
        return None
    metric = headline(target.kind)
    lines = tuple(
        (
            row.model.label,
            row.model.sees,
            f"{number(row.scores[metric.key].value)} ({interval(row.scores[metric.key])})",
            "" if row.advantage is None else f"{number(row.advantage.value)} ({interval(row.advantage)})",
        )
        for row in rows
    )
    return Section(
        anchor="controls",
        title="Controls: our model with something taken away",
        paragraphs=(
            "Each control is our model with one thing changed, fitted on the same training subjects and scored on the "
            "same subjects. Heads are refitted in closed form, without gradient steps: the first control shows what "
            "that alone does. Shuffling puts the frames of each run in random order, so that the frames, their mean "
            "and their static connectivity stay and everything that depends on order goes. Shuffling at test only "
            "shows the trained model windows of a kind that it never saw, so its loss mixes missing information "
            "with surprise; the refitted control has no such excuse. Random weights are those of the same "
            "architecture before any training; a model trained from scratch on the target is another comparison, "
            "made with --compare.",
            _what_order_is_worth(assessment, target),
            _what_training_is_worth(assessment, target),
        ),
        tables=(
            Table(
                columns=("Control", "What it sees", metric.label, "Ours is ahead by"),
                rows=lines,
                caption=f"{metric.label}, and how much better ours is on the same subjects, with 95 % intervals.",
            ),
        ),
        files=("controls/predictions.tsv",),
    )


def _what_order_is_worth(assessment: Assessment, target: Target) -> str:
    """In words: does shuffled time cost anything, and is anything left?"""
    metric, row = headline(target.kind), assessment.row("shuffled")
    found = f"{metric.label} is {number(row.scores[metric.key].value)} ({interval(row.scores[metric.key])})"
    if standing(row) != "ahead":
        return (
            f"With time shuffled and the head refitted, {found}. The interval of our lead over it includes 0: nothing "
            "here shows that our model needs the order of frames. Static connectivity, which has no order, can "
            "explain its result."
        )
    left = "" if metric.chance is None else _what_is_left(row, metric.key, metric.chance)
    return (
        f"With time shuffled and the head refitted, {found}, worse than ours: the order of frames helps our model, be "
        f"it that dynamics carry the target, or that frames beside each other help to tell signal from noise.{left}"
    )


def _what_is_left(row: Row, key: str, chance: float) -> str:
    if row.scores[key].low <= chance:
        return (
            " Without it, chance is not excluded: these subjects give no sign that anything static carries the target."
        )
    return " What is left above chance is static."


def _what_training_is_worth(assessment: Assessment, target: Target) -> str:
    metric, row = headline(target.kind), assessment.row("untrained")
    found = f"{metric.label} is {number(row.scores[metric.key].value)} ({interval(row.scores[metric.key])})"
    if standing(row) == "ahead":
        return f"With random weights, {found}: what encoder and transformer have learnt is worth the difference."
    return (
        f"With random weights, {found}; the interval of our lead over it includes 0, so that nothing here shows that "
        "training encoder and transformer was worth it."
    )


def fingerprint_section(found: Fingerprint) -> Section | None:
    """Whether what our model sees tells who somebody is; None where too few subjects allow a comparison."""
    if not found.rows:
        return None
    lines = tuple(
        (
            SOURCES[row.source],
            COMPARISONS[row.comparison],
            str(row.num_subjects),
            f"{number(row.rank_1)} ({number(row.low)} to {number(row.high)})",
            number(row.chance_rank_1),
            number(row.mean_average_precision),
            number(row.chance_map),
        )
        for row in found.rows
    )
    hardest = found.rows[0]
    only_halves = hardest.comparison == "halves"
    paragraphs = (
        "What a model makes of a scan can be dominated by who somebody is. Then it can be right about people for "
        "reasons that have nothing to do with the target, and windows of one person are far from independent. Here "
        "each scored subject has a gallery vector and a probe vector: what the head of our model sees of two "
        "recordings. A probe is told as the subject whose gallery vector is most similar; our model was trained on "
        "none of them. Rank-1 is the share told right, mAP the mean of 1 over the rank of the right one. Identity is "
        "not a fault by itself: static connectivity is a fingerprint, too. It is a warning where people are told "
        "apart far better than the target is predicted.",
        f"{COMPARISONS[hardest.comparison].capitalize()}, our model tells {_percent(hardest.rank_1)} of "
        f"{hardest.num_subjects} subjects right (95 % interval {_percent(hardest.low)} to "
        f"{_percent(hardest.high)}; chance {_percent(hardest.chance_rank_1)})."
        + (
            " Most of these subjects have one run, and the halves of a run share the scanner, the day and how the head "
            "lay: part of what is told apart may be that, and not the person."
            if only_halves
            else ""
        ),
    )
    caption = "95 % Wilson intervals." + (f" Static connectivity of {found.parcels}." if found.parcels else "")
    return Section(
        anchor="fingerprint",
        title="Does our model know who it is?",
        paragraphs=paragraphs,
        tables=(
            Table(
                columns=("Vectors", "Compared", "Subjects", "Rank-1", "Chance", "mAP", "Chance of mAP"),
                rows=lines,
                caption=caption,
            ),
        ),
        drawings=(similarity_figure(found),),
        files=("fingerprint/fingerprint.json",),
    )


def confounding_section(found: Confounding, target: Target) -> Section | None:
    """What confounds explain; None where none varies and there are no groups."""
    if not found.measures and not found.groups:
        return None
    given = listed([measure.name for measure in found.measures])
    drawings, tables = [], []
    paragraphs = [
        "A model can be right because of something that goes with the target and is not the brain. The first table "
        "shows what goes with the target, with our output and with our errors among the scored subjects; between "
        "numbers it is Spearman's correlation, and with site or sex a number from 0 to 1 (correlation ratio of ranks, "
        "or Cramér's V). The second shows what is left of each model's correlation with the target once all confounds "
        "are taken out of both, linearly. Sex and age can be causes of the target and not only confounds: a "
        "correlation that they explain is not thereby wrong. Intervals here take subjects as independent.",
    ]
    if found.measures:
        paragraphs.append(_what_confounds_do(found, target, given))
        tables += [_measure_table(found), _adjusted_table(found.adjusted, given, target.kind)]
        ranked = target.kind == "regression"
        drawings.append(adjusted_figure(found.adjusted, ranked=ranked, given=given))
    if found.groups:
        labels = {row.model: row.label for row in found.adjusted}
        names = {(row.role, row.name) for row in found.groups}
        if len(names) <= MOST_DRAWN:
            drawings.append(groups_figure(found.groups, labels, headline(target.kind), found.reference))
        for role in ("motion", "site"):
            table = _group_table([row for row in found.groups if row.role == role], role, labels, target)
            tables += [] if table is None else [table]
    return Section(
        anchor="confounds",
        title="Confounds: motion, site, age, sex",
        paragraphs=tuple(paragraphs),
        tables=tuple(tables),
        drawings=tuple(drawings),
        files=("confounding/groups.tsv",),
    )


def _what_confounds_do(found: Confounding, target: Target, given: str) -> str:
    """In words: the target from confounds, our correlation with and without them, and motion."""
    metric = headline(target.kind)
    ours = next(row for row in found.adjusted if row.model == OURS)
    sentences = []
    if found.from_confounds is not None:
        sentences.append(f"Confounds alone predict the target with {metric.label} {number(found.from_confounds)}.")
    ranked = target.kind == "regression"
    plain, left = (ours.spearman, ours.partial_spearman) if ranked else (ours.pearson, ours.partial_pearson)
    sentences.append(
        f"The {'Spearman' if ranked else 'Pearson'} correlation of our output with the target is "
        f"{number(plain.value)}, and {_text(left)} given {given}."
    )
    motion = next((measure for measure in found.measures if measure.name == MOTION), None)
    if motion is not None and math.isfinite(motion.output.value):
        sentences.append(
            f"With mean framewise displacement our output goes {_text_of(motion.output)}, our error "
            f"{_text_of(motion.error)}, and the target itself {_text_of(motion.target)}."
        )
    return " ".join(sentences)


def _text(found: Correlation) -> str:
    if not math.isfinite(found.value):
        return "undefined"
    return (
        f"{number(found.value)} ({number(found.low)} to {number(found.high)})"
        if math.isfinite(found.low)
        else (number(found.value))
    )


def _text_of(found: Association) -> str:
    return f"{number(found.value)} (p {_p(found.p)})" if math.isfinite(found.value) else "undefined"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {number(p)}"


def _measure_table(found: Confounding) -> Table:
    lines = tuple(
        (
            measure.name,
            str(measure.num_subjects),
            _text_of(measure.target),
            _text_of(measure.output),
            _text_of(measure.error),
            _text(measure.partial),
        )
        for measure in found.measures
    )
    columns = (
        "Confound",
        "Subjects",
        "With the target",
        "With our output",
        "With our error",
        "Output and target given it",
    )
    return Table(
        columns=columns,
        rows=lines,
        caption="The last column is the Spearman correlation of our output and the target with this confound alone "
        "taken out, with its 95 % interval. p values are not corrected for their number.",
    )


def _adjusted_table(rows: Sequence[Adjusted], given: str, kind: Kind) -> Table:
    lines = tuple(
        (row.label, *(_text(each) for each in (row.pearson, row.partial_pearson, row.spearman, row.partial_spearman)))
        for row in rows
    )
    several = " Means over classes, each against the rest." if kind == "multiclass" else ""
    return Table(
        columns=("Model", "Pearson", "Pearson given confounds", "Spearman", "Spearman given confounds"),
        rows=lines,
        caption=f"Correlation of output and target, plain and given {given}.{several}",
    )


def _group_table(rows: Sequence[GroupScore], role: str, labels: dict[str, str], target: Target) -> Table | None:
    """Models as lines, groups as columns; None where there are no groups or more than fit."""
    sizes = {row.name: row.num_subjects for row in rows}
    if not 0 < len(sizes) <= MOST_COLUMNS:
        return None
    by_key = {(row.model, row.name): row for row in rows}
    lines = tuple(
        (labels[model], *(number(by_key[model, name].value) for name in sizes))
        for model in dict.fromkeys(row.model for row in rows)
    )
    heads = tuple(f"{name}, n = {size}" for name, size in sizes.items())
    what = "each third of mean framewise displacement" if role == "motion" else "each site"
    metric = headline(target.kind)
    return Table(
        columns=("Model", *heads), rows=lines, caption=f"{metric.label} in {what}; intervals are in groups.tsv."
    )
