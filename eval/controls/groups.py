"""The headline metric of every model at each site and in each third of motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from eval.cohort import Cohort
from eval.scoring.intervals import draw, intervals, resample
from eval.scoring.metrics import headline
from eval.subjects import Predictions, Scored
from eval.targets import Target

MOTION_GROUPS = ("lowest third", "middle third", "highest third")
LEAST_SUBJECTS = 6

Memberships = Mapping[str, Mapping[str, Sequence[int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupScore:
    """One model among the subjects of one group.

    Attributes
    ----------
    model : str
        Key.
    role, name : str
        'site' or 'motion', and which.
    num_subjects : int
        In the group.
    value, low, high : float
        Headline metric and its 95 % bootstrap interval; `nan` where undefined (one class only).
    """

    model: str
    role: str
    name: str
    num_subjects: int
    value: float
    low: float
    high: float


def subgroups(cohort: Cohort, subjects: tuple[str, ...]) -> dict[str, dict[str, list[int]]]:
    """Rows of `subjects` by site, and by third of mean framewise displacement, where these are known.

    One site, and motion that is known of fewer than 6 subjects or the same for all, make no groups.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    sites = cohort.values.get("site", {})
    levels = sorted({sites[subject] for subject in subjects if subject in sites})
    if len(levels) > 1:
        groups["site"] = {level: [i for i, s in enumerate(subjects) if sites.get(s) == level] for level in levels}
    motion = np.array([cohort.weighted("mean_fd_mm", subject) for subject in subjects])
    known = np.flatnonzero(np.isfinite(motion))
    if known.size >= LEAST_SUBJECTS and np.ptp(motion[known]) > 0:
        ranked = known[np.argsort(motion[known], kind="stable")]
        groups["motion"] = {
            f"{name} (mean FD {motion[part].min():.2f} to {motion[part].max():.2f} mm)": sorted(part.tolist())
            for name, part in zip(MOTION_GROUPS, np.array_split(ranked, 3), strict=True)
        }
    return groups


def group_scores(
    scored: Sequence[Scored],
    target: Target,
    memberships: Memberships,
    *,
    families: Sequence[str] | None,
    num_resamples: int,
    seed: int,
) -> tuple[GroupScore, ...]:
    """The headline metric of every model in every group; all models of a group on the same resamples.

    Parameters
    ----------
    scored : sequence of Scored
        All on the same subjects.
    target : Target
        What is predicted.
    memberships : mapping of str to mapping
        Role to group name to the rows that belong to it, as from `subgroups`.
    families : sequence of str or None
        Family of each subject, '' where unknown.
    num_resamples, seed : int
        Of the bootstrap.
    """
    found = []
    key = headline(target.kind).key
    for role, groups in memberships.items():
        for name, members in groups.items():
            rows = np.asarray(members, dtype=np.int64)
            draws = draw(
                scored[0].predictions.y_true[rows],
                target,
                families=None if families is None else [families[row] for row in rows],
                num_resamples=num_resamples,
                seed=seed,
            )
            for each in scored:
                # the headline metrics need no threshold
                score = intervals(resample(_taken(each.predictions, rows), target, 0.0, draws), draws)[key]
                found.append(
                    GroupScore(
                        model=each.model.key,
                        role=role,
                        name=name,
                        num_subjects=rows.size,
                        value=score.value,
                        low=score.low,
                        high=score.high,
                    )
                )
    return tuple(found)


def _taken(predicted: Predictions, rows: npt.NDArray[np.int64]) -> Predictions:
    return replace(
        predicted,
        subjects=tuple(predicted.subjects[row] for row in rows),
        y_true=predicted.y_true[rows],
        output=predicted.output[rows],
    )
