"""A run goes on with another number of ranks: the same windows in every step, and the losses of a run left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_training import ROOT, Trainings

NUM_STEPS = 6
SMALL = (
    f"--preset tiny --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2"
    " --window 10 --pca_frames 64 --val_runs 2 --log_every 1 --save_every 2 --val_every 3 --lr 0.005 --weight_decay 0.5"
).split()
PHASE_2 = ["--phase", "2", "--init", "none", "--split_fractions", "0.5", "0.25", "0.25"]
PHASE_3 = ["--phase", "3", "--init", "whole", "--target", "group", "--patience", "99"]
PHASE_3 += ["--sequence_lr_scale", "1", "--lr", "0.0002"]
# 12 windows a step of the 32 of an epoch: what is left of an epoch depends on how a step is cut, if it may
ONE = ["--batch_size", "12"]
ONE_IN_FOUR = ["--batch_size", "3", "--accumulation", "4"]
TWO = ["--batch_size", "6"]
TWO_IN_TWO = ["--batch_size", "3", "--accumulation", "2"]
# every rank notes which windows it was given in which step, and ends after a step's checkpoint
WATCH = """
import json, os, training.checkpoints.checkpoint, training.pretraining.task
turns, save = training.pretraining.task.Pretraining.turns, training.checkpoints.checkpoint.Checkpoints.save

def watched(self, forward, batches, step):
    def seen():
        for batch in batches:
            with open(f"{self.config.out}.windows", "a") as file:
                file.write(json.dumps([step + 1, batch.run.tolist(), batch.start.tolist()]) + "\\n")
            yield batch
    return turns(self, forward, seen(), step)

def stop(self, engine, step, *more):
    save(self, engine, step, *more)
    if step == STOP_AFTER:
        self.place.world_size > 1 and __import__("torch").distributed.barrier()
        os._exit(9)

training.pretraining.task.Pretraining.turns = watched
training.checkpoints.checkpoint.Checkpoints.save = stop
"""


def watch(stop_after: int | None = None) -> str:
    return WATCH.replace("STOP_AFTER", str(stop_after))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings(tmp_path_factory.mktemp("elastic")) as server:
        yield server


@pytest.fixture
def study(trainings: Trainings, make_shard_set: Callable[..., Any]) -> Trainings:
    """`shards`, a DeepSpeed configuration for each stage, and `whole`: phase 2 on one rank without interruption."""
    folder = trainings.folder
    if not (folder / "shards").exists():
        table = "participant_id\tgroup\n" + "".join(f"sub-{k:02d}\t{'ab'[k % 2]}\n" for k in range(16))
        make_shard_set(folder / "shards", frames=(40,) * 16, runs_per_shard=16, participants=table)
        for stage in range(4):
            values = json.loads((ROOT / "deepspeed_configs" / "zero0_fp32.json").read_text())
            values["zero_optimization"]["stage"] = stage
            (folder / f"zero{stage}.json").write_text(json.dumps(values))
        trainings.run("whole", [*SMALL, *PHASE_2, *ONE, "--out", "whole"], before=watch())
    return trainings


def flags(out: str, stage: int, *more: str) -> list[str]:
    return [*SMALL, *more, "--out", out, "--deepspeed_config", f"zero{stage}.json"]


def logged(folder: Path, event: str, name: str) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record[name] for record in records if record["event"] == event}


def windows(folder: Path, out: str) -> dict[int, list[tuple[int, int]]]:
    """Step to its windows (run, start), sorted."""
    found: dict[int, list[tuple[int, int]]] = {}
    for line in (folder / f"{out}.windows").read_text().splitlines():
        step, run, start = json.loads(line)
        found.setdefault(step, []).extend(zip(run, start, strict=True))
    return {step: sorted(found[step]) for step in sorted(found)}


def assert_same_curve(one: Path, other: Path, event: str, name: str) -> None:
    expected, found = logged(one, event, name), logged(other, event, name)
    assert list(found) == list(expected) and np.ptp(list(expected.values())) > 1e-3
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        (0, [(2, TWO), (1, ONE_IN_FOUR)]),
        (1, [(2, TWO), (1, ONE_IN_FOUR), (2, TWO_IN_TWO)]),
        (2, [(1, ONE), (2, TWO_IN_TWO)]),
        (3, [(2, TWO), (1, ONE_IN_FOUR), (2, TWO_IN_TWO)]),
    ],
)
def test_a_run_in_parts_on_one_and_two_ranks(study: Trainings, stage: int, parts: list[tuple[int, list[str]]]) -> None:
    out, told = f"zero{stage}", ""
    for number, (ranks, cut) in enumerate(parts, 1):
        last = number == len(parts)
        stop, code = (None, 0) if last else (2 * number, 9)
        told = study.run(out, flags(out, stage, *PHASE_2, *cut), ranks=ranks, expect=code, before=watch(stop))
    ranks_before, ranks_now = parts[-2][0], parts[-1][0]
    assert f"saved by {ranks_before} ranks, continued by {ranks_now}: the same windows" in told
    assert_same_curve(study.folder / "whole", study.folder / out, "train", "loss")
    assert_same_curve(study.folder / "whole", study.folder / out, "val", "mse")
    assert windows(study.folder, out) == windows(study.folder, "whole")
    assert all(len(set(found)) == 12 for found in windows(study.folder, "whole").values())
    assert not list((study.folder / out / "checkpoints").glob("partial-*"))


@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 3)])
def test_what_is_frozen_or_fitted_comes_along(study: Trainings, before: int, after: int) -> None:
    """The encoder has no optimizer state, nor have the probe's buffers."""
    if not (study.folder / "whole-3").exists():
        study.run("whole-3", [*SMALL, *PHASE_3, *ONE, "--out", "whole-3"])
    out = f"third-{before}"
    study.run(out, flags(out, before, *PHASE_3, *TWO), ranks=2, expect=9, before=watch(2))
    study.run(out, flags(out, after, *PHASE_3, *ONE))
    assert_same_curve(study.folder / "whole-3", study.folder / out, "train", "loss")
    assert_same_curve(study.folder / "whole-3", study.folder / out, "val", "score")


@pytest.mark.distributed
def test_what_would_be_another_run_is_refused(study: Trainings) -> None:
    refused = {
        "ranks * batch_size * accumulation): found 1 * 12 * 1 = 12, now 2 * 12 * 1 = 24": (2, 1, ONE),
        "ZeRO stage: found 1, now 3": (1, 3, ONE),
        "lr: found 0.005, now 0.01": (1, 1, [*ONE, "--lr", "0.01"]),
    }
    for told, (ranks, stage, more) in refused.items():
        line = study.run("refused", flags("whole", stage, *PHASE_2, *more), ranks=ranks, expect=6).splitlines()[-1]
        assert line.startswith("error: ") and told in line
