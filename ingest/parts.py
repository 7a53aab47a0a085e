"""A set built by several calls that know nothing of each other: `--part 3/16` each, on any machine; then `--merge`.

All parts follow one plan. The first that has made it publishes it as `parts.jsonl`, by a hard link, which either is
there or not, so that no lock is needed; the others read it. Of the shards that are pending then, part i of N builds
the i-th and every N-th after it, and keeps a ledger of its own, `part-03-of-16.jsonl`. Merging takes the plan and
the parts' lines into the set's ledger, in the order of the plan; from there on the set is like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.config import compare
from ingest.ledger import Ledger, PlannedShard, State, is_ledger, read_lines
from ingest.sizes import plural
from shards.errors import EXIT_SOME_FAILED, BoldstreamError, OutputError, UsageError
from shards.writer import write_new

PLAN = "parts.jsonl"
_LEDGERS = "part-*-of-*.jsonl"
_NAMED = 8
"""Parts that an error names."""


class PartsMissingError(BoldstreamError):
    """Not all parts are finished; what is there stays."""

    exit_code = EXIT_SOME_FAILED


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Which share of the shards a call builds: `index` of 1 to `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/16`.

        Raises
        ------
        UsageError
            It is not a share.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--part {text}: allowed is i/N with i from 1 to N, such as 3/16")
        return cls(index=int(match[1]), count=int(match[2]))

    @property
    def ledger(self) -> str:
        """Name of the part's ledger."""
        return f"part-{self.index:0{len(str(self.count))}d}-of-{self.count}.jsonl"

    def share(self, shards: Sequence[PlannedShard]) -> Sequence[PlannedShard]:
        """The shards that this part builds, of those that are pending."""
        return shards[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def in_parts(out: Path) -> bool:
    """Whether parts of a set are there that wait to be merged."""
    return is_ledger(out / PLAN)


def files_of_parts(out: Path) -> list[Path]:
    """The plan and the ledgers of all parts; the plan, which makes the others ours, comes last."""
    if not in_parts(out):
        return []
    return [*sorted(out.glob(_LEDGERS)), out / PLAN]


def follow_plan(
    out: Path, part: Part, state: State, recorded: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> None:
    """Bring a set's state to the plan of its parts; who comes first makes it.

    Parameters
    ----------
    state
        Of the set's ledger; what is planned is added to it.
    recorded
        The settings of this call.
    make
        The ledger's line that adds what is new.

    Raises
    ------
    ConfigDiffersError
        The parts there are made with other settings.
    OutputError
        They are of another number of parts, or being merged, or the plan cannot be published.
    """
    path = out / PLAN
    if not path.exists():
        shared = {"parts": part.count, "after": len(state.planned), "pending": [s.name for s in state.pending()]}
        write_new(path, json.dumps(make() | shared, allow_nan=False) + "\n")
    plan = _read_plan(path)
    if plan["parts"] != part.count:
        raise OutputError(f"{path}: found {plan['parts']} parts, now --part {part}; ask for one of those, or --merge")
    if plan["after"] != len(state.planned):
        raise OutputError(f"{out}: its parts are being merged; finish that with --merge")
    compare(plan["config"], recorded, out)
    state.apply(plan)


def open_ledger(out: Path, part: Part, state: State) -> Ledger:
    """The ledger of a part, on top of the state that all parts start from.

    Raises
    ------
    OutputError
        It cannot be written, or another call works at the same part.
    """
    ledger = Ledger(out / part.ledger, state)
    if not ledger.num_bytes:
        ledger.append({"action": "plan", "config": state.config, "grid": None, "shards": [], "failures": []})
    return ledger


def merge_parts(out: Path, ledger: Ledger, recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Take the plan and what the parts built into the set's ledger.

    Parameters
    ----------
    ledger
        The set's own, open.
    recorded
        The settings of this call.

    Returns
    -------
    list of dict
        The lines taken: the plan's, then those of the shards.

    Raises
    ------
    PartsMissingError
        Names the parts that are not finished.
    ConfigDiffersError
        The parts are made with other settings.
    """
    plan = _read_plan(out / PLAN)
    compare(plan["config"], recorded, out)
    count, after, before = (plan.pop(name) for name in ("parts", "after", "pending"))
    pending = [*before, *(shard["name"] for shard in plan["shards"])]
    lines: dict[str, dict[str, Any]] = {}
    missing = []
    for index in range(1, count + 1):
        part = Part(index=index, count=count)
        built = _built(out / part.ledger)
        lines.update(built)
        if any(name not in built for name in pending[index - 1 :: count]):
            missing.append(part)
    if missing:
        names = ", ".join(map(str, missing[:_NAMED])) + (", ..." if len(missing) > _NAMED else "")
        raise PartsMissingError(
            f"{out}: {plural(len(missing), 'part')} of {count} not finished ({names}); run --part for each first"
        )
    state, taken = ledger.state, []
    if len(state.planned) == after:  # else a merge was killed in the middle
        ledger.append(plan)
        taken.append(plan)
    for name in pending:
        if name not in state.done:
            ledger.append(lines[name])
            taken.append(lines[name])
    return taken


def _built(path: Path) -> dict[str, dict[str, Any]]:
    """Shards that a part has finished and that are still there, by name; the last line about each."""
    if not path.exists():
        return {}
    found = {line["name"]: line for line in read_lines(path) if line["action"] == "shard"}
    return {
        name: line for name, line in found.items() if line["status"] != "error" and _there(path.parent, line["info"])
    }


def _there(out: Path, info: dict[str, Any] | None) -> bool:
    """Whether a shard has the length that is on record; one whose runs all failed has no file."""
    try:
        return info is None or (out / info["name"]).stat().st_size == info["num_bytes"]
    except OSError:
        return False


def _read_plan(path: Path) -> dict[str, Any]:
    if not is_ledger(path):
        raise OutputError(f"{path}: not written by ingest-fmri; choose another --out or move the file away")
    try:
        (plan,) = read_lines(path)
        if [type(plan[name]) for name in ("parts", "after", "pending")] != [int, int, list]:
            raise TypeError("no plan of parts")
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: damaged ({error}); start anew with --overwrite") from None
    return plan
