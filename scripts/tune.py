"""Search for hyper-parameters: trials of `train.py`, shared by as many workers as are started on the same folder.

    python scripts/tune.py --out tuned --trials 40 --search lr=1e-5:1e-2:log dropout=0:0.5 batch_size=4,8,16 \
        -- deepspeed --num_gpus 4 train.py --phase 3 --shards shards --init runs/p2 --target sex

`scripts/slurm/tune.sbatch` runs it as a Slurm array.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tuning import running
from tuning.space import Command, Dimension, read_command, read_space
from tuning.study import Study, Trial

from shards.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    BoldstreamError,
    ConfigDiffersError,
    OutputError,
    UsageError,
)
from shards.flags import read_flags
from training.config import EXIT_PREEMPTED
from training.interruption import Interruption

RECORD = "tune.json"
MIN_STALE_S = running.GRACE_S + 30  # a worker is silent while it stops a trial
FREE = ("out", "trials", "stale_s", "retries")
"""Flags that may change from one start to the next."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Search for hyper-parameters; the command that trains follows behind --, without --out.

    Phase 3 is judged by the score of the validation subjects, phases 1 and 2 by their lowest validation error. Test
    subjects are never touched: neither a trial nor the choice among trials sees them. Every worker that is started
    with the same command takes part; together they run --trials. Two workers on one node need launchers with a port
    each, such as torchrun --standalone.

    Exit codes: 0 done, 2 usage, 4 not one trial succeeded, 5 output unusable, 6 the folder holds another search,
    85 stopped by SIGTERM or SIGUSR1 (the same command continues), 130 interrupted.
    """

    out: Path
    """Folder of the study, shared by all workers; trials are run folders in it."""
    search: tuple[str, ...]
    """Flags of train.py to search: lr=1e-5:1e-2:log (on a logarithm), depth=2:12, batch_size=4,8,16,
    channels=32+64,64+128, class_weights=true,false."""
    trials: int
    """Trials of all workers together; those that fail or are stopped early count."""
    prune: bool = False
    """Stop trials that are worse than the median of the earlier ones at the same step."""
    seed: int = 0
    """Seed of the search."""
    stale_s: float = 180.0
    """A trial whose worker has been silent for so many seconds is continued by another."""
    retries: int = 2
    """How often a trial is continued after its worker was killed; then it has failed."""

    def __post_init__(self) -> None:
        if self.trials < 1 or not self.search:
            raise UsageError(f"--trials {self.trials}, {len(self.search)} flags in --search: at least 1 of each")
        if self.stale_s < 30 or self.retries < 0:
            raise UsageError(
                f"--stale_s {self.stale_s} --retries {self.retries}: at least 30 seconds, at least 0 times"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags and search; returns the exit code."""
    import tyro

    words = list(sys.argv[1:] if argv is None else argv)
    own, behind = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    only = (tyro.conf.FlagCreatePairsOff,)
    try:
        config = read_flags(
            partial(tyro.cli, TuneConfig, args=own, prog="tune.py", use_underscores=True, config=only), "tune.py"
        )
        command = read_command(behind)
        dimensions = read_space(config.search, command)
        if find_spec("optuna") is None:
            raise UsageError("optuna is not installed; pip install boldstream[tune]")
        _open_folder(config, command)
        return search(config, command, dimensions)
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED


def search(config: TuneConfig, command: Command, dimensions: Sequence[Dimension]) -> int:
    """Run trials until all are done, by this worker or others; returns the exit code."""
    study = Study(
        config.out,
        dimensions,
        num_trials=config.trials,
        maximise=command.config.phase == 3,
        seed=config.seed,
        prune=config.prune,
        stale_s=config.stale_s,
        retries=config.retries,
    )
    with Interruption() as interruption:
        looking_since = time.time()
        while not interruption.asked:
            trial = study.take()
            if trial is not None:
                if not _run(study, trial, command, interruption):
                    break
                looking_since = time.time()
            elif study.silent(looking_since):
                time.sleep(running.POLL_S)
            else:
                return _tell(study, command)
    print(f"{config.out}: stopped by a signal; the same command continues", file=sys.stderr)
    return EXIT_PREEMPTED


def _run(study: Study, trial: Trial, command: Command, interruption: Interruption) -> bool:
    """Run a trial to its end and record it; False if a signal stopped it, which leaves it to be continued."""
    phase, folder = command.config.phase, study.run_folder(trial.number)
    key = "score" if phase == 3 else "mse"

    def watch() -> running.Stop | None:
        if interruption.asked:
            return "asked"
        if not study.beat(trial):
            return "lost"
        return "pruned" if study.report(trial, running.validations(folder, key)) else None

    _say(trial, "starts: " + ", ".join(f"{name} {value}" for name, value in trial.values.items()))
    try:
        ended = running.run(command.with_flags(trial.values, folder), study.log(trial.number), watch)
    except KeyboardInterrupt:
        study.release(trial)
        raise
    if ended.stopped != "lost":
        study.report(trial, running.validations(folder, key))  # others are compared with the last ones, too
    if ended.stopped == "lost":
        _say(trial, "another worker has taken it over")
    elif ended.code != EXIT_OK and ended.stopped == "pruned":
        study.finish(trial)
        _say(trial, "stopped early, worse than the median")
    elif ended.code != EXIT_OK and (ended.stopped == "asked" or ended.code == EXIT_PREEMPTED):
        study.release(trial)
        _say(trial, "stopped by a signal, to be continued")
        return False
    else:
        _record(study, trial, ended.code, running.result(folder, phase) if ended.code == EXIT_OK else None)
    return True


def _record(study: Study, trial: Trial, code: int, value: float | None) -> None:
    log = study.log(trial.number)
    if value is not None:
        study.finish(trial, value=value)
        _say(trial, f"validation {value:.6g}")
        return
    error = "it has no validation: the split has no validation subjects"
    if code != EXIT_OK:
        error = f"exit code {code}: {running.last_words(log)}"
    study.finish(trial, error=error)
    _say(trial, f"failed: {error}; see {log}")


def _tell(study: Study, command: Command) -> int:
    """Print how the search stands; returns the exit code."""
    counts: dict[str, int] = {}
    for trial in study.all():
        counts[trial.state.name.lower()] = counts.get(trial.state.name.lower(), 0) + 1
    print(f"{study.folder / 'trials.tsv'}: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    best = study.best()
    if best is None:
        print("not one trial has succeeded")
        return EXIT_OK if counts.get("running") else EXIT_SOME_FAILED
    values = study.values(best)
    print(f"best: trial {best.number}, validation {best.value:.6g}, {study.run_folder(best.number)}")
    print("  " + ", ".join(f"{name} {value}" for name, value in values.items()))
    print("again: " + shlex.join(command.with_flags(values, study.folder / "best")))
    return EXIT_OK


def _say(trial: Trial, text: str) -> None:
    print(f"trial {trial.number} {text}", flush=True)


def _open_folder(config: TuneConfig, command: Command) -> None:
    """Make the folder, or check that it holds this search.

    The record appears whole by a hard link, which only one of several workers succeeds in making.
    """
    flags = {name: value for name, value in asdict(config).items() if name not in FREE}
    record = json.loads(json.dumps(flags | {"command": command.words}))
    path = config.out / RECORD
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        others = [each for each in config.out.iterdir() if not each.name.startswith(f".{RECORD}")]
        if others and not path.exists():
            raise OutputError(f"--out {config.out}: holds other files; choose another folder")
        temporary = config.out / f".{RECORD}-{os.uname().nodename}-{os.getpid()}"
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        try:
            os.link(temporary, path)
        except FileExistsError:
            _check_same(json.loads(path.read_text()), record, path)
        finally:
            temporary.unlink()
    except OSError as error:
        raise OutputError(f"--out {config.out}: {error.strerror}; choose another folder") from None


def _check_same(found: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    differing = [name for name in now if found.get(name) != now[name]]
    if differing:
        listing = "; ".join(f"{name}: found {found.get(name)}, now {now[name]}" for name in differing)
        raise ConfigDiffersError(f"{path}: {listing}; repeat that search, or choose another --out")


if __name__ == "__main__":
    raise SystemExit(main())
