"""Designs: several columns in balance, folds that partition, sites left out; scikit-learn as the yardstick."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from shards.errors import UsageError
from shards.reader import ShardSet
from shards.splits import (
    PARTS,
    Split,
    family_column,
    largest_deviation,
    leave_each_site_out,
    leave_sites_out,
    make_folds,
    make_split,
    quantile_bins,
    read_strata,
)
from shards.splits.assign import divide
from shards.splits.fit import crossing_groups


@dataclass(frozen=True)
class Cohort:
    """Subjects, their families, and their (target, site)."""

    groups: dict[str, str]
    strata: dict[str, tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """All subjects."""
        return list(self.groups)

    @property
    def sites(self) -> dict[str, str]:
        """Subject to site."""
        return {name: site for name, (_, site) in self.strata.items()}


def draw_cohort(seed: int, num_subjects: int = 0, num_sites: int = 0) -> Cohort:
    """Families of 1 to 4 within sites of unequal size; the share of patients differs between sites."""
    rng = np.random.default_rng(seed)
    num_subjects = num_subjects or int(rng.integers(60, 600))
    num_sites = num_sites or int(rng.integers(2, 12))
    sizes = rng.dirichlet([3, 2, 1, 0.5])
    site_shares = rng.dirichlet(np.full(num_sites, 3.0))
    rates = rng.uniform(0.2, 0.6, num_sites)
    groups: dict[str, str] = {}
    strata: dict[str, tuple[str, str]] = {}
    while len(groups) < num_subjects:
        family, site = len(groups), int(rng.choice(num_sites, p=site_shares))
        for _ in range(int(rng.choice(4, p=sizes)) + 1):
            name = f"{len(groups):04d}"
            groups[name] = f"family{family}"
            strata[name] = ("patient" if rng.random() < rates[site] else "control", f"site{site}")
    return Cohort(groups, strata)


LEVELS = {"size": (), "target": (0,), "site": (1,), "cell": (0, 1)}


def deviations(parts: Sequence[Sequence[str]], shares: Sequence[float], cohort: Cohort, columns: tuple) -> np.ndarray:
    """Subjects above the proportional number, for each part and each stratum of some columns."""
    label = {name: tuple(values[c] for c in columns) for name, values in cohort.strata.items()}
    totals = Counter(label.values())
    counts = [Counter(label[name] for name in part) for part in parts]
    return np.array(
        [[count[x] - share * n for x, n in totals.items()] for count, share in zip(counts, shares, strict=True)]
    )


def test_no_worse_balanced_than_stratified_group_k_fold() -> None:
    """Mean over 60 cohorts of the root-mean-square and of the largest deviation in subjects, over folds and strata."""
    rms, largest = ({level: {"ours": [], "sklearn": []} for level in LEVELS} for _ in range(2))
    for seed in range(60):
        cohort = draw_cohort(seed)
        cells = ["/".join(cohort.strata[name]) for name in cohort.names]
        families = [cohort.groups[name] for name in cohort.names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # cells smaller than the number of folds
            folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(cells, cells, families))
        tests = {
            "sklearn": [[cohort.names[i] for i in test] for _, test in folds],
            "ours": divide(cohort.names, [0.2] * 5, groups=cohort.groups, strata=cohort.strata, seed=seed),
        }
        for level, columns in LEVELS.items():
            for who, parts in tests.items():
                found = deviations(parts, [0.2] * 5, cohort, columns)
                rms[level][who].append(np.sqrt((found**2).mean()))
                largest[level][who].append(np.abs(found).max())
    for level in LEVELS:
        assert np.mean(rms[level]["ours"]) <= np.mean(rms[level]["sklearn"]), level
        assert np.mean(largest[level]["ours"]) <= np.mean(largest[level]["sklearn"]), level
    for level in ("size", "target"):
        assert np.mean(rms[level]["ours"]) < 0.85 * np.mean(rms[level]["sklearn"]), level


def site_baseline_auc(split: Split, cohort: Cohort) -> float:
    """AUROC on test of a model that knows nothing but how many of a site's training subjects are patients."""
    sick = {name: float(target == "patient") for name, (target, _) in cohort.strata.items()}
    rates = {
        site: np.mean([sick[name] for name in split.train if cohort.sites[name] == site])
        for site in {cohort.sites[name] for name in split.train}
    }
    return float(roc_auc_score([sick[n] for n in split.test], [rates.get(cohort.sites[n], 0.5) for n in split.test]))


def test_target_and_site_together_repair_what_the_target_alone_leaves() -> None:
    """In cohorts where site says nothing of the target, a model of the site falls below chance: what train has too
    many of, test has too few of. Balancing both takes the imbalance away."""
    largest: dict[str, list[float]] = {"target": [], "both": []}
    auc: dict[str, list[float]] = {"target": [], "both": []}
    for seed in range(25):
        groups = {f"{k:03d}": f"family{k // 2}" for k in range(160)}
        strata = {name: (("control", "patient")[k // 2 % 2], f"site{k // 4 % 4}") for k, name in enumerate(groups)}
        cohort = Cohort(groups, strata)
        only = {name: (target,) for name, (target, _) in strata.items()}
        for how, values in (("target", only), ("both", strata)):
            split = make_split(groups, groups=groups, strata=values, fractions=(0.6, 0.15, 0.25), seed=seed)
            parts = [split.subjects(part) for part in PARTS]
            largest[how].append(np.abs(deviations(parts, (0.6, 0.15, 0.25), cohort, (0, 1))).max())
            auc[how].append(site_baseline_auc(split, cohort))
    assert np.mean(largest["both"]) < 0.35 * np.mean(largest["target"])
    assert np.mean(auc["target"]) < 0.45
    assert abs(np.mean(auc["both"]) - 0.5) < 0.02


def _cohorts() -> st.SearchStrategy[tuple[int, Cohort]]:
    return st.tuples(
        st.integers(-5, 2**70), st.builds(draw_cohort, st.integers(0, 10**6), st.integers(40, 120), st.integers(1, 5))
    )


@given(_cohorts(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_nobody_twice_no_family_divided_and_the_order_of_the_input_is_nothing(drawn: Any, shuffler: Any) -> None:
    seed, cohort = drawn
    split = make_split(cohort.names, groups=cohort.groups, strata=cohort.strata, seed=seed)
    assert sorted([*split.train, *split.val, *split.test]) == sorted(cohort.names)
    assert not crossing_groups(split, cohort.groups)
    mixed = [*cohort.names, *cohort.names[:5]]
    shuffler.shuffle(mixed)
    shuffled = {name: cohort.groups[name] for name in mixed}
    again = make_split(mixed, groups=shuffled, strata={n: cohort.strata[n] for n in mixed}, seed=seed)
    assert again == split and Split.from_json(split.to_json(), "") == split


@given(_cohorts(), st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2), (0.34, 0.33, 0.33)]))
@settings(max_examples=30, deadline=None)
def test_fractions_hold_to_within_a_family(drawn: Any, fractions: tuple[float, float, float]) -> None:
    seed, cohort = drawn
    split = make_split(cohort.names, groups=cohort.groups, strata=cohort.strata, fractions=fractions, seed=seed)
    largest_family = max(2, *Counter(cohort.groups.values()).values())
    for part, fraction in zip(PARTS, fractions, strict=True):
        assert abs(len(split.subjects(part)) - fraction * len(cohort.names)) <= largest_family
    assert fractions[1] or not split.val


@given(_cohorts(), st.integers(2, 7))
@settings(max_examples=20, deadline=None)
def test_folds_test_everyone_once_and_divide_no_family(drawn: Any, k: int) -> None:
    seed, cohort = drawn
    folds = make_folds(cohort.names, k, groups=cohort.groups, strata=cohort.strata, val_fraction=0.2, seed=seed)
    assert sorted(name for fold in folds for name in fold.test) == sorted(cohort.names)
    for fold in folds:
        assert sorted([*fold.train, *fold.val, *fold.test]) == sorted(cohort.names)
        assert not crossing_groups(fold, cohort.groups)
        assert abs(len(fold.test) - len(cohort.names) / k) <= 4
        assert abs(len(fold.val) - 0.2 * (len(cohort.names) - len(fold.test))) <= 4


def test_many_small_strata_do_not_spoil_the_fractions() -> None:
    """Where every stratum has three subjects, one by one assignment gave a third to each part."""
    strata = {f"{k:03d}": (f"cell{k // 3}", "ab"[k % 2]) for k in range(120)}
    split = make_split(strata, strata=strata)
    assert [len(split.subjects(part)) for part in PARTS] == [84, 18, 18]
    assert [split.counts["test"].get(f"cell{k}, a", 0) <= 1 for k in range(40)] == [True] * 40


def test_golden_division() -> None:
    """The rule of the balance is a promise like that of `make_split`."""
    groups = {f"{k:03d}": f"family{k // 3 if k % 2 else k}" for k in range(90)}
    strata = {name: ("abc"[k * k % 7 % 3], "xy"[k % 5 % 2]) for k, name in enumerate(groups)}
    assert make_split(groups, groups=groups, strata=strata, seed=5).hash == "5848845ee7c65747495e9c2342ce0e37"
    assert make_folds(groups, 3, groups=groups, strata=strata, seed=5)[1].hash == "a63586566de4f37e9d1a7dff3813124a"


def test_seeds_give_other_folds() -> None:
    names = draw_cohort(0).names
    assert len({fold.hash for seed in range(3) for fold in make_folds(names, 4, seed=seed)}) == 12


@pytest.mark.parametrize("k", [1, 4])
def test_folds_that_families_do_not_allow_are_refused(k: int) -> None:
    with pytest.raises(UsageError, match="2 to 3, the number of families"):
        make_folds("abcdef", k, groups=dict(zip("abcdef", "xxyyzz", strict=True)))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_validation_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="--val-fraction"):
        make_folds("abcdef", 2, val_fraction=fraction)


def test_too_few_subjects_for_a_part_are_refused() -> None:
    with pytest.raises(UsageError, match="1 subjects in 1 families remain"):
        make_folds("ab", 2, val_fraction=0.5)
    with pytest.raises(UsageError, match="val gets none"):
        make_split("ab")


@given(_cohorts())
@settings(max_examples=15, deadline=None)
def test_each_site_is_tested_once_and_training_never_saw_it(drawn: Any) -> None:
    seed, cohort = drawn
    assume(len(set(cohort.sites.values())) > 1)
    for site in set(cohort.sites.values()):
        assume(len({cohort.groups[name] for name in cohort.names if cohort.sites[name] != site}) > 3)
    options = {"groups": cohort.groups, "strata": cohort.strata, "val_fraction": 0.25, "seed": seed}
    splits = leave_each_site_out(cohort.names, cohort.sites, **options)
    assert sorted(name for split in splits.values() for name in split.test) == sorted(cohort.names)
    for site, split in splits.items():
        assert {cohort.sites[name] for name in split.test} == {site}
        assert site not in {cohort.sites[name] for name in (*split.train, *split.val)}
        assert split.part_of.keys() == set(cohort.names) and not crossing_groups(split, cohort.groups)


SITES = {"a": "leeds", "b": "leeds", "c": "york", "d": "york", "e": "bath", "f": "bath", "g": "bath", "i": "york"}


def test_relatives_of_the_tested_and_subjects_without_a_site_are_in_no_part(caplog) -> None:
    caplog.set_level("INFO")
    split = leave_sites_out("abcdefgh", SITES, ["leeds"], groups={"b": "x", "c": "x", "h": "x"}, val_fraction=0.3)
    assert split.test == ("a", "b")
    assert sorted([*split.train, *split.val]) == ["d", "e", "f", "g"]
    assert split.rule["left_out"] == {"site not known": 1, "relatives at the tested sites": 1}
    assert "1 subjects are in no part: relatives" in caplog.text and "site is not known" in caplog.text


def test_several_sites_are_left_out_together() -> None:
    split = leave_sites_out("abcdefg", SITES, ["york", "leeds"], val_fraction=0)
    assert (split.test, split.val, split.train) == (("a", "b", "c", "d"), (), ("e", "f", "g"))
    assert split.rule["sites"] == ["leeds", "york"]


def test_sites_that_cannot_be_left_out_are_refused() -> None:
    with pytest.raises(UsageError, match="--site hull: no subject is there; sites are bath, leeds, york"):
        leave_sites_out("abcdefg", SITES, ["hull", "york"])
    with pytest.raises(UsageError, match="at least 2"):
        leave_each_site_out("ab", SITES)
    with pytest.raises(UsageError, match="0 subjects in 0 families remain"):
        leave_sites_out("ab", SITES, ["leeds"])


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=80, unique=True), st.integers(2, 6), st.randoms())
@settings(max_examples=40, deadline=None)
def test_quantile_bins_are_even_ordered_and_independent_of_the_table(numbers: list, bins: int, shuffler: Any) -> None:
    values = {f"s{k}": repr(number) for k, number in enumerate(numbers)}
    cut = quantile_bins(values, bins, "age")
    sizes = Counter(cut.values())
    assert len(sizes) == bins and max(sizes.values()) - min(sizes.values()) <= 1
    assert all(cut[low] <= cut[high] for low, high in pairwise(sorted(values, key=lambda s: float(values[s]))))
    names = list(values)
    shuffler.shuffle(names)
    assert quantile_bins({name: values[name] for name in names}, bins, "age") == cut


def test_equal_numbers_share_a_bin_however_written() -> None:
    cut = quantile_bins({"a": "1", "b": "1.0", "c": "01", "d": "1e0", "e": "2"}, 4, "age")
    assert cut == dict.fromkeys("abcd", "Q2/4") | {"e": "Q4/4"}  # by the middle of the ranks that they share
    with pytest.raises(UsageError, match="2 values are no numbers, first that of subject b"):
        quantile_bins({"a": "1", "b": "young", "c": "inf"}, 2, "age")
    with pytest.raises(UsageError, match="at least 2 bins"):
        quantile_bins({"a": "1"}, 1, "age")


def _table(rows: Mapping[str, Sequence[str]], *columns: str) -> str:
    lines = ["\t".join(("participant_id", *columns))]
    return "\n".join([*lines, *("\t".join((f"sub-{name}", *values)) for name, values in rows.items())]) + "\n"


@pytest.fixture
def shard_set(tmp_path, make_shard_set) -> ShardSet:
    """24 subjects with an age each, two sites, and one missing diagnosis; a 25th row without a run."""
    names = [f"{k:02d}" for k in range(24)]
    rows = {n: (str(20 + k), ("x", "y")[k % 2], "case" if k else "n/a", f"{k // 2}") for k, n in enumerate(names)}
    rows["99"] = ("99", "x", "case", "12")
    make_shard_set(
        tmp_path, frames=[6] * 24, runs_per_shard=99, participants=_table(rows, "age", "site", "diagnosis", "code")
    )
    return ShardSet(tmp_path)


def test_columns_become_strata(shard_set: ShardSet, caplog) -> None:
    caplog.set_level("INFO")
    subjects = [entry.subject for entry in shard_set.runs]
    strata = read_strata(shard_set, ("site", "age", "diagnosis"), subjects)
    assert strata.words == "site, age in 4 quantile bins, diagnosis"
    assert strata.values["00"] == ("x", "Q1/4", "n/a") and strata.values["23"] == ("y", "Q4/4", "case")
    assert "99" not in strata.values and Counter(v[1] for v in strata.values.values())["Q4/4"] == 6
    assert "24 different numbers, cut into 4" in caplog.text and "1 of 24 subjects have no value" in caplog.text


def test_bins_can_be_asked_for_and_declined(shard_set: ShardSet) -> None:
    subjects = [entry.subject for entry in shard_set.runs]
    assert read_strata(shard_set, ["age:3"], subjects).words == "age in 3 quantile bins"
    assert len(set(read_strata(shard_set, ["age:each"], subjects).names.values())) == 24
    assert read_strata(shard_set, ["code"], subjects).words == "code"
    assert read_strata(shard_set, [], subjects).words is None


@pytest.mark.parametrize(
    ("columns", "why"),
    [(["sex"], "no column 'sex'"), (["age", "age:3"], "named twice"), (["site:3"], "are no numbers")],
)
def test_columns_that_cannot_be_strata(shard_set: ShardSet, columns: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_strata(shard_set, columns, ["00", "01"])


@pytest.mark.parametrize(
    ("columns", "expected"), [(("Family_ID", "Pedigree_ID"), "Pedigree_ID"), (("rel_family_id",), "rel_family_id")]
)
def test_the_family_column_is_found(tmp_path, make_shard_set, columns: tuple[str, ...], expected: str) -> None:
    make_shard_set(tmp_path, participants=_table({"00": "1" * len(columns)}, *columns))
    assert family_column(ShardSet(tmp_path)) == expected


def test_the_largest_deviation_is_read_from_the_counts() -> None:
    counts = {"train": {"a": 6, "b": 2, "c": 0}, "val": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1, "c": 4}}
    names = [f"{k:02d}" for k in range(16)]
    split = Split(
        train=tuple(names[:8]), val=tuple(names[8:10]), test=tuple(names[10:]), rule={}, seed=0, counts=counts
    )
    found = largest_deviation(split)
    assert (found.part, found.stratum, found.subjects) == ("test", "c", 2.5)
