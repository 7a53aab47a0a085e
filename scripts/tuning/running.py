"""One trial: the training as a process, watched while it runs."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LOG = "log.jsonl"
MODEL = "model.json"
POLL_S = 1.0
GRACE_S = 120.0
"""Time to save a checkpoint after SIGTERM, before SIGKILL."""
PR_SET_PDEATHSIG = 1

Stop = Literal["pruned", "asked", "lost"]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a training ended: its exit code, and why it was told to, if it was."""

    code: int
    stopped: Stop | None


def run(command: Sequence[str], log: Path, watch: Callable[[], Stop | None]) -> Ended:
    """Run a training until it ends or `watch` wants it to.

    Parameters
    ----------
    command
        Program and arguments.
    log
        File that what it prints is added to.
    watch
        Called about every second; a reason ends the training: SIGTERM to all its processes, so that it saves a
        checkpoint, and SIGKILL after two minutes. `lost` is SIGKILL at once.

    Returns
    -------
    Ended
        A program that cannot be started counts as ended with 127.
    """
    with log.open("ab") as out:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with(os.getpid()),
            )
        except OSError as error:
            out.write(f"error: {command[0]}: {error.strerror}\n".encode())
            return Ended(code=127, stopped=None)
    try:
        return _watched(process, watch)
    except BaseException:
        _stop(process, signal.SIGTERM)
        raise


def _watched(process: subprocess.Popen[bytes], watch: Callable[[], Stop | None]) -> Ended:
    while True:
        try:
            return Ended(code=process.wait(POLL_S), stopped=None)
        except subprocess.TimeoutExpired:
            if (reason := watch()) is not None:
                return Ended(
                    code=_stop(process, signal.SIGKILL if reason == "lost" else signal.SIGTERM), stopped=reason
                )


def _stop(process: subprocess.Popen[bytes], number: signal.Signals) -> int:
    for each in (number, signal.SIGKILL):
        try:
            os.killpg(process.pid, each)
        except ProcessLookupError:
            return process.wait()
        try:
            return process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    return process.wait()


def _end_with(parent: int) -> Callable[[], None]:
    """SIGTERM for the training if this process is killed: nobody would watch it, and another worker takes it over."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def validations(folder: Path, key: str) -> list[tuple[int, float]]:
    """(step, value) of every validation that a run folder's log has so far."""
    try:
        lines = (folder / LOG).read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # being written
        if record.get("event") == "val" and record.get(key) is not None:
            found.append((int(record["step"]), float(record[key])))
    return found


def result(folder: Path, phase: int) -> float | None:
    """What a finished run is worth: phase 3's validation score, else its lowest validation error."""
    if phase == 3:
        try:
            return float(json.loads((folder / MODEL).read_text())["val_score"])
        except (FileNotFoundError, KeyError):
            return None
    errors = [value for _, value in validations(folder, "mse")]
    return min(errors, default=None)


def last_words(log: Path) -> str:
    """The last line that says `error:`, else the last line, of what a training printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it printed nothing"])[-1][:300]
