"""Subjects, their weights and their groups."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from eval.cohort import Cohort, confound_features
from eval.controls.groups import subgroups
from eval.prediction.predict import window_in_words


def _cohort(motion: dict[str, list[tuple[float, int]]], **values: dict[str, str]) -> Cohort:
    entries, runs = [], {}
    for subject, parts in motion.items():
        runs[subject] = tuple(range(len(entries), len(entries) + len(parts)))
        entries += [SimpleNamespace(mean_fd_mm=fd, tsnr_median=50.0, num_frames=frames) for fd, frames in parts]
    shard_set: Any = SimpleNamespace(runs=entries)
    return Cohort(shard_set=shard_set, runs=runs, columns={role: role for role in values}, values=values)


def test_measures_of_runs_are_weighted_by_frames_and_unknown_ones_ignored() -> None:
    cohort = _cohort({"a": [(0.1, 100), (0.4, 200), (math.nan, 900)], "b": [(math.nan, 10)]})
    assert cohort.weighted("mean_fd_mm", "a") == pytest.approx(0.3)
    assert math.isnan(cohort.weighted("mean_fd_mm", "b"))
    assert cohort.num_frames("a") == 1200


def test_thirds_of_motion_are_ordered_and_leave_out_the_unknown() -> None:
    motion = {f"{k}": [(0.05 * ((k * 4) % 9), 10)] for k in range(9)} | {"x": [(math.nan, 10)]}
    subjects = tuple(motion)
    groups = subgroups(_cohort(motion), subjects)["motion"]
    assert [name.split(" (")[0] for name in groups] == ["lowest third", "middle third", "highest third"]
    rows = list(groups.values())
    assert sorted(row for part in rows for row in part) == list(range(9))
    highest_of_low = max(motion[subjects[row]][0][0] for row in rows[0])
    assert highest_of_low < min(motion[subjects[row]][0][0] for row in rows[1])


def test_equal_motion_and_one_site_make_no_groups() -> None:
    motion = {f"{k}": [(0.1, 10)] for k in range(9)}
    assert subgroups(_cohort(motion, site=dict.fromkeys(motion, "leeds")), tuple(motion)) == {}


def test_site_that_only_scored_subjects_have_is_no_feature() -> None:
    motion = {f"{k}": [(0.01 * k, 10)] for k in range(4)}
    cohort = _cohort(motion, site={"0": "a", "1": "b", "2": "a", "3": "new"})
    features, names = confound_features(cohort, ("3",), ("0", "1", "2"))
    assert names == ["mean FD (mm)", "site a", "site b"]
    assert features[0].tolist() == pytest.approx([0.03, 0.0, 0.0])


def test_families_where_known() -> None:
    cohort = _cohort({"a": [(0.1, 10)], "b": [(0.1, 10)]}, family={"a": "f1"})
    assert cohort.family_names(("b", "a")) == ("", "f1")
    assert _cohort({"a": [(0.1, 10)]}).family_names(("a",)) is None


def test_windows_in_words() -> None:
    assert window_in_words("20") == window_in_words(20) == "20 frames"
    assert window_in_words("16s") == "16 s"
