"""`eval-fmri predict` on one process or several, killed and gone on with: the same predictions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import write_run

from eval.cli import main
from shards.splits import make_split

SUBJECTS = [f"{k:02d}" for k in range(40)]
# the command; a rank that is told to ends itself, as the out-of-memory killer would, before its n-th part
COMMAND = """
import os, signal, sys
import training.predict as training_predict
from eval.cli import main

real, left = training_predict.predict_windows, [int(os.environ.get("PARTS_TO_LIVE", "1000000"))]

def predict_windows(*arguments):
    if left[0] == 0 and os.environ.get("RANK", "0") == os.environ["DOOMED"]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return real(*arguments)

if "DOOMED" in os.environ:
    training_predict.predict_windows = predict_windows
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A run to evaluate, and a folder for what is written."""

    folder: Path
    run: Path
    shards: Path

    def arguments(self, out: str) -> list[str]:
        """Of `eval-fmri predict`."""
        return ["predict", "--checkpoint", str(self.run), "--shards", str(self.shards), "--out", str(self.folder / out)]

    def call(self, out: str, *, ranks: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command in processes of its own: plain, or `ranks` of them under torchrun."""
        script = self.folder / "command.py"
        script.write_text(COMMAND)
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | environment
        command = [sys.executable, *launcher, str(script), *self.arguments(out)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)

    def files(self, out: str) -> dict[str, bytes]:
        """What the stage wrote, beside its record."""
        found = (self.folder / out / "predictions").iterdir()
        return {path.name: path.read_bytes() for path in found if path.name != "stage.json"}


@pytest.fixture
def study(make_shard_set: Callable[..., Any], tmp_path: Path) -> Study:
    rng = np.random.default_rng(5)
    num_voxels = int((np.random.default_rng(11).random((7, 8, 6)) > 0.4).sum())
    signals = {
        f"sub-{s}_task-rest": (1000 + 20 * rng.standard_normal((25 + k, num_voxels))).astype("f4")
        for k, s in enumerate(SUBJECTS)
    }
    lines = [f"sub-{s}\t{'ab'[k % 2]}\tF{k // 2}" for k, s in enumerate(SUBJECTS)]
    table = "participant_id\tgroup\tfamily\n" + "\n".join(lines) + "\n"
    shards = tmp_path / "set"
    make_shard_set(shards, signals=signals, participants=table, runs_per_shard=8)
    families = {s: f"F{k // 2}" for k, s in enumerate(SUBJECTS)}
    split = make_split(SUBJECTS, groups=families, fractions=(0.4, 0.2, 0.4), seed=0, rule={"group": "family"})
    return Study(folder=tmp_path, run=write_run(tmp_path / "p3", shards, split), shards=shards)


def leaky(study: Study) -> Study:
    """The same, with a run that was trained on relatives of test subjects."""
    split = make_split(SUBJECTS, fractions=(0.4, 0.2, 0.4), seed=0, rule={"group": None})
    return Study(folder=study.folder, run=write_run(study.folder / "leaky", study.shards, split), shards=study.shards)


@pytest.mark.distributed
def test_killed_alone_and_finished_by_two_equals_one_process(study: Study) -> None:
    assert main(study.arguments("one")) == 0
    whole = study.files("one")
    assert whole.keys() == {"windows.npz", "predictions.tsv"}

    killed = study.call("two", DOOMED="0", PARTS_TO_LIVE="5")
    assert killed.returncode == -signal.SIGKILL
    assert len(list((study.folder / "two/predictions").glob("parts-*/*.npz"))) == 5
    assert not (study.folder / "two/predictions/stage.json").exists()

    # of 12 parts rank 0 has every other one, three of which are there: it would not live through all six
    resumed = study.call("two", ranks=2, DOOMED="0", PARTS_TO_LIVE="5")
    assert resumed.returncode == 0, resumed.stderr
    assert study.files("two") == whole


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_is_killed_ends_the_command_and_one_process_finishes(study: Study) -> None:
    assert main(study.arguments("one")) == 0
    killed = study.call("two", ranks=2, DOOMED="1", PARTS_TO_LIVE="2")
    assert killed.returncode != 0
    assert list((study.folder / "two/predictions").glob("parts-*/*.npz"))
    assert main(study.arguments("two")) == 0
    assert study.files("two") == study.files("one")


def test_a_leak_is_refused_in_a_line(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(leaky(study).arguments("out")) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "leak: " in line and "is divided" in line and "--group family" in line
    assert not (study.folder / "out").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_refuse_a_leak_in_one_line(study: Study) -> None:
    found = leaky(study).call("out", ranks=2)
    assert found.returncode != 0
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error")]
    assert "leak: " in line and "eval/cli.py" not in found.stderr
