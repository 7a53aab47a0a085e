"""The report's sentences: verdict, limits, methods. Nothing here computes a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from eval.evaluation import Evaluation, window_in_words
from eval.scoring.assessment import REFERENCE, Row
from eval.scoring.bootstrap import Estimate
from eval.scoring.metrics import headline

SIGNIFICANT = 0.05
SMALL_CLASS = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A headline, its tone ('better', 'worse', 'open'), and the sentences below it."""

    title: str
    tone: str
    paragraphs: tuple[str, ...]


def number(value: float, digits: int = 3) -> str:
    """A value for people: three decimals below 10, three significant digits above, or 'undefined'."""
    if not math.isfinite(value):
        return "undefined"
    decimals = digits if abs(value) < 10 else max(0, digits - int(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def interval(found: Estimate) -> str:
    """'0.712 to 0.934', or 'undefined'."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return "undefined"
    return f"{number(found.low)} to {number(found.high)}"


def with_interval(found: Estimate) -> str:
    """'0.823 (95 % interval 0.712 to 0.934)'."""
    return f"{number(found.value)} (95 % interval {interval(found)})"


def in_sentence(label: str) -> str:
    """A metric's label as a word: 'balanced accuracy', but 'AUROC'."""
    return label[0].lower() + label[1:] if label[1].islower() else label


def p_text(p: float) -> str:
    """'p = 0.013', or 'p undefined'."""
    return f"p = {p:.4f}" if math.isfinite(p) else "p undefined"


def verdict(evaluation: Evaluation) -> Verdict:
    """Does our model beat the connectivity baseline, in plain words?"""
    assessment = evaluation.assessment
    ours, reference = assessment.ours, assessment.row(REFERENCE)
    metric = headline(evaluation.target.kind)
    found = ours.scores[metric.key]
    if not math.isfinite(found.value):
        return Verdict(
            title=f"No verdict: {metric.label} is undefined on these subjects",
            tone="open",
            paragraphs=(_who(evaluation), "All of them are of one class or value, so nothing can be ranked."),
        )
    advantage = reference.advantage
    assert advantage is not None  # every baseline has one
    title, tone = _title(advantage, reference.model.label)
    above_chance = ours.p_value <= SIGNIFICANT
    if not above_chance and tone != "worse":
        title, tone = "Our model is not shown to be better than chance", "open"
    direction = "ahead of" if advantage.value > 0 else "behind" if advantage.value < 0 else "level with"
    comparison = (
        f"Our model reaches {in_sentence(metric.label)} {with_interval(found)}; {reference.model.label} reaches "
        f"{with_interval(reference.scores[metric.key])} on the same subjects. Ours is {direction} it by "
        f"{number(abs(advantage.value))}: the paired interval of the advantage is {interval(advantage)}, "
        + (
            "which excludes 0."
            if _excludes_zero(advantage)
            else "which includes 0: the sign of the difference is not settled."
        )
    )
    chance = f"With the labels shuffled {assessment.null.size} times, {p_text(ours.p_value)}: the model " + (
        "does better than chance." if above_chance else "is not shown to do better than chance."
    )
    return Verdict(
        title=title,
        tone=tone,
        paragraphs=(f"{_who(evaluation)} {comparison}", f"{chance} {_controls(evaluation)}".strip()),
    )


def _title(advantage: Estimate, reference: str) -> tuple[str, str]:
    if advantage.low > 0:
        return f"Our model beats {reference}", "better"
    if advantage.high < 0:
        return f"{reference} beats our model", "worse"
    return f"No difference to {reference} is shown", "open"


def _excludes_zero(found: Estimate) -> bool:
    return found.low > 0 or found.high < 0


def _who(evaluation: Evaluation) -> str:
    part = next(part for part in evaluation.parts if part.name == evaluation.config.subset)
    classes = ", ".join(f"{count} of class {level}" for level, count in part.by_class.items())
    held = "untouched test" if part.name == "test" else "validation"
    text = f"{part.num_subjects} {held} subjects were scored for “{evaluation.target.column}”"
    return f"{text} ({classes})." if classes else f"{text}."


def _controls(evaluation: Evaluation) -> str:
    """Which controls our model is not shown to beat."""
    matched = [
        row.model.label
        for row in evaluation.assessment.rows
        if row.advantage is not None and row.model.key != REFERENCE and not row.advantage.low > 0
    ]
    if not matched:
        return "It is also ahead of every other baseline, each interval above 0."
    names = " and ".join((", ".join(matched[:-1]), matched[-1])) if len(matched) > 1 else matched[0]
    return f"It is not shown to be ahead of: {names}. What those models see may explain its score as well."


def limits(evaluation: Evaluation) -> list[str]:
    """What this report can and cannot show, for these very numbers."""
    scored = next(part for part in evaluation.parts if part.name == evaluation.config.subset)
    smallest = min(scored.by_class.values(), default=scored.num_subjects)
    assessment = evaluation.assessment
    said = [
        "It shows how well these models, as trained, rank or predict subjects like the ones scored. The "
        "intervals cover "
        "the choice of these subjects; they do not cover another split, another seed, or another training.",
        "It does not show why a model works: anatomy, motion, site and age can carry a target. Compare with the rows "
        "“Confounds only” and “Mean image”, and with the groups below.",
    ]
    if evaluation.config.subset == "val":
        said.insert(
            0, "Validation subjects chose our checkpoint: our model's numbers here are too good. Report test subjects."
        )
    if smallest < SMALL_CLASS:
        what = "the smallest class has" if scored.by_class else "the subset has"
        said.append(
            f"It is small: {what} {smallest} subjects. Percentile intervals of so few are rough and tend to be "
            f"too narrow; "
            "only large differences can show."
        )
    if assessment.num_families is None:
        said.append(
            "No family column was found in participants.tsv: relatives, if there are any, were treated as independent."
        )
    metric = headline(evaluation.target.kind)
    ours = assessment.ours.scores[metric.key]
    lost = max(row.scores[metric.key].num_undefined for row in assessment.rows)
    if lost:
        said.append(
            f"{lost} of {assessment.num_resamples} resamples held one class only and are left out of the intervals."
        )
    if metric.chance is not None and any(row.scores[metric.key].high < metric.chance for row in assessment.rows):
        said.append(
            "A model that lies below chance has not learnt the opposite: in a small balanced cohort, what leans "
            "one way among the fitted subjects by accident leans the other way among the rest. Read it as chance."
        )
    if ours.low == ours.high:
        said.append(
            f"The interval of our model's {metric.label} has no width: no resample of these subjects differs in it. "
            "That comes of few subjects or of constant outputs, it is not certainty."
        )
    if scored.num_without_target:
        said.append(f"{scored.num_without_target} {scored.name} subjects have no value of the target and are left out.")
    return said


def methods(evaluation: Evaluation, software: Mapping[str, str]) -> str:
    """A paragraph to paste into a paper."""
    target, config, split = evaluation.target, evaluation.config, evaluation.split
    count = {part.name: part.num_subjects for part in evaluation.parts}
    metric = headline(target.kind)
    grouped = f", grouped by {split.rule['group']}" if split.rule.get("group") else ""
    stratified = f", stratified by {split.rule['stratify']}" if split.rule.get("stratify") else ""
    decision = {
        "binary": "Classes were decided at a predicted probability of 0.5 for every model. ",
        "multiclass": "The class with the largest logit was taken. ",
        "regression": "R² refers to the mean of the training subjects. ",
    }[target.kind]
    blocks = ", with families drawn as blocks" if evaluation.assessment.num_families is not None else ""
    strata = "" if target.kind == "regression" else ", stratified by class"
    return (
        f"The target “{target.column}” ({target.kind}) was predicted for each subject with a 4D fMRI "
        f"transformer (boldstream "
        f"{software['boldstream']}). Subjects were divided once into {count['train']} training, {count['val']} "
        f"validation and "
        f"{count['test']} test subjects{grouped}{stratified} (seed {split.seed}, split hash {split.hash}). "
        f"Model outputs for windows of "
        f"{window_in_words(evaluation.run_config['window'])}, covering each frame once, were averaged to one "
        f"{'value' if target.kind == 'regression' else 'logit vector'} per subject, weighted by frames. "
        f"Baselines were fitted on the {' and '.join(evaluation.fitted_on)} subjects and scored on the same "
        f"{config.subset} subjects; "
        f"penalties were chosen by inner cross-validation{' that kept families together' if blocks else ''}. "
        f"Connectivity was the "
        f"Fisher-transformed Pearson correlation of {assessment_parcels(evaluation)}. {decision}"
        f"{metric.label} is the headline metric. Intervals are 95 % percentile intervals of {config.bootstrap} "
        f"bootstrap resamples of "
        f"subjects{strata}{blocks}; models were compared on the same resamples. The p-values come from "
        f"{config.permutations} permutations of "
        f"the labels. Metrics were computed with scikit-learn {software['scikit-learn']} and scipy "
        f"{software['scipy']}."
    )


def assessment_parcels(evaluation: Evaluation) -> str:
    """The parcellation in words."""
    return evaluation.assessment.row(REFERENCE).model.sees.removeprefix("static correlations of ")


def table_note(row: Row) -> str:
    """What a model sees and how it was fitted, for the table."""
    return f"Sees {row.model.sees}. {row.model.note[:1].upper()}{row.model.note[1:]}."
