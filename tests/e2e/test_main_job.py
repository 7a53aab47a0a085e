"""The main job as a stranger runs it: simulate, ingest, three phases under three launchers, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "train.py")
SMALL = ["--preset", "tiny", "--shards", "shards", "--latent", "16", "--val_runs", "4", "--pca_frames", "512"]
LAUNCHERS = {
    "python": [sys.executable, TRAIN],
    "deepspeed": ["deepspeed", "--num_accelerators", "2", TRAIN],
    "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2", TRAIN],
}


def run(folder: Path, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder with this interpreter's scripts on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


SHORT_REPORT = ["--bootstrap", "500", "--models", "majority", "confounds", "mean_image", "fc"]
SHORT_REPORT += ["--explain-subjects", "2", "--explain-windows", "1"]
"""All stages, but the quick baselines and few maps."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole job has run once, each phase under another launcher."""
    folder = tmp_path_factory.mktemp("job")
    run(
        folder,
        "simulate-fmri",
        "--out",
        "cohort",
        "--subjects",
        "80",
        "--frames",
        "100",
        "--voxel-mm",
        "8",
        "--seed",
        "3",
    )
    run(folder, "ingest-fmri", "--src", "cohort", "--out", "shards", "--workers", "2", "--shard-size", "8MB")
    split = ["--split_stratify", "group", "site", "--split_fractions", "0.6", "0.15", "0.25"]
    run(folder, *LAUNCHERS["deepspeed"], "--phase", "1", "--out", "p1", "--steps", "20", *split, *SMALL)
    run(folder, *LAUNCHERS["torchrun"], "--phase", "2", "--out", "p2", "--init", "p1", "--steps", "12", *SMALL)
    run(folder, *LAUNCHERS["python"], "--phase", "3", "--out", "p3", "--init", "p2", "--target", "group", *SMALL)
    run(
        folder,
        "eval-fmri",
        "report",
        "--checkpoint",
        "p3",
        "--shards",
        "shards",
        "--out",
        "report",
        *SHORT_REPORT,
    )
    return folder


@pytest.mark.distributed
def test_the_planted_connectivity_is_found_in_untouched_subjects(job: Path) -> None:
    metrics = json.loads((job / "report" / "metrics.json").read_text())
    ours = next(model for model in metrics["models"] if model["label"] == "Our model")
    low = ours["scores"]["auroc"]["low"]
    assert low > 0.6, ours


@pytest.mark.distributed
def test_test_subjects_stay_the_same_over_the_phases(job: Path) -> None:
    splits = [json.loads((job / phase / "split.json").read_text()) for phase in ("p1", "p2", "p3")]
    assert len({split["hash"] for split in splits}) == 1
    configs = [json.loads((job / phase / "config.json").read_text()) for phase in ("p1", "p2", "p3")]
    assert len({config["set_hash"] for config in configs}) == 1


@pytest.mark.distributed
def test_a_second_call_of_each_command_does_nothing(job: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in job.rglob("*") if path.is_file() and "report" not in path.parts}
    run(
        job, "simulate-fmri", "--out", "cohort", "--subjects", "80", "--frames", "100", "--voxel-mm", "8", "--seed", "3"
    )
    run(job, "ingest-fmri", "--src", "cohort", "--out", "shards", "--shard-size", "8MB")
    run(job, *LAUNCHERS["python"], "--phase", "3", "--out", "p3", "--init", "p2", "--target", "group", *SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.distributed
@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--phase", "1", "--shards", "absent", "--out", "x"], 2, "no such folder"),
        (["--phase", "1", "--shards", "cohort", "--out", "x"], 2, "run ingest-fmri"),
        (
            ["--phase", "3", "--shards", "shards", "--out", "x", "--init", "p2", "--target", "iq"],
            2,
            "there are: sex, age",
        ),
        (["--phase", "2", "--shards", "shards", "--out", "x", "--init", "absent"], 2, "no such folder"),
        (["--phase", "2", "--shards", "shards", "--out", "x"], 2, "needs --init"),
        (["--phase", "2", "--shards", "other", "--out", "x", "--init", "p1"], 6, "other"),
        (["--phase", "1", "--shards", "shards", "--out", "cohort"], 5, "choose another folder"),
    ],
)
def test_bad_requests_end_in_one_line_and_leave_nothing(job: Path, arguments: list[str], code: int, words: str) -> None:
    if "other" in arguments and not (job / "other").exists():
        cohort = ["--subjects", "6", "--frames", "40", "--voxel-mm", "12", "--seed", "9"]
        run(job, "simulate-fmri", "--out", "cohort2", *cohort)
        run(job, "ingest-fmri", "--src", "cohort2", "--out", "other", "--workers", "1")
    done = run(job, *LAUNCHERS["python"], "--preset", "tiny", *arguments, expect=code)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "Traceback" not in done.stderr
    assert not (job / "x").exists()


@pytest.mark.distributed
@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--checkpoint", "absent", "--shards", "shards"], 2, "no such folder"),
        (["--checkpoint", "p1", "--shards", "shards"], 2, "phase"),
        (["--checkpoint", "p3", "--shards", "fewer"], 6, "shard set"),
    ],
)
def test_reports_that_cannot_be_made(job: Path, arguments: list[str], code: int, words: str) -> None:
    if "fewer" in arguments and not (job / "fewer").exists():
        run(
            job,
            "ingest-fmri",
            "--src",
            "cohort",
            "--out",
            "fewer",
            "--dtype",
            "int16",
            "--participant-label",
            "0001",
            "0002",
        )
    done = run(job, "eval-fmri", "report", *arguments, "--out", "no-report", expect=code)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (job / "no-report").exists()
