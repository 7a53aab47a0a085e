"""The job scripts: shell that is sound, and flags that the commands they start know."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted([*ROOT.glob("scripts/slurm/*"), *ROOT.glob("scripts/pbs/*")])
FAKE = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >> "$CALLS"
case $(basename "$0") in
  sbatch | qsub) echo "$RANDOM" ;;
  squeue) echo "${STATE:-RUNNING}" && exit ;;
esac
exit "${CODE:-0}"
"""
COMMANDS = ("srun", "sbatch", "scontrol", "squeue", "qsub", "mpiexec", "ingest-fmri", "eval-fmri")


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Commands that only write down how they were called; returns what they wrote."""
    for name in COMMANDS:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(FAKE)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "nodes").write_text("x1\nx1\nx2\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name, value in {"SLURM_JOB_ID": "5", "SLURM_CPUS_PER_TASK": "8", "PBS_O_WORKDIR": str(ROOT)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    monkeypatch.chdir(ROOT)
    return tmp_path / "calls"


def run(script: str, *flags: str, **variables: str) -> int:
    environment = [f"{name}={value}" for name, value in variables.items()]
    command = ["/usr/bin/env", *environment, "bash", str(ROOT / "scripts" / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).returncode


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_are_sound_and_stop_at_the_first_error(script):
    assert "set -euo pipefail" in script.read_text()
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_every_slurm_script_has_a_twin_for_pbs():
    names = [{path.stem for path in SCRIPTS if path.parent.name == folder} for folder in ("slurm", "pbs")]
    assert names[0] == names[1] and len(names[0]) == 6


@pytest.mark.parametrize("script", ["slurm/train.sbatch", "pbs/train.pbs"])
def test_flags_of_each_phase_are_those_that_train_reads(calls, script):
    from training.cli import parse

    for phase, init in (("1", ""), ("2", "runs/p1"), ("3", "runs/p2")):
        assert run(script, PHASE=phase, INIT=init, FLAGS="--preset tiny --batch_size 2") == 0
        words = calls.read_text().splitlines()[-1].split()
        config = parse(words[words.index("train.py") + 1 :])
        assert (config.phase, config.preset, config.batch_size) == (int(phase), "tiny", 2)
        assert str(config.init) == (init or "None") or phase == "1"
        assert config.target == ("sex" if phase == "3" else None)
        assert Path(config.deepspeed_config).is_file()
    launcher = words[: words.index("train.py")]
    if script.startswith("slurm"):  # since 22.05 srun does not take the cores of a task from the job
        assert {"--wait=30", "--cpus-per-task=8"} < {*launcher}
    else:
        assert launcher[1:3] == ["-n", "8"]


@pytest.mark.parametrize("script", ["slurm/eval.sbatch", "pbs/eval.pbs"])
def test_flags_of_the_report_are_those_that_eval_reads(calls, script, tmp_path):
    from eval.cli import _parse

    atlas = tmp_path / "atlas.nii.gz"
    atlas.touch()
    assert run(script, ATLAS=str(atlas), FLAGS="--bootstrap 500") == 0
    words = calls.read_text().split()
    config = _parse(words[words.index("eval-fmri") + 1 :])
    assert (str(config.checkpoint), config.atlas, config.bootstrap) == ("runs/p3", atlas, 500)


@pytest.mark.parametrize("system", ["slurm", "pbs"])
def test_flags_of_ingest_are_those_that_ingest_reads(calls, system):
    from ingest.cli import _parse

    suffix = {"slurm": "sbatch", "pbs": "pbs"}[system]
    index = {"slurm": "SLURM_ARRAY_TASK_ID", "pbs": "PBS_ARRAY_INDEX"}[system]
    merge = {"slurm": {"SLURM_ARRAY_TASK_ID": "0"}, "pbs": {"MERGE": "1"}}[system]
    assert run(f"{system}/ingest.{suffix}", SRC="/in", ACCOUNT="abc", FLAGS="--clean simple") == 0
    assert run(f"{system}/ingest_array.{suffix}", **{"SRC": "/in", "PARTS": "4", index: "3"}) == 0
    assert run(f"{system}/ingest_array.{suffix}", **{"SRC": "/in", "PARTS": "4"} | merge) == 0
    whole, part, merged = calls.read_text().splitlines()
    assert "--cluster-options account=abc walltime=4:00:00 memory=6GB --clean simple" in whole
    assert f"--cluster {system} " in whole
    assert part == "ingest-fmri --src /in --out shards --part 3/4 --workers 8"
    assert merged == "ingest-fmri --src /in --out shards --merge"
    for line in (whole, part, merged):
        assert str(_parse(line.split()[1:]).src) == "/in"


@pytest.mark.parametrize(("script", "interrupted"), [("train", (85, 138, 143)), ("eval", (138, 143))])
def test_an_interrupted_job_is_queued_again_and_a_failed_one_is_not(calls, script, interrupted):
    for code in (*interrupted, 137, 8, 0):
        calls.write_text("")
        assert run(f"slurm/{script}.sbatch", CODE=str(code)) == code
        assert calls.read_text().count("scontrol requeue 5") == (code in interrupted)
    calls.write_text("")
    assert run(f"slurm/{script}.sbatch", CODE=str(interrupted[0]), STATE="COMPLETING") == interrupted[0]  # cancelled
    assert "requeue" not in calls.read_text()


def test_an_interrupted_training_submits_itself_again_under_pbs(calls):
    assert run("pbs/train.pbs", CODE="85", PHASE="2", INIT="runs/p1", ACCOUNT="abc", FLAGS="--preset tiny") == 85
    again = calls.read_text().splitlines()[-1]
    assert again.startswith("qsub -A abc -q prod -v PHASE=2,INIT=runs/p1,OUT=runs/p2,") and "--preset tiny" in again


def test_the_chain_of_slurm_waits_for_each_job_and_hands_the_run_on(calls, tmp_path):
    assert run("slurm/submit.sh", "--account=abc", RUNS=str(tmp_path / "runs"), AFTER="77") == 0
    jobs = calls.read_text().splitlines()
    assert [job.split("/")[-1] for job in jobs] == ["train.sbatch"] * 3 + ["eval.sbatch"]
    assert all("--account=abc" in job and "--kill-on-invalid-dep=yes" in job for job in jobs)
    assert "--dependency=afterok:77" in jobs[0]
    assert len({re.search(r"afterok:(\d+)", job).group(1) for job in jobs}) == 4


def test_the_chain_of_pbs_goes_on_when_a_phase_is_through(calls):
    common = {"CHAIN": "1", "ACCOUNT": "abc", "SHARDS": "set", "OUT": "here/p2", "PHASE": "2"}
    assert run("pbs/train.pbs", **common) == 0
    following = calls.read_text().splitlines()[-1]
    assert "PHASE=3,INIT=here/p2,OUT=here/p3" in following and "SHARDS=set" in following and "CHAIN=1" in following
    assert run("pbs/train.pbs", **common | {"PHASE": "3", "OUT": "here/p3"}) == 0
    assert "CHECKPOINT=here/p3,OUT=here/report" in calls.read_text().splitlines()[-1]
