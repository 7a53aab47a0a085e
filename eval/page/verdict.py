"""The verdict: what the headline metric says of our model beside every baseline and every control.

A baseline is beaten where the 95 % interval of our advantage lies above 0, and beats our model where it lies below 0
and the difference stays significant after Holm's correction over all baselines. "Every baseline" needs no
correction: each single comparison has to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eval.page.prose import counted, in_sentence, interval, listed, number, p_text, with_interval
from eval.scoring.assessment import Assessment, Row
from eval.scoring.metrics import Metric

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

SIGNIFICANT = 0.05
OTHER_RUN = "run_"
"""How the keys of other trained runs (`--compare`) begin."""
REFERENCE = "reprobed"
"""Key of the control that takes nothing away, but for gradient steps: others are to be held against it."""
UNMATCHED_MEANS = {
    "shuffled": "the order of frames is not shown to matter",
    "shuffled_test": "it is not shown to use the order of frames",
    "untrained": "training the encoder is not shown to matter",
}
"""What follows from a control that our model is not shown to beat, by its key."""

Standing = Literal["ahead", "behind", "open"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A headline, its tone ('better', 'worse', 'open'), and the sentences below it."""

    title: str
    tone: str
    paragraphs: tuple[str, ...]


def standing(row: Row) -> Standing:
    """Where our model stands to another: ahead, behind, or open."""
    advantage = row.advantage
    if advantage is not None and advantage.low > 0:
        return "ahead"
    if advantage is None or not advantage.high < 0:
        return "open"
    corrected = row.model.role != "baseline" or row.adjusted_p <= SIGNIFICANT
    return "behind" if corrected else "open"


def verdict(evaluation: Evaluation) -> Verdict:
    """What came out, in plain words.

    Parameters
    ----------
    evaluation : Evaluation
        Its assessment may hold no baseline at all (`--skip baselines`).
    """
    assessment, metric = evaluation.assessment, evaluation.assessment.metric
    if not math.isfinite(assessment.ours.scores[metric.key].value):
        return Verdict(
            title=f"No verdict: {metric.label} is undefined on these subjects",
            tone="open",
            paragraphs=(_who(evaluation), "All of them are of one class or value, so nothing can be ranked."),
        )
    title, tone = _title(assessment)
    first = f"{_who(evaluation)} {_comparison(assessment, metric)}"
    second = " ".join(sentence for sentence in (_others(assessment), _chance(assessment)) if sentence)
    return Verdict(title=title, tone=tone, paragraphs=tuple(p for p in (first, second, _controls(assessment)) if p))


def strongest(assessment: Assessment) -> Row | None:
    """The baseline with the best score, None where none has one."""
    known = any(math.isfinite(row.scores[assessment.metric.key].value) for row in assessment.baselines)
    return assessment.best_baseline() if known else None


def above_chance(assessment: Assessment) -> bool:
    """Whether shuffled labels rarely do as well as our model."""
    return assessment.ours.p_value <= SIGNIFICANT


def _title(assessment: Assessment) -> tuple[str, str]:
    best, rivals = strongest(assessment), assessment.baselines
    behind = [row for row in rivals if standing(row) == "behind"]
    open_ = [row for row in rivals if standing(row) == "open"]
    if behind:
        return _beaten(behind), "worse"
    if not above_chance(assessment):
        return "Our model is not shown to be better than chance", "open"
    if best is None:
        return "Our model does better than chance; there is no baseline to compare it with", "open"
    if not open_:
        return "Our model beats every baseline", "better"
    if best in open_:
        return f"No difference to the strongest baseline, {best.model.label}, is shown", "open"
    others = listed([row.model.label for row in open_])
    return f"Our model beats {best.model.label}, the strongest baseline, but is not shown to beat {others}", "open"


def _beaten(rows: Sequence[Row]) -> str:
    def lead(row: Row) -> float:
        return math.inf if row.advantage is None else row.advantage.value

    first, *more = sorted(rows, key=lead)
    if not more:
        return f"{first.model.label} beats our model"
    return f"{first.model.label} and {counted(len(more), 'other baseline')} beat our model"


def _who(evaluation: Evaluation) -> str:
    part = next(part for part in evaluation.parts if part.name == evaluation.config.subset)
    classes = ", ".join(f"{count} of class {level}" for level, count in part.by_class.items())
    held = "untouched test" if part.name == "test" else "validation"
    text = f"{counted(part.num_subjects, f'{held} subject')} "
    text += f"{'was' if part.num_subjects == 1 else 'were'} scored for “{evaluation.target.column}”"
    return f"{text} ({classes})." if classes else f"{text}."


def _comparison(assessment: Assessment, metric: Metric) -> str:
    best, word = strongest(assessment), in_sentence(metric.label)
    ours = f"Our model reaches {word} {with_interval(assessment.ours.scores[metric.key])}"
    if best is None or best.advantage is None:
        return f"{ours}. No baseline was scored beside it, so this says little of what the score is worth."
    found = best.advantage
    way = "ahead of" if found.value > 0 else "behind" if found.value < 0 else "level with"
    by = f" by {number(abs(found.value))}" if found.value else ""
    score = with_interval(best.scores[metric.key])
    settled = "which excludes 0" if found.low > 0 or found.high < 0 else "which includes 0: the order is not settled"
    return (
        f"{ours}; the strongest of {counted(len(assessment.baselines), 'baseline')}, {best.model.label}, reaches "
        f"{score} on the same subjects. Ours is {way} it{by}: the paired 95 % interval of the advantage is "
        f"{interval(found)}, {settled}."
    )


def _others(assessment: Assessment) -> str:
    """Which other baselines our model beats, which beat it, and which leave it open."""
    best = strongest(assessment)
    others = [row for row in assessment.baselines if row is not best]
    if best is None or not others:
        return ""
    names: dict[Standing, list[str]] = {"ahead": [], "behind": [], "open": []}
    for row in others:
        names[standing(row)].append(row.model.label)
    if len(names["ahead"]) == len(others):
        return "It is ahead of every other baseline, each interval above 0."
    said = []
    if names["behind"]:
        said.append(f"It is also behind {listed(names['behind'])}.")
    if names["open"]:
        said.append(f"It is not shown to differ from {listed(names['open'])}: what they see may carry the score.")
    if names["ahead"]:
        said.append(f"It is ahead of {listed(names['ahead'])}.")
    return " ".join(said)


def _chance(assessment: Assessment) -> str:
    told = f"With the labels shuffled {assessment.null.size} times, {p_text(assessment.ours.p_value)}: "
    return told + ("it does better than chance." if above_chance(assessment) else "better than chance is not shown.")


def _controls(assessment: Assessment) -> str:
    """What the controls, and other runs, leave of the score."""
    rows = [row for row in assessment.controls if row.model.key != REFERENCE]
    matched = [row for row in rows if standing(row) != "ahead"]
    controls = [row for row in matched if not row.model.key.startswith(OTHER_RUN)]
    said = []
    if controls:
        said.append(f"Of its controls, our model is not shown to beat {listed([row.model.label for row in controls])}")
        meanings = [UNMATCHED_MEANS[row.model.key] for row in controls if row.model.key in UNMATCHED_MEANS]
        said[-1] += f": {listed(meanings)}." if meanings else "."
    elif any(not row.model.key.startswith(OTHER_RUN) for row in rows):
        said.append("It is ahead of all its controls: what they take away from it carries some of its score.")
    runs = [row.model.label for row in matched if row.model.key.startswith(OTHER_RUN)]
    if runs:
        said.append(f"It is not shown to be ahead of {listed(runs)}.")
    return " ".join(said)
