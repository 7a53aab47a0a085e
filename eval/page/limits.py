"""What a report can and cannot show, for the very numbers in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from eval.page.prose import counted
from eval.scoring.metrics import headline

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

SMALL_CLASS = 20


def limits(evaluation: Evaluation) -> list[str]:
    """Sentences for people, the gravest first."""
    return [*_leaks(evaluation), *_always(evaluation), *_of_subjects(evaluation), *_of_scores(evaluation)]


def _leaks(evaluation: Evaluation) -> Iterator[str]:
    failed = sum(check.passed is False for check in evaluation.checks)
    if failed:
        yield f"{counted(failed, 'leakage check')} failed: do not report these numbers before that is mended."
    if evaluation.config.subset == "val":
        yield "Validation subjects chose our checkpoint: our model's numbers here are too good. Report test subjects."


def _always(evaluation: Evaluation) -> Iterator[str]:
    yield (
        "It shows how well these models, as trained, rank or predict subjects like the ones scored. The intervals "
        "cover the choice of these subjects; they do not cover another split, another seed, or another training."
    )
    yield (
        "It does not show why a model works: anatomy, motion, site and age can carry a target. Compare with the "
        "baselines that see nothing else, and with the controls."
    )
    if len(evaluation.assessment.baselines) > 1:
        yield (
            "The strongest baseline was found on the scored subjects themselves, which flatters it a little: the "
            "comparison with it leans against our model."
        )


def _of_subjects(evaluation: Evaluation) -> Iterator[str]:
    scored = next(part for part in evaluation.parts if part.name == evaluation.config.subset)
    smallest = min(scored.by_class.values(), default=scored.num_subjects)
    if smallest < SMALL_CLASS:
        what = "the smallest class has" if scored.by_class else "the subset has"
        yield f"It is small: {what} {counted(smallest, 'subject')}. Only large differences can show."
    if evaluation.assessment.num_families is None:
        yield (
            "No family column was found in participants.tsv: relatives, if there are any, were treated as independent."
        )
    if scored.num_without_target:
        has = "has" if scored.num_without_target == 1 else "have"
        yield (
            f"{counted(scored.num_without_target, f'{scored.name} subject')} {has} no value of the target and "
            f"{'is' if scored.num_without_target == 1 else 'are'} left out."
        )


def _of_scores(evaluation: Evaluation) -> Iterator[str]:
    assessment, metric = evaluation.assessment, headline(evaluation.target.kind)
    ours = assessment.ours.scores[metric.key]
    lost = max(row.scores[metric.key].num_undefined for row in assessment.rows)
    if lost:
        yield f"{metric.label} is undefined in {lost} of {assessment.num_resamples} resamples; left out of intervals."
    if metric.chance is not None and any(row.scores[metric.key].high < metric.chance for row in assessment.rows):
        yield (
            "A model that lies below chance has not learnt the opposite: in a small balanced cohort, what leans "
            "one way among the fitted subjects by accident leans the other way among the rest. Read it as chance."
        )
    if ours.low == ours.high:
        yield (
            f"The interval of our model's {metric.label} has no width: no resample of these subjects differs in it. "
            "That comes of few subjects or of constant outputs, it is not certainty."
        )
