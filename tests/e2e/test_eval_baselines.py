"""Voxels to label through the real commands: each planted effect is found by the baseline that can see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.baselines import stage
from eval.baselines.protocol import Fitted, NotAvailable
from eval.baselines.simple import Confounds, Majority
from eval.baselines.stage import fit_baselines, section
from eval.cohort import open_cohort
from eval.config import CommonConfig
from eval.context import Context
from eval.ranks import Ranks
from eval.scoring.metrics import score
from eval.subjects import Scored
from eval.targets import Target
from ingest.cli import main as ingest
from ingest.simulate.cli import main as simulate
from shards.errors import UsageError
from shards.reader import ShardSet
from shards.splits import make_split
from shards.verify import verify_set

GROUP = Target(column="group", kind="binary", levels=("control", "patient"), mean=float("nan"), std=float("nan"))
LINEAR = ("mean_image", "alff", "fc", "fc_krr", "fc_tangent")


def _cohort(folder: Path, subjects: int, *effects: str) -> Path:
    size = ["--subjects", str(subjects), "--voxel-mm", "10", "--frames", "80", "--workers", "1"]
    assert simulate(["--out", str(folder / "bids"), *size, *effects]) == 0
    assert ingest(["--src", str(folder / "bids"), "--out", str(folder / "shards"), "--workers", "1"]) == 0
    return folder


@contextmanager
def _context(folder: Path, out: str = "out", **options: Any) -> Iterator[Context]:
    """The context of a run on that cohort whose network nobody asks for."""
    with ShardSet(folder / "shards") as shard_set:
        values = GROUP.encode(shard_set.phenotype("group"))
        strata = {subject: (str(value),) for subject, value in values.items()}
        families = shard_set.phenotype("family")
        yield Context(
            config=CommonConfig(
                checkpoint=folder / "p3", shards=str(folder / "shards"), out=folder / out, threads=1, **options
            ),
            run_config={"window": "20"},
            model=None,  # type: ignore[arg-type]
            weights_hash="0",
            split=make_split(values, groups=families, strata=strata, fractions=(0.5, 0.1, 0.4)),
            target=GROUP,
            cohort=open_cohort(shard_set, "group"),
            shard_set=shard_set,
            values=values,
            ranks=Ranks(),
        )


def _auroc(found: Scored) -> float:
    return score(found.predictions.y_true, found.predictions.output, "binary")["auroc"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort whose classes differ in connectivity."""
    return _cohort(tmp_path_factory.mktemp("small"), 40, "--effect-fc", "0.8")


@pytest.mark.parametrize(
    ("effects", "seen_by", "unseen_by"),
    [
        (["--effect-fc", "0.8"], ["fc", "fc_krr", "fc_tangent"], ["mean_image"]),
        (["--effect-fc", "0", "--effect-anatomy", "0.2"], ["mean_image"], ["fc", "fc_krr", "fc_tangent"]),
        (["--effect-fc", "0", "--effect-dynamics", "0.6"], [], ["fc", "fc_krr", "fc_tangent", "mean_image", "alff"]),
    ],
    ids=["connectivity", "anatomy", "dynamics"],
)
def test_each_effect_is_seen_by_its_baseline(
    tmp_path: Path, effects: list[str], seen_by: list[str], unseen_by: list[str]
) -> None:
    folder = _cohort(tmp_path, 80, *effects)
    with _context(folder) as context:
        found = fit_baselines(context, folder / "bids/atlas-boldstream_dseg.nii.gz", LINEAR)
    aurocs = {each.model.key: _auroc(each) for each in found}
    assert all(aurocs[key] > 0.85 for key in seen_by), aurocs
    assert all(aurocs[key] < 0.75 for key in unseen_by), aurocs


def test_the_stage_says_what_it_did(small: Path) -> None:
    with _context(small) as context:
        found = fit_baselines(context, None, ("fc", "majority"))
        test, fitted = context.subjects("test"), (*context.subjects("train"), *context.subjects("val"))
        truth = context.values
    assert [each.model.key for each in found] == ["majority", "fc"], "from the weakest"
    assert all(each.model.role == "baseline" and each.predictions.subjects == test for each in found)
    assert found[0].held_out is None and found[1].held_out is not None
    assert set(found[1].held_out.subjects) <= set(fitted)
    assert [truth[who] for who in found[1].held_out.subjects] == found[1].held_out.y_true.tolist()
    record = json.loads((small / "out/baselines/stage.json").read_text())
    assert record["facts"]["subjects"] == {
        "train": len([s for s in fitted if s in context.subjects("train")]),
        "val": len(context.subjects("val")),
        "scored": len(test),
    }
    lines = (small / "out/baselines/predictions.tsv").read_text().splitlines()
    assert lines[0] == "model\tpart\tsubject\ty_true\tlogit_patient"
    assert len(lines) == 1 + 2 * len(test) + len(found[1].held_out.subjects)
    row = next(line.split("\t") for line in lines if line.startswith(f"fc\ttest\t{test[0]}\t"))
    assert float(row[4]) == pytest.approx(found[1].predictions.output[0, 0], rel=1e-6)


def test_a_stage_that_is_done_is_read(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _context(small, "done") as context:
        first = fit_baselines(context, None, ("confounds", "fc"))
        monkeypatch.setattr(stage, "_part", None)
        again = fit_baselines(context, None, ("fc", "confounds"))
    for one, other in zip(first, again, strict=True):
        assert one.model == other.model and one.predictions.subjects == other.predictions.subjects
        assert np.array_equal(one.predictions.output, other.predictions.output)
        assert one.held_out is not None and other.held_out is not None
        assert np.array_equal(one.held_out.output, other.held_out.output)


def test_a_stage_that_was_stopped_goes_on(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = []

    def once(self: Confounds, problem: Any) -> Fitted:
        fitted.append("confounds")
        if fitted[0] != "second call":
            raise KeyboardInterrupt
        return Majority("binary").fit(problem)

    plain = Majority.fit
    monkeypatch.setattr(Majority, "fit", lambda self, problem: (fitted.append("majority"), plain(self, problem))[1])
    monkeypatch.setattr(Confounds, "fit", once)
    with _context(small, "stopped") as context:
        with pytest.raises(KeyboardInterrupt):
            fit_baselines(context, None, ("majority", "confounds"))
        assert fitted == ["majority", "confounds"]
        fitted[:] = ["second call"]
        assert len(fit_baselines(context, None, ("majority", "confounds"))) == 2
    assert fitted == ["second call", "confounds", "majority"], "the last is what confounds became here"


def test_validation_subjects_that_are_scored_are_not_fitted_on(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    plain = Majority.fit
    monkeypatch.setattr(
        Majority,
        "fit",
        lambda self, problem: (seen.append((set(problem.y_fit), set(problem.y_val))), plain(self, problem))[1],
    )
    with _context(small, "val", subset="val") as context:
        (found,) = fit_baselines(context, None, ("majority",))
        assert found.predictions.subjects == context.subjects("val") and found.predictions.subset == "val"
        assert seen == [(set(context.subjects("train")), set())]
    with _context(small, "test") as context:
        fit_baselines(context, None, ("majority",))
        assert seen[1] == ({*context.subjects("train"), *context.subjects("val")}, set(context.subjects("val")))
        assert not seen[1][0] & set(context.subjects("test"))


def test_what_cannot_be_fitted_is_left_out_by_name(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Confounds, problem: Any) -> Fitted:
        raise NotAvailable("no such package here")

    monkeypatch.setattr(Confounds, "fit", refuse)
    with _context(small, "left") as context:
        (found,) = fit_baselines(context, None, ("majority", "confounds"))
        shown = section(context)
    assert found.model.key == "majority"
    assert shown is not None and shown.tables[0].rows == (("Confounds only", "no such package here"),)


def test_nothing_left_out_makes_no_section(small: Path) -> None:
    with _context(small, "whole") as context:
        assert section(context) is None, "before the stage has run"
        fit_baselines(context, None, ("majority",))
        assert section(context) is None


def test_an_unknown_baseline_lists_those_there_are(small: Path) -> None:
    with _context(small, "unknown") as context, pytest.raises(UsageError, match=r"--models fcc: .*majority, confounds"):
        fit_baselines(context, None, ("fc", "fcc"))


def test_one_class_to_fit_on_is_refused(small: Path) -> None:
    with _context(small, "one") as context:
        same = dict.fromkeys(context.values, 1.0)
        alike = Context(**{field: getattr(context, field) for field in Context.__dataclass_fields__} | {"values": same})
        with pytest.raises(UsageError, match="all of one class"):
            fit_baselines(alike, None, ("fc",))


def test_ingest_and_its_check_leave_what_is_kept_alone(small: Path) -> None:
    with _context(small, "kept") as context:
        fit_baselines(context, None, ("fc",))
    (kept,) = (small / "shards").glob("parcels-*")
    before = {path: path.read_bytes() for path in kept.iterdir()}
    assert ingest(["--src", str(small / "bids"), "--out", str(small / "shards"), "--workers", "1"]) == 0
    assert not verify_set(str(small / "shards")).findings
    assert {path: path.read_bytes() for path in kept.iterdir()} == before
