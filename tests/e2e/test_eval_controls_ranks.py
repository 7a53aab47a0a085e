"""Controls, fingerprint and confounding on one process or two: the same results, on every rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import write_run

from shards.splits import make_split

SUBJECTS = [f"{k:02d}" for k in range(30)]
COMMAND = """
import sys
from pathlib import Path

from eval.config import PredictConfig
from eval.context import open_context
from eval.controls.confounding import confounding
from eval.controls.fingerprint import fingerprint
from eval.controls.probes import probe_controls
from eval.prediction.predict import predict_ours
from eval.ranks import join

run, shards, out = sys.argv[1:]
config = PredictConfig(checkpoint=Path(run), shards=shards, out=Path(out))
ranks = join()
with open_context(config, ranks) as context:
    scored = [*probe_controls(context), predict_ours(context)]
    found = [repr([each.predictions.output.tolist() for each in scored]), repr(fingerprint(context).rows)]
    found.append(repr(confounding(context, scored, num_resamples=100)))
    assert ranks.gather(found) == [found] * ranks.world_size
"""


@pytest.mark.distributed
def test_two_processes_equal_one(make_shard_set: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    num_voxels = int((np.random.default_rng(11).random((7, 8, 6)) > 0.4).sum())
    signals = {
        f"sub-{s}_task-rest": (1000 + 20 * rng.standard_normal((61 + k, num_voxels))).astype("f4")
        for k, s in enumerate(SUBJECTS)
    }
    table = "participant_id\tgroup\tsite\n" + "".join(
        f"sub-{s}\t{'ab'[k % 2]}\t{'xy'[k // 2 % 2]}\n" for k, s in enumerate(SUBJECTS)
    )
    make_shard_set(tmp_path / "set", signals=signals, participants=table, runs_per_shard=8)
    run = write_run(tmp_path / "p3", tmp_path / "set", make_split(SUBJECTS, fractions=(0.5, 0.2, 0.3), seed=0))
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for ranks in (1, 2):
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [
            sys.executable,
            *launcher,
            str(script),
            str(run),
            str(tmp_path / "set"),
            str(tmp_path / f"out{ranks}"),
        ]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
    for stage in ("controls", "fingerprint", "confounding"):
        one, two = (json.loads((tmp_path / f"out{n}" / stage / "stage.json").read_text()) for n in (1, 2))
        assert one["inputs"] == two["inputs"]
        assert one["files"] == two["files"]
        assert one["facts"] == two["facts"]
