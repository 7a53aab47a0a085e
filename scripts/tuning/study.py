"""The study that workers share through a folder: who runs which trial, and what came of it.

optuna's journal is one file that is only appended to, under a lock file made with O_CREAT | O_EXCL, which NFS (v3 and
later) and Lustre make atomic. (Its other lock, a symbolic link, is judged by the age of what it points to; made with a
relative path it points nowhere and is never released when its owner was killed.) The same kind of lock is held while
a worker takes a trial, so that there are never more than were asked for.

The journal has no heartbeat. Each running trial has a file `trial-00012.alive` that its worker touches; when it is
old, or its process is gone from this host, another worker goes on with the same trial in the same run folder.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import OutputError
from shards.writer import write_atomic
from tuning.space import Dimension

JOURNAL = "study.journal"
TABLE = "trials.tsv"
NAME = "tune"
LOCK_GRACE_S = 60
BEAT_S = 10.0


@dataclass(kw_only=True)
class Trial:
    """A trial that this worker runs."""

    number: int
    values: dict[str, str]
    """Flag to value, as text."""
    handle: Any
    """optuna's."""
    reported: int = -1
    """Step of the last validation that the study knows."""


class Study:
    """Trials in a folder.

    Parameters
    ----------
    folder
        Shared by all workers.
    dimensions
        What is searched.
    num_trials
        Of all workers together.
    maximise
        Whether higher values are better.
    seed
        With a trial's number it decides what the sampler draws, whichever worker runs it.
    prune
        Stop trials that are worse than the median of the others at the same step.
    stale_s
        A trial whose worker has said nothing for so long is taken over.
    retries
        How often a trial is taken over from a worker that died.
    """

    def __init__(
        self,
        folder: Path,
        dimensions: Sequence[Dimension],
        *,
        num_trials: int,
        maximise: bool,
        seed: int = 0,
        prune: bool = False,
        stale_s: float = 180.0,
        retries: int = 2,
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.dimensions, self.num_trials, self.seed = folder, tuple(dimensions), num_trials, seed
        self.stale_s, self.retries = stale_s, retries
        self.states = optuna.trial.TrialState
        self._me = f"{socket.gethostname()} {os.getpid()}"
        self._beaten = 0.0
        self._taking = JournalFileOpenLock(str(folder / "taking"), LOCK_GRACE_S)
        path = str(folder / JOURNAL)
        try:
            backend = JournalFileBackend(path, JournalFileOpenLock(path, LOCK_GRACE_S))
            self.optuna = optuna.create_study(
                study_name=NAME,
                storage=optuna.storages.JournalStorage(backend),
                direction="maximize" if maximise else "minimize",
                pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
        except OSError as error:
            raise OutputError(f"--out {folder}: {error.strerror}; choose another folder") from None

    def take(self) -> Trial | None:
        """A trial to run: one that its worker left, else a new one; None when none is left."""
        with self._lock():
            now = time.time()
            trials = self.optuna.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == self.states.RUNNING and self._left(trial.number, now) and self._again(trial):
                    return self._mine(trial.number, trial._trial_id, max(trial.intermediate_values, default=-1))
            if len(trials) >= self.num_trials:
                return None
            trial = self.optuna.ask()
            return self._mine(trial.number, trial._trial_id, -1)

    def run_folder(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.folder / f"trial-{number:05d}"

    def log(self, number: int) -> Path:
        """What a trial's training prints."""
        return self.folder / f"trial-{number:05d}.txt"

    def beat(self, trial: Trial) -> bool:
        """Say that the trial is still run by this worker; False if another one has taken it over."""
        if time.monotonic() - self._beaten < BEAT_S:
            return True
        path = self._alive(trial.number)
        if not path.exists() or path.read_text() != self._me:
            return False
        os.utime(path)
        self._beaten = time.monotonic()
        return True

    def report(self, trial: Trial, validations: Sequence[tuple[int, float]]) -> bool:
        """Tell new validations; True if the trial is to be pruned."""
        prune = False
        for step, value in validations:
            if step > trial.reported:
                trial.handle.report(value, step)
                trial.reported = step
                prune = prune or trial.handle.should_prune()
        return prune

    def finish(self, trial: Trial, *, value: float | None = None, error: str = "") -> None:
        """Record a trial as complete, failed (`error`), or pruned (neither)."""
        with self._lock():
            self._finish(trial, value, error)

    def release(self, trial: Trial) -> None:
        """Leave a trial: it is still to be run, by whoever comes first."""
        self._alive(trial.number).unlink(missing_ok=True)

    def all(self) -> list[Any]:
        """All trials, as optuna gives them."""
        return self.optuna.get_trials(deepcopy=False)

    def best(self) -> Any | None:
        """The best complete trial, as optuna gives it."""
        complete = [trial for trial in self.all() if trial.state == self.states.COMPLETE]
        return self.optuna.best_trial if complete else None

    def silent(self, since: float) -> bool:
        """Whether a trial is running of which nothing has been heard since a time (seconds since 1970)."""
        running = [trial.number for trial in self.all() if trial.state == self.states.RUNNING]
        return any(self._last_beat(number) < since for number in running)

    def values(self, trial: Any) -> dict[str, str]:
        """Flag to value, as text, of a trial of optuna's."""
        return {each.name: each.text(trial.params[each.name]) for each in self.dimensions if each.name in trial.params}

    def _write_table(self) -> None:
        names = [dimension.name for dimension in self.dimensions]
        rows = [["trial", "state", "value", *names, "seconds", "folder", "error"]]
        for trial in self.all():
            given = self.values(trial)
            seconds = f"{trial.duration.total_seconds():.0f}" if trial.duration else "n/a"
            value = f"{trial.value:.6g}" if trial.state == self.states.COMPLETE else "n/a"
            cells = [given.get(name, "n/a") for name in names]
            folder = self.run_folder(trial.number).name
            error = " ".join(trial.user_attrs.get("error", "n/a").split())
            rows.append([str(trial.number), trial.state.name.lower(), value, *cells, seconds, folder, error])
        write_atomic(self.folder / TABLE, "".join("\t".join(row) + "\n" for row in rows))

    def _finish(self, trial: Trial, value: float | None, error: str) -> None:
        if error:
            trial.handle.set_user_attr("error", error)
        state = self.states.FAIL if error else self.states.PRUNED if value is None else self.states.COMPLETE
        self.optuna.tell(trial.number, values=value, state=state)
        self.release(trial)
        self._write_table()

    def _mine(self, number: int, trial_id: int, reported: int) -> Trial:
        import optuna

        self._alive(number).write_text(self._me)
        self._beaten = time.monotonic()
        self.optuna.sampler = self._sampler(number)
        handle = optuna.trial.Trial(self.optuna, trial_id)
        values = {dimension.name: dimension.suggest(handle) for dimension in self.dimensions}
        return Trial(number=number, values=values, handle=handle, reported=reported)

    def _again(self, trial: Any) -> bool:
        """Whether a trial that was left may go on; too often deserted, it has failed."""
        import optuna

        if not self._alive(trial.number).exists():  # its worker was stopped and has left it in good order
            return True
        deaths = trial.user_attrs.get("deaths", 0) + 1
        handle = optuna.trial.Trial(self.optuna, trial._trial_id)
        handle.set_user_attr("deaths", deaths)
        if deaths <= self.retries:
            return True
        left = Trial(number=trial.number, values={}, handle=handle)
        self._finish(left, None, f"its worker was killed {deaths} times; see {self.log(trial.number).name}")
        return False

    def _left(self, number: int, now: float) -> bool:
        """Whether nobody runs a trial."""
        try:
            host, pid = self._alive(number).read_text().split()
        except (FileNotFoundError, ValueError):
            return True
        if host == socket.gethostname() and not Path(f"/proc/{pid}").exists():
            return True
        return now - self._last_beat(number) > self.stale_s

    def _last_beat(self, number: int) -> float:
        try:
            return self._alive(number).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _alive(self, number: int) -> Path:
        return self.folder / f"trial-{number:05d}.alive"

    def _sampler(self, number: int) -> Any:
        import numpy as np
        import optuna

        state = np.random.SeedSequence([self.seed, number]).generate_state(1)
        return optuna.samplers.TPESampler(seed=int(state[0]))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self._taking.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # held for a minute: another worker thought this one dead
                self._taking.release()
