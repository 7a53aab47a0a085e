"""The stage `explain`: done once, going on where it was cut, and honest about what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from finished_run import write_run
from numpy.typing import NDArray

from eval.config import ExplainConfig
from eval.context import Context, open_context
from eval.explain import gradients
from eval.explain.choice import choose_subjects, spread
from eval.explain.explanation import GROUP, IMPORTANCE, Explanation
from eval.explain.section import section
from eval.explain.stage import explain
from eval.ranks import Ranks
from shards.errors import OutputError, UsageError
from shards.splits import make_split

SUBJECTS = [f"{k:02d}" for k in range(24)]
COLUMNS: dict[str, Callable[[int], str]] = {
    "group": lambda k: ("control", "patient")[k % 2],
    "task": lambda k: ("rest", "n back", "n/back")[k % 3],
    "age": lambda k: f"{30.1 + 3 * k}",
}


@pytest.fixture
def opened(make_shard_set: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Return a context manager: a finished run of a target, opened."""
    lines = ["\t".join(["participant_id", *COLUMNS])]
    lines += ["\t".join([f"sub-{s}", *(of(k) for of in COLUMNS.values())]) for k, s in enumerate(SUBJECTS)]
    rng = np.random.default_rng(3)
    voxels = int((np.random.default_rng(11).random((7, 8, 6)) > 0.4).sum())
    frames = {f"sub-{s}_task-rest": 56 - 2 * k for k, s in enumerate(SUBJECTS)}
    signals = {name: (1000 + 20 * rng.standard_normal((n, voxels))).astype("f4") for name, n in frames.items()}
    make_shard_set(tmp_path / "set", signals=signals, participants="\n".join(lines) + "\n", runs_per_shard=16)
    split = make_split(SUBJECTS, fractions=(0.4, 0.1, 0.5), seed=1)

    @contextmanager
    def open_run(column: str = "group", out: str = "out") -> Iterator[Context]:
        folder = tmp_path / f"run-{column}"
        if not folder.exists():
            write_run(folder, tmp_path / "set", split, column=column, window="16")
        config = ExplainConfig(checkpoint=folder, shards=str(tmp_path / "set"), out=tmp_path / out)
        with open_context(config, Ranks()) as context:
            yield context

    return open_run


def run(context: Context, subjects: int = 6) -> Explanation:
    return explain(context, subjects=subjects, windows=2, steps=4, noise_samples=1)


@pytest.mark.parametrize("column", ["group", "task", "age"])
def test_every_kind_of_target_has_its_maps_and_its_section(opened: Any, column: str) -> None:
    with opened(column) as context:
        found = run(context)
        names = [subject.subject for subject in found.subjects]
        assert names == sorted(names)
        assert set(names) <= set(context.split.test)
        change = np.array([(each.change, each.attributed) for each in found.subjects])
    np.testing.assert_allclose(change[:, 1], change[:, 0], rtol=0.1, atol=0.1 * np.abs(change).mean())
    assert sum(name.startswith("attribution_class-") for name in found.files) == len(found.target.levels)
    group = nibabel.load(found.folder / GROUP)
    np.testing.assert_array_equal(group.affine, found.affine)
    np.testing.assert_allclose(np.asarray(group.dataobj)[found.mask], found.group_V, rtol=1e-5, atol=1e-8)
    assert (np.asarray(nibabel.load(found.folder / IMPORTANCE).dataobj) >= 0).all()
    shown = section(found)
    assert len(shown.drawings) == 4
    assert all(drawing.uri.startswith("data:image/svg+xml") for drawing in shown.drawings)
    assert all(len(row) == len(table.columns) for table in shown.tables for row in table.rows)
    assert all((context.config.out / name).is_file() for name in shown.files)


def test_the_map_of_the_group_adds_up_to_the_mean_margin_of_the_classes(opened: Any) -> None:
    with opened() as context:
        found = run(context)
    y = np.array([each.y_true for each in found.subjects])
    attributed = np.array([each.attributed for each in found.subjects])
    np.testing.assert_allclose(found.group_V.sum(), np.mean([attributed[y == k].mean() for k in (0, 1)]), rtol=1e-4)
    flagged = [each.correct for each in found.subjects]
    assert flagged == [each.margin > 0 for each in found.subjects]


def test_a_call_that_was_cut_goes_on_to_the_same_bytes(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls, last = gradients.attribute, [0], [10**6]

    def counted(*args: Any, **kwargs: Any) -> Any:
        if calls[0] == last[0]:
            raise OutputError("the disk is full")
        calls[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(gradients, "attribute", counted)
    with opened() as context:
        whole = {path.name: path.read_bytes() for path in run(context).folder.iterdir()}
        needed = calls[0]
        run(context)
    assert calls[0] == needed  # what is done is read
    with opened(out="other") as context:
        calls[0], last[0] = 0, needed // 2
        with pytest.raises(OutputError, match="the disk is full"):
            run(context)
        calls[0], last[0] = 0, 10**6
        again = run(context)
    assert calls[0] < 0.6 * needed
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == whole


def test_subjects_of_one_value_are_refused_in_one_line(opened: Any) -> None:
    with opened() as context, pytest.raises(UsageError, match=r"--subjects 1: .*--skip explain") as told:
        run(context, subjects=1)
    assert "\n" not in str(told.value)


def test_classes_are_chosen_alike_and_families_once() -> None:
    values = {f"{k:02d}": float(k < 4) for k in range(20)}
    families = {name: f"fam{int(name) // 2}" for name in values}
    chosen = choose_subjects(values, families, 4, classes=True, seed=0)
    assert sorted(values[name] for name in chosen) == [0, 0, 1, 1]
    assert len({families[name] for name in chosen}) == 4
    assert set(choose_subjects(values, families, 99, classes=True, seed=0)) == set(values)
    assert chosen == choose_subjects(dict(reversed(values.items())), families, 4, classes=True, seed=0)


def test_a_measure_is_chosen_over_its_range() -> None:
    values = {f"{k:02d}": float(k) for k in range(40)}
    assert choose_subjects(values, {}, 4, classes=False, seed=0) == ("05", "15", "25", "35")


def test_places_are_spread_and_never_twice() -> None:
    assert spread(6, 2) == [1, 4]
    assert spread(3, 9) == [0, 1, 2]
    assert spread(0, 3) == []


def test_shorter_runs_are_one_window(opened: Any, mask: NDArray[np.bool_]) -> None:
    from eval.explain.choice import read_windows

    with opened() as context:
        windows = read_windows(context, SUBJECTS[-1], 3)
        assert [(each.start, each.residual_LV.shape) for each in windows] == [(0, (10, int(mask.sum())))]
        expected = context.shard_set.residual(windows[0].run, 0, 10)
    np.testing.assert_array_equal(windows[0].residual_LV, expected)
