"""The people behind a shard set: their runs, families, sites, and measures that must not decide a result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eval.scoring.metrics import Floats
from shards.splits.strata import FAMILY_COLUMNS

if TYPE_CHECKING:
    from shards.reader import ShardSet

# Names under which public cohorts keep each role; the first one present is taken.
ROLES: dict[str, tuple[str, ...]] = {
    "family": FAMILY_COLUMNS,
    "site": ("site", "site_id", "site_id_l", "SITE_ID", "scanner"),
    "age": ("age", "Age", "Age_in_Yrs", "interview_age"),
    "sex": ("sex", "Sex", "gender", "Gender"),
}


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Subjects of a shard set, with what participants.tsv and the runs say of them.

    Attributes
    ----------
    shard_set : shards.reader.ShardSet
        The open shard set.
    runs : mapping of str to tuple of int
        Run numbers of each subject.
    columns : mapping of str to str
        Role ('family', 'site', 'age', 'sex') to the column that plays it. The target never plays a role.
    values : mapping of str to mapping
        Role to raw values by subject.
    """

    shard_set: ShardSet
    runs: Mapping[str, tuple[int, ...]]
    columns: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]

    @property
    def families(self) -> Mapping[str, str] | None:
        """Family of each subject, or None when no column says."""
        return self.values.get("family")

    def family_names(self, subjects: tuple[str, ...]) -> tuple[str, ...] | None:
        """Family of each of `subjects`, '' where unknown; None when no column says."""
        known = self.families
        return None if known is None else tuple(known.get(subject, "") for subject in subjects)

    def weighted(self, field: str, subject: str) -> float:
        """Mean of a field of runs.tsv over a subject's runs, weighted by frames; `nan` when none has it."""
        entries = [self.shard_set.runs[index] for index in self.runs[subject]]
        pairs = [(float(getattr(entry, field)), entry.num_frames) for entry in entries]
        known = [(value, frames) for value, frames in pairs if math.isfinite(value)]
        if not known:
            return math.nan
        return float(np.average([v for v, _ in known], weights=[n for _, n in known]))

    def num_frames(self, subject: str) -> int:
        """Frames of all runs of a subject."""
        return sum(self.shard_set.runs[index].num_frames for index in self.runs[subject])


def open_cohort(shard_set: ShardSet, target_column: str, family_column: str | None = None) -> Cohort:
    """Find the roles of the columns of participants.tsv.

    Parameters
    ----------
    shard_set : shards.reader.ShardSet
        Open shard set.
    target_column : str
        Column that is predicted. It plays no role, nor does any other name of the same thing: with the target
        'Gender', a column 'sex' is no confound but the answer.
    family_column : str, optional
        Column that the split grouped by; it is the family when given.
    """
    runs: defaultdict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(shard_set.runs):
        runs[entry.subject].append(index)
    table = shard_set.participants
    present = [] if table is None else [str(column) for column in table.columns]
    columns: dict[str, str] = {}
    for role, names in ROLES.items():
        if target_column in names:
            continue
        found = next((name for name in names if name in present), None)
        if found is not None:
            columns[role] = found
    if family_column in present and family_column is not None:
        columns["family"] = family_column
    values = {role: shard_set.phenotype(column) for role, column in columns.items()}
    return Cohort(
        shard_set=shard_set,
        runs={subject: tuple(indices) for subject, indices in runs.items()},
        columns=columns,
        values=values,
    )


def confound_features(
    cohort: Cohort, subjects: tuple[str, ...], fitted_on: tuple[str, ...]
) -> tuple[Floats, list[str]]:
    """Numbers about the acquisition and the person that are not brain activity.

    Mean framewise displacement (mm), frames, median tSNR, age, and one column for each site and sex that
    occurs among `fitted_on`. Missing numbers become the median of `fitted_on`; a measure that nobody of
    `fitted_on` has, or that is constant there, is left out.

    Parameters
    ----------
    cohort : Cohort
        Where to look.
    subjects, fitted_on : tuple of str
        Rows wanted, and the subjects that medians and levels are taken from.

    Returns
    -------
    features : numpy.ndarray, shape (N, F)
    names : list of str
        Name of each feature.
    """
    numeric: dict[str, Callable[[str], float]] = {
        "mean FD (mm)": lambda subject: cohort.weighted("mean_fd_mm", subject),
        "median tSNR": lambda subject: cohort.weighted("tsnr_median", subject),
        "number of frames": lambda subject: float(cohort.num_frames(subject)),
        "age": lambda subject: _as_number(cohort.values.get("age", {}).get(subject, "")),
    }
    columns: list[Floats] = []
    names: list[str] = []
    for name, measure in numeric.items():
        fitted = np.array([measure(subject) for subject in fitted_on])
        known = fitted[np.isfinite(fitted)]
        if known.size == 0 or np.ptp(known) == 0:
            continue
        values = np.array([measure(subject) for subject in subjects])
        columns.append(np.where(np.isfinite(values), values, np.median(known)))
        names.append(name)
    for role in ("site", "sex"):
        raw = cohort.values.get(role, {})
        levels = sorted({raw[subject] for subject in fitted_on if subject in raw})
        for level in levels if len(levels) > 1 else ():
            columns.append(np.array([float(raw.get(subject) == level) for subject in subjects]))
            names.append(f"{role} {level}")
    features = np.stack(columns, axis=1) if columns else np.zeros((len(subjects), 0))
    return features, names


def _as_number(raw: str) -> float:
    try:
        return float(raw)
    except ValueError:
        return math.nan
