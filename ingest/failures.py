"""What went wrong with one run: stage, reason, remedy, and the table that lists it.

A bad input is neither a usage error nor a bug: the run is left out, everything else goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

FAILURES = "failures.tsv"
COLUMNS = ("run_id", "source", "stage", "reason", "remedy")


class RunError(Exception):
    """One run cannot be ingested.

    Parameters
    ----------
    stage
        Where it was found: `open`, `header`, `tr`, `grid`, `data`, `values`, `constant`, `confounds`,
        `internal` or `worker`.
    reason
        What was found and what would be allowed.
    remedy
        What to do about it.
    """

    def __init__(self, stage: str, reason: str, remedy: str) -> None:
        super().__init__(f"{stage}: {reason}; {remedy}")
        self.stage, self.reason, self.remedy = stage, reason, remedy


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One row of failures.tsv, with the state of the sources at the time."""

    run_id: str
    source: str
    """Path of the source relative to the ingested folder."""
    stage: str
    reason: str
    remedy: str
    signature: tuple[tuple[str, int, int], ...]
    """(path, bytes, mtime in ns) of each file of the run: a run is tried again when this changes."""

    @classmethod
    def of(cls, run_id: str, source: str, signature: tuple[tuple[str, int, int], ...], error: RunError) -> Failure:
        """Make the row for `error`; tabs and line ends become spaces."""
        reason, remedy = (" ".join(text.split()) for text in (error.reason, error.remedy))
        return cls(run_id=run_id, source=source, stage=error.stage, reason=reason, remedy=remedy, signature=signature)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy for the ledger."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Failure:
        """Rebuild from `to_dict`."""
        signature = tuple((str(path), int(size), int(mtime)) for path, size, mtime in values["signature"])
        return cls(**{**values, "signature": signature})

    def line(self) -> str:
        """Return one line for the terminal."""
        return f"failed: {self.source}: {self.stage}: {self.reason}; {self.remedy}"


def failures_to_tsv(failures: Iterable[Failure]) -> str:
    """Return the text of failures.tsv, rows in order of run_id and source."""
    rows = sorted(failures, key=lambda failure: (failure.run_id, failure.source))
    lines = ["\t".join(" ".join(str(getattr(row, name)).split("\t")) for name in COLUMNS) for row in rows]
    return "\n".join(["\t".join(COLUMNS), *lines]) + "\n"
