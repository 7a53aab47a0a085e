"""Two recordings, or two parts of one, of each subject: what a fingerprint compares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eval.cohort import Cohort

COMPARISONS = {
    "sessions": "between sessions",
    "runs": "between runs of a session",
    "halves": "between the halves of a run",
}
"""From the hardest, which leaves least beside the person, to the easiest."""
LEAST_SUBJECTS = 5


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Span:
    """Frames `start` up to `stop` of a run."""

    run: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Run, start and stop."""
        return f"{self.run}_{self.start}_{self.stop}"

    @property
    def num_frames(self) -> int:
        """How many frames."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """What a subject's gallery vector and probe vector are made of."""

    gallery: tuple[Span, ...]
    probe: tuple[Span, ...]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of both."""
        return self.gallery + self.probe


def compared(cohort: Cohort, subjects: Iterable[str]) -> dict[str, dict[str, Sides]]:
    """The comparisons that at least `LEAST_SUBJECTS` subjects allow, hardest first: key to subject to sides.

    Between sessions: the first and the last one, by their labels. Between runs: the first and the last run of the
    first session that has two. Halves: of the subject's first run, which are never apart in anything but time.
    """
    found: dict[str, dict[str, Sides]] = {name: {} for name in COMPARISONS}
    for subject in subjects:
        for name, sides in _of_subject(cohort, subject).items():
            found[name][subject] = sides
    return {name: sides for name, sides in found.items() if len(sides) >= LEAST_SUBJECTS}


def _of_subject(cohort: Cohort, subject: str) -> dict[str, Sides]:
    entries = cohort.shard_set.runs
    runs = sorted(cohort.runs[subject], key=lambda run: entries[run].run_id)
    sessions: dict[str, list[int]] = {}
    for run in runs:
        sessions.setdefault(entries[run].session, []).append(run)
    names = sorted(sessions)
    found = {}
    if len(names) > 1:
        found["sessions"] = Sides(
            gallery=tuple(_whole(cohort, run) for run in sessions[names[0]]),
            probe=tuple(_whole(cohort, run) for run in sessions[names[-1]]),
        )
    several = next((members for name in names if len(members := sessions[name]) > 1), None)
    if several is not None:
        found["runs"] = Sides(gallery=(_whole(cohort, several[0]),), probe=(_whole(cohort, several[-1]),))
    whole = _whole(cohort, runs[0])
    middle = whole.stop // 2
    found["halves"] = Sides(
        gallery=(Span(run=whole.run, start=0, stop=middle),),
        probe=(Span(run=whole.run, start=middle, stop=whole.stop),),
    )
    return found


def _whole(cohort: Cohort, run: int) -> Span:
    return Span(run=run, start=0, stop=cohort.shard_set.runs[run].num_frames)
