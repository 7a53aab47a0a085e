"""What went wrong with one run: stage, reason, remedy, and the table that lists it.

A bad input is neither a usage error nor a bug: the run is left out, everything else goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ingest.record import Signature

FAILURES = "failures.tsv"
COLUMNS = ("run_id", "source", "stage", "class", "reason", "remedy")


class RunError(Exception):
    """One run cannot be ingested.

    Parameters
    ----------
    stage
        Where it was found: `open`, `header`, `frames`, `tr`, `grid`, `mask`, `data`, `confounds`, `clean`, `values`,
        `constant`, `internal` or `worker`.
    reason
        What was found and what would be allowed.
    remedy
        What to do about it.
    kind
        What is wrong, in a word that programs can go by, such as `truncated`; the column `class` of failures.tsv.
    """

    def __init__(self, stage: str, reason: str, remedy: str, kind: str = "") -> None:
        super().__init__(f"{stage}: {reason}; {remedy}")
        self.stage, self.reason, self.remedy, self.kind = stage, reason, remedy, kind or stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One row of failures.tsv, with the state of the sources at the time."""

    run_id: str
    source: str
    """Path of the source relative to the ingested folder."""
    stage: str
    kind: str
    """Class of the failure, see `RunError`."""
    reason: str
    remedy: str
    signature: Signature
    """(path, bytes, mtime in ns) of each file of the run: a run is tried again when this changes."""

    @classmethod
    def of(cls, run_id: str, source: str, signature: Signature, error: RunError) -> Failure:
        """Make the row for `error`; tabs and line ends become spaces."""
        reason, remedy = (printable(" ".join(text.split())) for text in (error.reason, error.remedy))
        return cls(
            run_id=run_id,
            source=source,
            stage=error.stage,
            kind=error.kind,
            reason=reason,
            remedy=remedy,
            signature=signature,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy for the ledger."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Failure:
        """Rebuild from `to_dict`."""
        known = {"kind": values["stage"], **values, "signature": as_signature(values["signature"])}
        return cls(**known)  # ledgers of version 0.1 have no kind

    def line(self) -> str:
        """Return one line for the terminal."""
        return f"failed: {printable(self.source)}: {self.stage}: {self.reason}; {self.remedy}"


def printable(text: str) -> str:
    """`text` with every character that a line or a terminal would take amiss written as an escape, as `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def as_signature(values: Iterable[Iterable[Any]]) -> Signature:
    """A signature as JSON gives it back, with its tuples."""
    return tuple((str(path), int(size), int(mtime)) for path, size, mtime in values)


def failures_to_tsv(failures: Iterable[Failure]) -> str:
    """Return the text of failures.tsv, rows in order of run_id and source."""
    rows = sorted(failures, key=lambda failure: (failure.run_id, failure.source))
    cells = [(row.run_id, printable(row.source), row.stage, row.kind, row.reason, row.remedy) for row in rows]
    lines = ["\t".join(line) for line in cells]
    return "\n".join(["\t".join(COLUMNS), *lines]) + "\n"
