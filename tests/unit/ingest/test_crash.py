"""kill -9 of the whole process group at any moment; the same command then ends in the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ingest.cli import main
from shards.writer import TEMPORARY

FLAGS = ("--shard-size", "10kB")
SUBJECTS = [f"{k:02d}" for k in range(1, 9)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in ("ledger.jsonl", "report.html")
    }


def start(src: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import sys; from ingest.cli import main; sys.exit(main())"]
    flags = ["--src", str(src), "--out", str(out), "--workers", str(workers), *FLAGS]
    return subprocess.Popen(
        [*command, *flags], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for(out: Path, moment: str, process: subprocess.Popen[bytes]) -> None:
    """Until the ledger has its plan (`plan`), or so many shards are done (`3`), or so many seconds passed (`0.4s`)."""
    deadline = time.monotonic() + 60
    ledger = out / "ledger.jsonl"
    if moment.endswith("s"):
        time.sleep(float(moment[:-1]))
        return
    lines = 1 if moment == "plan" else 1 + int(moment)
    while process.poll() is None and time.monotonic() < deadline:
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.001)


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the command and its workers, and wait until all are dead."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
    process.communicate()


@pytest.fixture
def whole(make_bids, tmp_path):
    """A source and what an undisturbed call makes of it."""
    src, out = make_bids(SUBJECTS), tmp_path / "whole"
    assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
    return src, contents(out)


@pytest.mark.parametrize(("moment", "workers"), [("plan", 0), ("3", 0), ("2", 2)])
def test_killed_and_resumed_is_the_same(whole, tmp_path, moment, workers):
    src, wanted = whole
    out = tmp_path / "out"
    process = start(src, out, workers)
    wait_for(out, moment, process)
    kill(process)
    assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
    assert contents(out) == wanted


@pytest.mark.slow
def test_killed_thirty_times_and_resumed_is_the_same(whole, tmp_path):
    src, wanted = whole
    rng = random.Random(5)
    for trial in range(30):
        out = tmp_path / f"out{trial}"
        for _ in range(rng.choice([1, 1, 2, 3])):
            process = start(src, out, rng.choice([0, 0, 2]))
            wait_for(out, rng.choice(["plan", "1", "4", "7", "8", f"{rng.uniform(0.3, 2.5):.2f}s"]), process)
            kill(process)
        assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
        assert contents(out) == wanted, trial


@pytest.mark.parametrize("cut", ["in the plan", "in a shard's line", "before the manifest", "before the tables"])
def test_every_state_that_a_crash_can_leave_is_continued(whole, tmp_path, cut):
    """The same without luck: the folder is put into the state itself."""
    src, wanted = whole
    out = tmp_path / "out"
    main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS])
    ledger = out / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    gone = {"manifest.json"} if cut == "before the manifest" else {"manifest.json", "runs.tsv", "participants.tsv"}
    if cut == "in the plan":
        gone |= set(wanted)
        ledger.write_bytes(lines[0][:-7])
    if cut == "in a shard's line":
        ledger.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # its file is in place already
    for name in gone:
        (out / name).unlink(missing_ok=True)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (out / f"{TEMPORARY}{int(dead.stdout)}-prep-000004.tar").write_bytes(b"half a shard")
    assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
    assert contents(out) == wanted


def test_temporary_files_of_living_writers_are_kept(make_bids, tmp_path, capsys):
    src, out = make_bids(["01"]), tmp_path / "out"
    out.mkdir()
    living = out / f"{TEMPORARY}{os.getppid()}-x.tar"
    living.write_bytes(b"")
    assert main(["--src", str(src), "--out", str(out), "--workers", "0"]) == 0
    assert living.exists() and "unfinished" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_in_130_and_a_state_that_goes_on(whole, tmp_path, number, workers):
    src, wanted = whole
    out = tmp_path / "out"
    process = start(src, out, workers)
    wait_for(out, "plan", process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.decode().splitlines() == ["interrupted: finished shards are kept, the same command goes on from here"]
    for line in (out / "ledger.jsonl").read_bytes().splitlines():
        json.loads(line)
    assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
    assert contents(out) == wanted
