"""A run that was stopped and started again ends bit for bit where one that was left alone ends."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_training import Trainings

NUM_STEPS = 20
SMALL = (
    f"--preset tiny --shards shards --steps {NUM_STEPS} --latent 8 --channels 8 8 --width 16 --depth 1 --heads 2"
    " --window 10 --batch_size 4 --pca_frames 64 --val_runs 2 --log_every 1 --save_every 7 --val_every 5"
).split()
PHASE_1 = ["--phase", "1", "--split_fractions", "0.5", "0.25", "0.25"]
# everything that draws random numbers or moves between steps: dropout, both learning rates, the best so far
PHASE_3 = ["--phase", "3", "--init", "whole-1", "--target", "group", "--dropout", "0.2", "--patience", "99"]
PHASE_3 += ["--encoder_lr_scale", "1", "--sequence_lr_scale", "1", "--accumulation", "2"]
# a process that sends itself signals: SIGNAL while it is at PLACE, on the rank WHO
SIGNALS = """
import os, training.checkpoints.checkpoint, training.finetuning.task, training.pretraining.task, training.start

def send(place, times=1):
    if place == PLACE and os.environ["RANK"] == WHO:
        for _ in range(times):
            os.kill(os.getpid(), SIGNAL)

def at(module, name, place, times=1):
    real = getattr(module, name)
    def hooked(*args, **kwargs):
        send(place, times)
        found = real(*args, **kwargs)
        send(place, times)
        return found
    setattr(module, name, hooked)

at(training.start, "_prepare", "start")
at(training.checkpoints.checkpoint.Checkpoints, "save", "saving", times=3)
for task in (training.pretraining.task.Pretraining, training.finetuning.task.Finetuning):
    at(task, "validate", "validation")
    def turns(self, forward, batches, step, real=task.turns):
        for number, turn in enumerate(real(self, forward, batches, step)):
            if number == 0 and step in (3, 9, 15):
                send(f"step {step}")
            yield turn
    task.turns = turns
"""


def at(place: str, number: signal.Signals = signal.SIGTERM, rank: int = 0) -> str:
    found = SIGNALS.replace("PLACE", repr(place)).replace("SIGNAL)", f"{int(number)})")
    return found.replace("WHO", repr(str(rank)))


def curve(folder: Path) -> list[tuple]:
    """Every logged figure that does not depend on the clock."""
    names = ("event", "step", "loss", "grad_norm", "lr", "score", "mse", "latent_rank", "chosen_step", "best_score")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [tuple(record.get(name) for name in names) for record in records]


def losses(folder: Path) -> list[float]:
    return [line[2] for line in curve(folder) if line[0] == "train"]


def assert_same_run(one: Path, other: Path) -> None:
    assert len(losses(one)) == NUM_STEPS
    assert curve(one) == curve(other)
    for name in ("model.safetensors", "model.json", "split.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainings]:
    with Trainings(tmp_path_factory.mktemp("resume")) as server:
        yield server


@pytest.fixture
def study(trainings: Trainings, make_shard_set: Callable[..., Any]) -> Trainings:
    """`shards`, `changed`, and `whole-1`: phase 1 without interruption."""
    folder = trainings.folder
    if not (folder / "shards").exists():
        table = "participant_id\tgroup\n" + "".join(f"sub-{k:02d}\t{'ab'[k % 2]}\n" for k in range(16))
        make_shard_set(folder / "shards", frames=(40,) * 16, runs_per_shard=16, participants=table)
        make_shard_set(folder / "changed", frames=(40,) * 16, runs_per_shard=16, participants=table, seed=1)
        trainings.run("whole-1", [*SMALL, *PHASE_1, "--out", "whole-1"])
    return trainings


def damage(checkpoints: Path) -> None:
    """What crashes at the worst moments leave: a checkpoint half written, and one that is not yet named."""
    newest = checkpoints / (checkpoints / "latest").read_text().strip()
    for name in ("partial-step00000014", "step00000019"):
        shutil.copytree(newest, checkpoints / name)
        for path in (checkpoints / name).rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:100])


@pytest.mark.distributed
def test_phase_1_after_a_kill_and_among_broken_checkpoints(study: Trainings) -> None:
    arguments, folder = [*SMALL, *PHASE_1, "--out", "killed"], study.folder / "killed"
    study.run("killed", arguments, expect=-signal.SIGKILL, before=at("step 9", signal.SIGKILL))
    assert not (folder / "model.json").exists()
    damage(folder / "checkpoints")
    assert f"continuing after step 7 of {NUM_STEPS}" in study.run("killed", arguments)
    assert_same_run(study.folder / "whole-1", folder)
    assert not list((folder / "checkpoints").glob("*partial-*"))


@pytest.mark.distributed
def test_phase_3_stopped_wherever_a_signal_finds_it(study: Trainings) -> None:
    """At the start, between two batches of a step, in a validation, and by several signals while it saves."""
    study.run("whole-3", [*SMALL, *PHASE_3, "--out", "whole-3"])
    arguments, folder = [*SMALL, *PHASE_3, "--out", "stopped"], study.folder / "stopped"
    for place, step in (("start", 1), ("step 3", 4), ("validation", 6), ("saving", 8), ("step 15", 16)):
        told = study.run("stopped", arguments, expect=85, before=at(place))
        assert f"stopped by a signal after step {step}; the same command continues" in told, place
        assert not (folder / "model.json").exists()
    assert f"continuing after step 16 of {NUM_STEPS}" in study.run("stopped", arguments)
    assert_same_run(study.folder / "whole-3", folder)


@pytest.mark.distributed
def test_two_processes_of_which_one_gets_sigusr1(study: Trainings) -> None:
    arguments = [*SMALL, *PHASE_1, "--batch_size", "2", "--out", "two"]
    study.run("two", arguments, ranks=2, expect=85, before=at("step 9", signal.SIGUSR1, rank=1))
    assert "continuing after step 10" in study.run("two", arguments, ranks=2)
    one, two = study.folder / "whole-1", study.folder / "two"
    assert [line[:2] for line in curve(two)] == [line[:2] for line in curve(one)]
    assert losses(two) == pytest.approx(losses(one), rel=0, abs=1e-5)


@pytest.mark.distributed
def test_a_continuation_that_differs_is_refused_and_named(study: Trainings) -> None:
    whole = study.folder / "whole-1"
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    arguments = [*SMALL, *PHASE_1, "--out", "whole-1"]
    refused = {
        "seed: found 0, now 1": (6, ["--seed", "1"]),
        "inputs.set_hash: found": (6, ["--shards", "changed"]),
        "--resume auto": (5, ["--resume", "no"]),
    }
    for told, (code, more) in refused.items():
        line = study.run("refused", [*arguments, *more], expect=code).splitlines()[-1]
        assert line.startswith("error: ") and told in line
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


@pytest.mark.distributed
def test_the_last_weights_travel_from_phase_1_and_the_best_stay_in_its_folder(study: Trainings) -> None:
    import torch
    from safetensors.torch import load_file

    whole = study.folder / "whole-1"
    errors = {line[1]: line[6] for line in curve(whole) if line[0] == "val"}
    best = min(errors, key=errors.__getitem__)
    (file,) = (whole / "checkpoints").glob("best-*")
    assert file.name == f"best-step{best:08d}.safetensors"
    assert json.loads((whole / "model.json").read_text())["step"] == NUM_STEPS
    kept, last = (load_file(path)["encoder.stem.bias"] for path in (file, whole / "model.safetensors"))
    assert torch.equal(kept, last) == (best == NUM_STEPS)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(3000)
def test_a_signal_during_the_first_compilation(study: Trainings) -> None:
    compiled = [*SMALL, *PHASE_1, "--compile"]
    study.run("compiled", [*compiled, "--out", "compiled"], limit_s=900)
    hooks = at("compiling") + 'import torch._inductor.compile_fx as c\nat(c, "compile_fx", "compiling")\n'
    hooks += 'at(c, "compile_fx_inner", "compiling")\n'
    told = study.run("signalled", [*compiled, "--out", "signalled"], expect=85, before=hooks, limit_s=900)
    assert "stopped by a signal after step 1;" in told
    study.run("signalled", [*compiled, "--out", "signalled"], limit_s=900)
    assert_same_run(study.folder / "compiled", study.folder / "signalled")
