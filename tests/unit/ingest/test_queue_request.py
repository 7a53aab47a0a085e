"""What jobs ask Slurm and PBS for, and what their commands answer. PBS itself is played by scripts."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import cluster_builds
import nibabel
import numpy as np
import pytest
from cluster_builds import act, job
from dask_jobqueue.pbs import PBSJob
from dask_jobqueue.slurm import SLURMJob
from nifti_files import bold_image, save
from test_cluster import Heard

from ingest.cluster.config import ClusterConfig
from ingest.cluster.queue_commands import Pbs, queue_of
from ingest.cluster.queue_request import job_arguments, worker_memory_bytes
from ingest.cluster.reach import chk_reachable
from ingest.cluster.schedule import build_all
from shards.errors import UsageError


@pytest.fixture
def jobs(tmp_path):
    """Two shards with one real run each; the second is ten times as long."""
    mask = nibabel.Nifti1Image(np.ones((5, 6, 4), np.uint8), np.eye(4))
    made = [job(tmp_path, k, f"{k}.nii") for k in range(2)]
    save(mask, tmp_path / "out" / "mask.nii.gz")
    for k, num_frames in enumerate((20, 200)):
        save(bold_image(k, num_frames), tmp_path / f"{k}.nii")
    return made


def script(jobs, cluster: str, *options: str) -> list[str]:
    """Lines of the job script, as dask-jobqueue writes it."""
    config = ClusterConfig(cluster=cluster, workers=4, cluster_options=options)
    kind = SLURMJob if cluster == "slurm" else PBSJob
    return kind("tcp://login:8786", name="w", **job_arguments(config, jobs)).job_script().splitlines()


def test_a_slurm_job_asks_for_one_core_four_hours_and_memory_for_the_largest_run(jobs):
    lines = script(jobs, "slurm")
    assert {"#SBATCH --cpus-per-task=1", "#SBATCH -t 04:00:00", "#SBATCH --mem=2G"} <= set(lines)
    assert [line for line in lines if line.startswith("#SBATCH -J ingest-")]


def test_a_pbs_job_asks_for_the_same(jobs):
    lines = script(jobs, "pbs")
    assert {"#PBS -l select=1:ncpus=1:mem=1908MB", "#PBS -l walltime=04:00:00"} <= set(lines)
    (name,) = [line.split()[-1] for line in lines if line.startswith("#PBS -N")]
    assert len(name) <= 15


@pytest.mark.parametrize(
    ("cluster", "wanted"),
    [
        (
            "slurm",
            ["#SBATCH -p long", "#SBATCH -A lab", "#SBATCH -t 36:00:00", "#SBATCH --mem=15G", "#SBATCH --qos=low"],
        ),
        ("pbs", ["#PBS -q long", "#PBS -A lab", "#PBS -l walltime=36:00:00", "#PBS -l select=1:ncpus=4:mem=15GB"]),
    ],
)
def test_options_reach_the_script(jobs, cluster, wanted):
    options = ("queue=long", "account=lab", "walltime=1-12:00:00", "memory=16GB", "cores=4")
    options += ("job_extra_directives=--qos=low", "job_script_prologue=module load bold")
    lines = script(jobs, cluster, *options)
    assert set(wanted) <= set(lines) and "module load bold" in lines


def test_a_job_starts_one_worker_with_one_thread_for_each_core(jobs):
    command = script(jobs, "slurm", "cores=4", "interface=lo", "local_directory=/scratch/a b")[-1]
    assert command.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://login:8786 ")
    assert " --nthreads 1 " in command and " --nworkers 4 " in command and " --nanny " in command
    assert "--local-directory '/scratch/a b'" in command and command.endswith("--interface lo")


def test_a_worker_watches_no_memory_and_leaves_before_the_walltime(jobs):
    command = script(jobs, "slurm", "walltime=1:00:00")[-1]
    assert command.rindex("--memory-limit 0") > command.index("--memory-limit")  # the last one counts
    assert "--lifetime 3000s --lifetime-stagger 300s" in command
    assert "--lifetime" not in script(jobs, "slurm", "walltime=0:20:00")[-1]


def test_memory_is_that_of_the_largest_run_three_times_in_float32(jobs):
    needed = 1e9 + 3 * 4 * 200 * 120
    assert worker_memory_bytes(jobs) == math.ceil(needed / 1e9) * 10**9


@pytest.mark.parametrize("folder", ["with space", "100%"])
def test_a_log_folder_that_job_scripts_cannot_name_is_refused(jobs, folder):
    with pytest.raises(UsageError, match=r"log folder .* choose another with --cluster-options log_directory="):
        script(jobs, "slurm", f"log_directory=/tmp/{folder}")


@pytest.mark.parametrize(("cluster", "command"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_machine_without_the_queue_is_one_line(jobs, cluster, command, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=f"--cluster {cluster}: no command {command} here; call it on a machine that"):
        list(build_all(jobs, ClusterConfig(cluster=cluster, workers=1), Heard(), act))


def test_a_missing_queue_or_scheduler_is_found_before_any_work(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    chk_reachable(ClusterConfig(workers=2))
    for config in (ClusterConfig(cluster="slurm", workers=1), ClusterConfig(scheduler="tcp://127.0.0.1:1")):
        with pytest.raises(UsageError, match=r"no command sbatch here|no Dask scheduler answers there"):
            chk_reachable(config)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Put scripts in front of the PATH."""

    def put(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return put


QSTAT = """cat <<'END'
Job id            Name             User              Time Use S Queue
----------------  ---------------- ----------------  -------- - -----
11.pbs01          ingest-a1b2c3    me                00:00:00 Q workq
12.pbs01          ingest-a1b2c3    me                00:01:00 R workq
13.pbs01          ingest-a1b2c3    me                00:09:00 E workq
END
echo 'qstat: Unknown Job Id 14.pbs01' >&2
exit 153"""


def test_jobs_of_pbs_that_wait_or_run_are_told_from_those_that_ended(commands):
    commands(qstat=QSTAT)
    assert Pbs().states("ingest-a1b2c3", ["11", "12", "13", "14"]) == {"11": "queued", "12": "running"}


@pytest.mark.parametrize("cluster", ["slurm", "pbs"])
def test_a_queue_that_does_not_answer_says_nothing_of_its_jobs(commands, cluster):
    text = "echo 'cannot connect to server' >&2; exit 1"
    commands(squeue=text, qstat=text)
    assert queue_of(cluster).states("ingest-a1b2c3", ["11"]) is None


def test_slurm_tells_why_a_job_waits(commands):
    commands(squeue="echo '7|PENDING|Priority'; echo '8|RUNNING|None'; echo '9|COMPLETING|None'")
    states = queue_of("slurm").states("ingest-a1b2c3", ["7", "8", "9"])
    assert states == {"7": "PENDING (Priority)", "8": "RUNNING"}


def test_pbs_jobs_are_submitted_run_and_cancelled(commands, jobs, tmp_path, monkeypatch):
    """A qsub that runs the script on the spot: what a worker on PBS goes through."""
    monkeypatch.setenv("PYTHONPATH", str(Path(cluster_builds.__file__).parent))
    commands(
        qsub=f'cp "$1" {tmp_path}/job; setsid sh {tmp_path}/job > {tmp_path}/log 2>&1 & '
        f"echo $! > {tmp_path}/pid; echo 41.pbs01",
        qstat="exit 0",
        qdel=f"echo $@ >> {tmp_path}/deleted; kill -- -$(cat {tmp_path}/pid)",
    )
    config = ClusterConfig(cluster="pbs", workers=1, cluster_options=("interface=lo",))
    (first, second) = build_all(jobs, config, Heard(), act)
    assert [len(line["rows"]) for line in (first, second)] == [1, 1]
    assert (tmp_path / "deleted").read_text() == "41\n"
