"""Scores of the same task from several trainings: other seeds, other splits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.provenance import GENERATOR
from eval.scoring.comparison import ResampledTest, corrected_resampled_t, holm
from eval.scoring.metrics import METRICS, Kind, headline
from eval.subjects import OURS
from shards.errors import MismatchError, UsageError
from shards.format import xxh3

METRICS_FILE = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """One report: one training on one split.

    Attributes
    ----------
    folder : Path
        Where it lies.
    digest : str
        Of its metrics.
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    task : mapping of str to str
        What has to be the same in all reports, in words.
    split_hash : str
        Reports of one hash share their test subjects: they differ by the seed of the training.
    test_share : float
        Scored subjects divided by those that models were fitted on.
    labels : mapping of str to tuple of (str, str)
        Label and role of each model, by key.
    scores : mapping of str to mapping
        Model to metric to value; `nan` where undefined.
    """

    folder: Path
    digest: str
    kind: Kind
    task: Mapping[str, str]
    split_hash: str
    test_share: float
    labels: Mapping[str, tuple[str, str]]
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over several reports.

    Attributes
    ----------
    mean : float
        Of the splits' means; `nan` where it is undefined in any report that has it.
    sd : float
        Over all reports (n - 1); `nan` for fewer than two.
    values : tuple of float
        One a report, in their order; `nan` where a report lacks it or leaves it undefined.
    """

    mean: float
    sd: float
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """A model over all reports.

    Attributes
    ----------
    key, label, role : str
        As in the reports.
    num_reports : int
        Those that have it.
    scores : mapping of str to Spread
        By metric key.
    advantage : Spread or None
        Of ours in the headline metric, positive when ours is better; None for ours.
    test : ResampledTest or None
        Of the advantage over splits; None for ours and for one split.
    adjusted_p : float
        After Holm's correction over baselines; `nan` where there is no test, and for controls.
    """

    key: str
    label: str
    role: str
    num_reports: int
    scores: Mapping[str, Spread]
    advantage: Spread | None
    test: ResampledTest | None
    adjusted_p: float


def read_repeat(folder: Path) -> Repeat:
    """What a report says.

    Raises
    ------
    UsageError
        There is no report, or another version wrote it.
    """
    path = folder / METRICS_FILE
    try:
        text = path.read_bytes()
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a report ({error}); give folders of eval-fmri report") from error
    if not isinstance(found, dict) or found.get("generator") != GENERATOR:
        raise UsageError(f"{path}: was not written by eval-fmri report; give folders of eval-fmri report")
    try:
        return _repeat(folder, xxh3(text), found)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"{path}: not a report of this version ({type(error).__name__} {error}); make the report again"
        ) from error


def _repeat(folder: Path, digest: str, found: Mapping[str, Any]) -> Repeat:
    target, counts = found["target"], {part["name"]: part["num_subjects"] for part in found["split"]["parts"]}
    if target["kind"] not in METRICS:
        raise ValueError(f"kind {target['kind']!r}")
    return Repeat(
        folder=folder,
        digest=digest,
        kind=target["kind"],
        task={
            "target": str(target["column"]),
            "kind of target": str(target["kind"]),
            "levels": ", ".join(target["levels"]) or "none",
            "subset": str(found["subset"]),
            "shard set": str(found["set_hash"]),
        },
        split_hash=str(found["split"]["hash"]),
        test_share=counts[found["subset"]] / sum(counts[part] for part in found["fitted_on"]),
        labels={model["key"]: (str(model["label"]), str(model["role"])) for model in found["models"]},
        scores={model["key"]: _values(model["scores"]) for model in found["models"]},
    )


def _values(scores: Mapping[str, Any]) -> dict[str, float]:
    return {key: math.nan if score["value"] is None else float(score["value"]) for key, score in scores.items()}


def check_same_task(repeats: Sequence[Repeat]) -> None:
    """Refuse reports that cannot be put together.

    Raises
    ------
    UsageError
        Fewer than two, or one given twice.
    MismatchError
        Two reports are about different tasks.
    """
    if len(repeats) < 2:
        raise UsageError(f"reports: {len(repeats)} given, at least 2 are needed; give the folders of several reports")
    seen: dict[str, Path] = {}
    for repeat in repeats:
        if repeat.digest in seen:
            raise UsageError(f"{repeat.folder}: the same report as {seen[repeat.digest]}; give each once")
        seen[repeat.digest] = repeat.folder
        for what, value in repeat.task.items():
            first = repeats[0].task[what]
            if value != first:
                raise MismatchError(
                    f"{repeat.folder}: its {what} is {value}, that of {repeats[0].folder} is {first}; "
                    "put reports of one task together"
                )


def summarise(repeats: Sequence[Repeat]) -> tuple[ModelSummary, ...]:
    """Every model over all reports: baselines, controls, ours.

    Differences are taken within a report, averaged over the reports of a split, and tested over splits (Nadeau &
    Bengio 2003): seeds of one split share their subjects and are no evidence about other subjects.
    """
    labels: dict[str, tuple[str, str]] = {}
    for repeat in repeats:
        labels |= {key: found for key, found in repeat.labels.items() if key not in labels}
    order = {"baseline": 0, "control": 1, "ours": 2}
    keys = sorted(labels, key=lambda key: order[labels[key][1]])
    advantages = {key: [_advantage(repeat, key) for repeat in repeats] for key in keys if key != OURS}
    tests = {key: _test(repeats, values) for key, values in advantages.items()}
    rivals = [key for key in keys if labels[key][1] == "baseline"]
    raw = [math.nan if found is None else found.p_value for found in (tests[key] for key in rivals)]
    adjusted = dict(zip(rivals, holm(raw), strict=True))
    metrics = METRICS[repeats[0].kind]
    return tuple(
        ModelSummary(
            key=key,
            label=labels[key][0],
            role=labels[key][1],
            num_reports=sum(key in repeat.scores for repeat in repeats),
            scores={metric.key: _spread(repeats, [_score(r, key, metric.key) for r in repeats]) for metric in metrics},
            advantage=_spread(repeats, advantages[key]) if key in advantages else None,
            test=tests.get(key),
            adjusted_p=adjusted.get(key, math.nan),
        )
        for key in keys
    )


def _score(repeat: Repeat, model: str, metric: str) -> float | None:
    """None where the report does not have the model."""
    return repeat.scores[model].get(metric, math.nan) if model in repeat.scores else None


def _advantage(repeat: Repeat, key: str) -> float | None:
    metric = headline(repeat.kind)
    ours, other = _score(repeat, OURS, metric.key), _score(repeat, key, metric.key)
    if ours is None or other is None:
        return None
    return ours - other if metric.higher_is_better else other - ours


def _by_split(repeats: Sequence[Repeat], values: Sequence[float | None]) -> list[float]:
    """Mean of each split that has values, in order of first appearance."""
    found: dict[str, list[float]] = {}
    for repeat, value in zip(repeats, values, strict=True):
        if value is not None:
            found.setdefault(repeat.split_hash, []).append(value)
    return [float(np.mean(each)) for each in found.values()]


def _spread(repeats: Sequence[Repeat], values: Sequence[float | None]) -> Spread:
    there = [value for value in values if value is not None]
    means = _by_split(repeats, values)
    return Spread(
        mean=float(np.mean(means)) if means else math.nan,
        sd=float(np.std(there, ddof=1)) if len(there) > 1 else math.nan,
        values=tuple(math.nan if value is None else value for value in values),
    )


def _test(repeats: Sequence[Repeat], advantages: Sequence[float | None]) -> ResampledTest | None:
    differences = _by_split(repeats, advantages)
    if len(differences) < 2:
        return None
    share = float(np.mean([repeat.test_share for repeat in repeats]))
    return corrected_resampled_t(differences, share)
