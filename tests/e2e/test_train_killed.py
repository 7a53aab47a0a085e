"""kill -9 at any moment of saving a checkpoint: the run goes on and ends bit for bit where it would have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_training import Trainings

NUM_STEPS = 20
ARGUMENTS = (
    f"--preset tiny --phase 2 --init none --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16"
    " --depth 1 --heads 2 --dropout 0.2 --window 10 --batch_size 4 --val_runs 2 --log_every 1 --save_every 2"
    " --val_every 4 --keep_checkpoints 2 --split_fractions 0.5 0.25 0.25"
).split()
# counts what a process does to the file system in a part of its savings (while files are written under a temporary
# name, or while they are published and old ones removed); dies before the n-th, or with a file half written
MOMENTS = """
import os, signal, torch, training.checkpoints.checkpoint
count, part = [0], [None]

def moment(half=None):
    if part[0] == PART and os.environ["RANK"] == DOOMED:
        count[0] += 1
        if count[0] == DIE_AT:
            half and half()
            os.kill(os.getpid(), signal.SIGKILL)

def before(module, name):
    real = getattr(module, name)
    def hooked(*args, **kwargs):
        moment()
        return real(*args, **kwargs)
    setattr(module, name, hooked)

for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
    before(os, name)
real_save = torch.save
def save_tensors(values, path, *args, **kwargs):
    if not isinstance(path, (str, os.PathLike)):
        return real_save(values, path, *args, **kwargs)  # into memory, to be sent to another rank
    moment()
    real_save(values, path, *args, **kwargs)
    moment(lambda: os.truncate(path, os.path.getsize(path) // 2))
torch.save = save_tensors
def during(name, now):
    real = getattr(training.checkpoints.checkpoint.Checkpoints, name)
    def hooked(*args, **kwargs):
        before, part[0] = part[0], now
        found = real(*args, **kwargs)
        part[0] = before
        if name == "_publish":
            with open("moments.txt", "a") as file:
                file.write(f"{count[0]} ")
        return found
    setattr(training.checkpoints.checkpoint.Checkpoints, name, hooked)

during("save", "writing")
during("_publish", "publishing")
"""


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings(tmp_path_factory.mktemp("killed")) as server:
        yield server


@pytest.fixture
def study(trainings: Trainings, make_shard_set: Callable[..., Any]) -> Trainings:
    """`shards`, `whole`: a run without interruption, and how many moments each of its savings had."""
    if not (trainings.folder / "shards").exists():
        make_shard_set(trainings.folder / "shards", frames=(40,) * 16, runs_per_shard=16)
        trainings.run("whole", [*ARGUMENTS, "--out", "whole"], before=die("publishing", -1))
        (trainings.folder / "moments.txt").rename(trainings.folder / "whole-moments.txt")
    return trainings


def die(part: str, moment: int, rank: int = 0) -> str:
    return MOMENTS.replace("PART", repr(part)).replace("DIE_AT", str(moment)).replace("DOOMED", repr(str(rank)))


def curve(folder: Path) -> list[tuple]:
    names = ("event", "step", "loss", "grad_norm", "lr", "mse", "chosen_step", "best_step")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [tuple(record.get(name) for name in names) for record in records]


def kill_and_go_on(study: Trainings, out: str, moments: list[tuple[str, int]]) -> None:
    """One run, killed again and again, each time at another moment of its savings."""
    arguments = [*ARGUMENTS, "--out", out]
    for part, moment in moments:
        study.run(out, arguments, expect=-9, before=die(part, moment))
    study.run(out, arguments)
    assert_same_run(study, out, "whole")


def assert_same_run(study: Trainings, one: str, other: str) -> None:
    """Two runs ended with the same bytes, after the same losses, with the same checkpoints."""
    killed, whole = study.folder / one, study.folder / other
    assert curve(killed) == curve(whole)
    for name in ("model.safetensors", "model.json", "split.json", "config.json"):
        told = (killed / name).read_bytes().replace(one.encode(), other.encode())
        assert told == (whole / name).read_bytes(), name
    left = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (killed, whole)]
    assert left[0] == left[1] and {"latest", "step00000018", "step00000020"} <= set(left[0])


def publications(study: Trainings) -> tuple[int, int]:
    """Moments of the publication of a first checkpoint, and of a third, which also removes the first."""
    ends = [int(text) for text in (study.folder / "whole-moments.txt").read_text().split()]
    assert len(ends) == NUM_STEPS // 2
    first, third = ends[0], ends[2] - ends[1]
    assert 6 < first < third
    return first, third


@pytest.mark.distributed
def test_all_through_the_publication_of_a_checkpoint(study: Trainings) -> None:
    first, third = publications(study)
    moments = [("writing", 2), ("writing", 9), *(("publishing", k) for k in range(1, first + 1))]
    kill_and_go_on(study, "killed", [*moments, *(("publishing", k) for k in range(first + 1, third + 1, 4))])


@pytest.mark.distributed
def test_of_two_ranks_one_dies(study: Trainings) -> None:
    arguments = [*ARGUMENTS, "--batch_size", "2", "--out"]
    study.run("both", [*arguments, "both"], ranks=2)
    for part, moment, rank in (("writing", 1, 1), ("writing", 2, 1), ("writing", 3, 0), ("publishing", 5, 0)):
        codes = [-9, 1] if rank == 0 else [1, -9]
        study.run("either", [*arguments, "either"], ranks=2, expect=codes, before=die(part, moment, rank))
        assert "another rank has ended" in (study.folder / f"either.{1 - rank}.txt").read_text()
    study.run("either", [*arguments, "either"], ranks=2)
    assert_same_run(study, "either", "both")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(3000)
def test_sixty_moments(study: Trainings) -> None:
    _, third = publications(study)
    rng = np.random.default_rng(0)
    for k in range(6):  # some of ten advance the run by a save of its ten
        moments = [("writing", int(n)) for n in rng.integers(1, 15, 4)]
        moments += [("publishing", int(n)) for n in rng.integers(1, third, 6)]
        kill_and_go_on(study, f"killed-{k}", [moments[n] for n in rng.permutation(10)])
