"""`train.py --preflight`: what ranks find, what is told of them, and that a rank that sees something else is named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from training.preflight import Facts, told

TINY = "--phase 1 --preset tiny --batch_size 1 --window 8 --split_fractions 0.5 0.25 0.25"
START = """
import os, sys
from training import preflight
from training.cli import main
preflight.LOADING_S, preflight.REDUCED = 0.3, 1 << 16
mine = sys.argv[1 + int(os.environ.get("RANK", 0))]
sys.exit(main([*sys.argv[3:], "--shards", mine, "--preflight"], validate=None))
"""


def facts(rank, host="n1", **values):
    return Facts(rank=rank, host=host, values={"shard set": "4 runs, hash aa", **values}, clock_s=100.0)


def test_what_is_the_same_everywhere_is_told_once():
    lines, fit = told([facts(0), facts(1, "n2")])
    assert fit and lines[-1] == "2 ranks on 2 hosts: fit for training"
    assert lines[0].split() == ["ok", "shard", "set", "4", "runs,", "hash", "aa"]


def test_rates_are_told_by_their_extremes_with_rank_and_host():
    name = "loader of each rank"
    rates = ((0, "n1", "90 windows/s"), (1, "n1", "400 windows/s"), (2, "n2", "7 windows/s"))
    lines, fit = told([facts(rank, host, **{name: rate}) for rank, host, rate in rates])
    assert fit
    assert any("7 windows/s (rank 2 on n2) to 400 windows/s (rank 1 on n1)" in line for line in lines)


def test_what_must_be_equal_and_is_not_fails_with_every_rank_named():
    lines, fit = told([facts(0), facts(1, "n2", **{"shard set": "5 runs, hash bb"})])
    assert not fit and lines[-1].endswith("not fit, see FAIL")
    assert sum(line.startswith("FAIL") for line in lines) == 2
    assert any("rank 1 on n2: 5 runs, hash bb" in line for line in lines)


def test_a_failure_of_one_rank_is_told_with_its_host():
    bad = facts(1, "n2")
    bad.failures["--out"] = "/x: Read-only file system"
    lines, fit = told([facts(0), bad])
    assert not fit and any(line.startswith("FAIL") and "rank 1 on n2: /x: Read-only" in line for line in lines)


def test_clocks_that_are_apart_are_noted():
    late = facts(1, "n2")
    late.clock_s = 130.0
    lines, fit = told([facts(0), late])
    assert fit and any(line.startswith("note") and "within 30.00 s" in line for line in lines)


def start(tmp_path, sets, launcher):
    (tmp_path / "start.py").write_text(START)
    command = [*launcher, str(tmp_path / "start.py"), *map(str, sets), *TINY.split(), "--out", str(tmp_path / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)


def test_one_process_is_fit_and_nothing_is_written(tmp_path, make_shard_set):
    make_shard_set(tmp_path / "a", frames=(20,) * 8)
    done = start(tmp_path, [tmp_path / "a", "-"], [sys.executable])
    assert done.returncode == 0, done.stderr
    assert "1 ranks on 1 hosts: fit for training" in done.stdout and "windows/s" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_a_rank_that_sees_another_set_or_none_is_named(tmp_path, make_shard_set):
    make_shard_set(tmp_path / "a", frames=(20,) * 8)
    make_shard_set(tmp_path / "b", frames=(24,) * 8)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    other = start(tmp_path, [tmp_path / "a", tmp_path / "b"], torchrun)
    assert other.returncode != 0
    assert "FAIL  shard set" in other.stdout and "rank 1 on" in other.stdout, other.stderr
    gone = start(tmp_path, [tmp_path / "a", tmp_path / "none"], torchrun)
    assert gone.returncode != 0
    assert any("rank 1 on" in line and "none" in line for line in gone.stdout.splitlines() if line.startswith("FAIL"))
