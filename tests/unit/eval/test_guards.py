"""Leakage guards: an honest run passes, each leak is refused in a line, what cannot be known is not called passed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import write_run

from eval.config import PredictConfig
from eval.context import Context, open_context
from eval.guards import Check, leakage, refuse_leaks
from eval.lineage import ancestors
from eval.ranks import Ranks
from shards.errors import MismatchError
from shards.splits import Split, fixed_split, leave_sites_out, make_split

SUBJECTS = [f"{k:02d}" for k in range(24)]
FAMILIES = {subject: f"F{k // 2}" for k, subject in enumerate(SUBJECTS)}
SITES = {subject: ("leeds", "york", "bath")[k // 4 % 3] for k, subject in enumerate(SUBJECTS)}
FRACTIONS = (0.5, 0.2, 0.3)
FAMILY_CHECK = "No family is divided between parts"
SITE_CHECK = "Sites are divided only where the split means to"
CONTENT_CHECK = "No recording is in two parts under two names"
PRETRAINING = "Pre-training did not see the test subjects"
STATISTICS = "Target statistics come from the training subjects alone"


@pytest.fixture
def write_shards(make_shard_set: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a set of 24 subjects; `same` are pairs of subjects with the same recording."""

    def write(name: str = "set", *, same: Mapping[str, str] | None = None, without: str = "", seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        num_voxels = int((np.random.default_rng(11).random((7, 8, 6)) > 0.4).sum())
        signals = {s: (1000 + 20 * rng.standard_normal((12, num_voxels))).astype("f4") for s in SUBJECTS}
        for copy, source in (same or {}).items():
            signals[copy] = signals[source].copy()
        columns = {
            "group": {s: "ab"[k % 2] for k, s in enumerate(SUBJECTS)},
            "age": {s: str(20 + k) for k, s in enumerate(SUBJECTS)},
            "family": FAMILIES,
            "site": SITES,
        }
        columns.pop(without, None)
        lines = ["\t".join((f"sub-{s}", *(values[s] for values in columns.values()))) for s in SUBJECTS]
        table = "\t".join(("participant_id", *columns)) + "\n" + "\n".join(lines) + "\n"
        named = {f"sub-{s}_task-rest": signal for s, signal in signals.items()}
        make_shard_set(tmp_path / name, signals=named, participants=table, runs_per_shard=24)
        return tmp_path / name

    return write


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Context]]:
    contexts = []

    def make(run: Path, shards: Path) -> Context:
        contexts.append(open_context(PredictConfig(checkpoint=run, shards=str(shards), out=tmp_path / "out"), Ranks()))
        return contexts[-1].__enter__()

    yield make
    for context in contexts:
        context.__exit__(None, None, None)


def grouped(seed: int = 0) -> Split:
    return make_split(SUBJECTS, groups=FAMILIES, fractions=FRACTIONS, seed=seed, rule={"group": "family"})


def naive(seed: int = 0) -> Split:
    return make_split(SUBJECTS, fractions=FRACTIONS, seed=seed, rule={"group": None})


def by_name(context: Context) -> dict[str, Check]:
    return {check.name: check for check in leakage(context)}


def refused(context: Context) -> str:
    """The one line that refuses a context."""
    with pytest.raises(MismatchError) as error:
        refuse_leaks(context)
    text = str(error.value)
    assert "\n" not in text and text.startswith(f"{context.config.checkpoint}: leak: ")
    assert error.value.exit_code == 6
    return text


def test_an_honest_run_passes_everything_but_is_told_of_its_sites(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    first = write_run(tmp_path / "p1", shards, grouped(), phase=1)
    second = write_run(tmp_path / "p2", shards, grouped(), phase=2, init=first)
    context = opened(write_run(tmp_path / "p3", shards, grouped(), init=second), shards)
    checks = refuse_leaks(context)
    assert {check.name: check.passed for check in checks if check.passed is not True} == {SITE_CHECK: None}
    assert len(checks) == 8 and all(check.detail for check in checks)
    detail = by_name(context)[PRETRAINING].detail
    assert str(second) in detail and str(first) in detail


def test_relatives_in_two_parts_are_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    text = refused(opened(write_run(tmp_path / "p3", shards, naive()), shards))
    part_of = naive().part_of
    divided = sorted(
        {f for s, f in FAMILIES.items() for t, g in FAMILIES.items() if f == g and part_of[s] != part_of[t]}
    )
    assert f"{divided[0]} is divided" in text and f"and {len(divided) - 1} more groups" in text
    assert "--group family" in text


def test_without_a_family_column_nothing_is_claimed(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards(without="family")
    check = by_name(opened(write_run(tmp_path / "p3", shards, naive()), shards))[FAMILY_CHECK]
    assert check.passed is None and check.detail.startswith("unknown: ")


def test_a_subject_in_two_parts_is_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    context = opened(write_run(tmp_path / "p3", shards, grouped()), shards)
    split = context.split
    doubled = dataclasses.replace(split, train=(*split.train, split.test[0]))
    text = refused(dataclasses.replace(context, split=doubled))
    assert "1 of 24 subjects stand in more than one part" in text and split.test[0] in text


def test_a_site_that_was_left_out_is_in_test_alone(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    rule = {"group": "family", "site_column": "site"}
    split = leave_sites_out(SUBJECTS, SITES, ["york"], groups=FAMILIES, rule=rule)
    context = opened(write_run(tmp_path / "p3", shards, split), shards)
    check = by_name(context)[SITE_CHECK]
    assert check.passed is True and set(split.test) == {s for s in SUBJECTS if SITES[s] == "york"}
    leaky = dataclasses.replace(split, test=split.test[2:], train=(*split.train, *split.test[:2]))
    text = refused(dataclasses.replace(context, split=leaky))
    assert "the split's rule is leave-site-out, but york is divided" in text


@pytest.mark.parametrize(("held", "passed"), [(True, True), (False, False)])
def test_a_split_grouped_by_site_keeps_sites_whole(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path, held: bool, passed: bool
) -> None:
    shards = write_shards()
    parts = {"train": "leeds", "val": "york", "test": "bath"}
    lists = {part: [s for s in SUBJECTS if SITES[s] == site] for part, site in parts.items()}
    if not held:
        lists["test"], moved = lists["test"][2:], lists["test"][:2]  # a family, so that no other check fails
        lists["train"] += moved
    split = fixed_split(lists, SUBJECTS, rule={"group": "site"})
    checks = by_name(opened(write_run(tmp_path / "p3", shards, split), shards))
    assert checks[SITE_CHECK].passed is passed
    assert checks[FAMILY_CHECK].passed is True, "families are looked at whatever the split is grouped by"


def test_the_same_recording_under_two_names_is_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    split = grouped()
    shards = write_shards(same={split.test[1]: split.train[2]})
    text = refused(opened(write_run(tmp_path / "p3", shards, split), shards))
    assert f"sub-{split.test[1]}_task-rest (test) has the bytes of sub-{split.train[2]}_task-rest (train)" in text


def test_the_same_recording_within_a_part_is_no_leak(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    split = grouped()
    shards = write_shards(same={split.train[1]: split.train[2]})
    assert by_name(opened(write_run(tmp_path / "p3", shards, split), shards))[CONTENT_CHECK].passed is True


@pytest.mark.parametrize("depth", [1, 2])
def test_pretraining_on_test_subjects_is_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path, depth: int
) -> None:
    shards, split, other = write_shards(), grouped(), grouped(seed=1)
    seen = sorted({*other.train, *other.val} & set(split.test))
    run = write_run(tmp_path / "p1", shards, other, phase=1)
    if depth == 2:
        run = write_run(tmp_path / "p2", shards, split, phase=2, init=run)
    text = refused(opened(write_run(tmp_path / "p3", shards, split, init=run), shards))
    assert f"{tmp_path / 'p1'}, which" in text
    assert f"was pre-trained with {len(seen)} of {len(split.test)} test subjects: {seen[0]}" in text


def test_from_random_weights_there_is_no_pretraining(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    check = by_name(opened(write_run(tmp_path / "p3", shards, grouped()), shards))[PRETRAINING]
    assert check.passed is True and check.detail == "the run started from random weights"


def _gone(run: Path) -> None:
    shutil.rmtree(run)


def _trained_again(run: Path) -> None:
    edit(run / "model.json", weights_xxh3="0" * 32)


def _split_replaced(run: Path) -> None:
    (run / "split.json").write_text(grouped(seed=1).to_json())


def _config_damaged(run: Path) -> None:
    (run / "config.json").write_text("{")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_gone, "not there any more"),
        (_trained_again, "holds other weights now"),
        (_split_replaced, "is not the split that its weights were trained with"),
        (_config_damaged, "cannot be read"),
    ],
)
def test_pretraining_that_cannot_be_looked_at_is_unknown(
    write_shards: Callable[..., Path],
    opened: Callable[..., Context],
    tmp_path: Path,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    shards = write_shards()
    first = write_run(tmp_path / "p1", shards, grouped(), phase=1)
    second = write_run(tmp_path / "p2", shards, grouped(), phase=2, init=first)
    context = opened(write_run(tmp_path / "p3", shards, grouped(), init=second), shards)
    change(first)
    check = {check.name: check for check in refuse_leaks(context)}[PRETRAINING]
    assert check.passed is None
    assert check.detail.startswith(f"unknown: {first}, which the weights come from") and reason in check.detail


def test_pretraining_on_another_shard_set_is_unknown(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards, other = write_shards(), write_shards("other", seed=1)
    first = write_run(tmp_path / "p1", other, grouped(), phase=1)
    check = by_name(opened(write_run(tmp_path / "p3", shards, grouped(), init=first), shards))[PRETRAINING]
    assert check.passed is None and "was trained on another shard set" in check.detail


def test_the_runs_before_are_found_where_the_folder_was_moved_to(
    write_shards: Callable[..., Path], tmp_path: Path
) -> None:
    shards, study = write_shards(), tmp_path / "study"
    first = write_run(study / "earlier" / "p1", shards, grouped(), phase=1)
    second = write_run(study / "earlier" / "p2", shards, grouped(), phase=2, init=first)
    third = write_run(study / "runs" / "p3", shards, grouped(), init=second)
    edit(third / "config.json", init="earlier/p2")  # as typed in the folder of the study
    edit(second / "config.json", init="/scratch/gone/p1")  # by another machine's path
    moved = study.rename(tmp_path / "moved")
    config = json.loads((moved / "runs/p3/config.json").read_text())
    found = ancestors(moved / "runs/p3", config)
    assert [(run.folder, run.phase) for run in found] == [(moved / "earlier/p2", 2), (moved / "earlier/p1", 1)]
    assert all(run.split is not None and run.split.hash == grouped().hash for run in found)


def test_a_run_that_names_itself_ends_the_search(write_shards: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run(tmp_path / "p2", write_shards(), grouped(), phase=2)
    own = json.loads((run / "model.json").read_text())["weights_xxh3"]
    edit(run / "config.json", init=str(run), init_hash=own)
    (found,) = ancestors(run, json.loads((run / "config.json").read_text()))
    assert found.folder is None and "cannot have started from" in found.reason


def test_statistics_of_everyone_are_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards, split = write_shards(), grouped()
    ages = {s: 20.0 + k for k, s in enumerate(SUBJECTS)}
    everyone, train = list(ages.values()), [ages[s] for s in split.train]
    target = {"column": "age", "kind": "regression", "levels": []}
    leaky = target | {"mean": float(np.mean(everyone)), "std": float(np.std(everyone))}
    text = refused(opened(write_run(tmp_path / "leaky", shards, split, target=leaky), shards))
    assert "those of all subjects" in text
    assert f"the {len(train)} training subjects give mean {np.mean(train):.6g} and SD {np.std(train):.6g}" in text
    honest = target | {"mean": float(np.mean(train)), "std": float(np.std(train))}
    context = opened(write_run(tmp_path / "honest", shards, split, target=honest), shards)
    assert by_name(context)[STATISTICS].passed is True


def test_levels_that_training_did_not_have_are_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    target = {"column": "group", "kind": "multiclass", "levels": ["a", "b", "c"], "mean": None, "std": None}
    text = refused(opened(write_run(tmp_path / "p3", shards, grouped(), target=target), shards))
    assert "target.json has levels a, b, c; the 12 training subjects give levels a, b" in text


def test_a_split_hash_that_differs_is_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    run = write_run(tmp_path / "p3", shards, grouped(), split_hash="f" * 32)
    assert f"config.json has the split {'f' * 32}" in refused(opened(run, shards))


def test_another_shard_set_is_refused(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    shards = write_shards()
    context = opened(write_run(tmp_path / "p3", shards, grouped()), shards)
    text = refused(dataclasses.replace(context, run_config={**context.run_config, "set_hash": "e" * 32}))
    assert f"trained on the shard set {'e' * 32}" in text and "give the shard set of the training" in text


def test_several_leaks_are_counted(
    write_shards: Callable[..., Path], opened: Callable[..., Context], tmp_path: Path
) -> None:
    split = naive()
    shards = write_shards(same={split.test[1]: split.train[2]})
    assert "(1 more found)" in refused(opened(write_run(tmp_path / "p3", shards, split), shards))
