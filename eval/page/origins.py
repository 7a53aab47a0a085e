"""Where everything on the page comes from: runs, shard set, and the stages in the report's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.lineage import Ancestor
from eval.page.section import Table
from eval.provenance import GENERATOR
from eval.stages import RECORD

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

MODEL = "model.json"
EVERY_STAGE = ("weights", "set", "split", "target", "window")
"""Inputs that every stage has; the others are its options."""
LONGEST = 60
"""Characters of an option."""


def hashes(evaluation: Evaluation, behind: Sequence[Ancestor]) -> Table:
    """What was used, where it lay, and the hash of its content."""
    checkpoint = evaluation.config.checkpoint
    rows = [("weights of our model", str(checkpoint), own_weights(checkpoint))]
    for run in behind:
        named = f"weights it started from{'' if run.phase is None else f', phase {run.phase}'}"
        rows.append((named, run.named if run.folder is None else str(run.folder), run.weights_hash))
    rows.append(("shard set", str(evaluation.config.shards), evaluation.set_hash))
    rows.append(("split", f"seed {evaluation.split.seed}", evaluation.split.hash))
    return Table(columns=("What", "Where", "XXH3 hash"), rows=tuple(rows))


def own_weights(checkpoint: Path) -> str:
    """Hash of the weights that a run folder describes, or 'unknown'."""
    try:
        return str(json.loads((checkpoint / MODEL).read_text())["weights_xxh3"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def stages(evaluation: Evaluation, software: Mapping[str, str]) -> Table | None:
    """The stages in the folder of the report, or None where there are none."""
    weights = own_weights(evaluation.config.checkpoint)
    rows = []
    for path in sorted(evaluation.config.out.glob(f"*/{RECORD}")):
        record = _record(path)
        if record is not None:
            rows.append(_stage_line(record, path, weights, software))
    if not rows:
        return None
    return Table(
        columns=("Stage", "Made from", "Options", "Files", "Software", "Command"),
        rows=tuple(rows),
        caption="A stage that is done is read again, not repeated. Hashes of every file are in its stage.json.",
    )


def _record(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("generator") == GENERATOR else None


def _stage_line(record: Mapping[str, Any], path: Path, weights: str, software: Mapping[str, str]) -> tuple[str, ...]:
    inputs = dict(record.get("inputs", {}))
    options = {name: value for name, value in inputs.items() if name not in EVERY_STAGE}
    same = inputs.get("weights") == weights
    other = {name: was for name, was in record.get("software", {}).items() if software.get(name) != was}
    return (
        path.parent.name,
        "these weights, this set and split" if same else f"other weights ({inputs.get('weights')}): not used here",
        ", ".join(f"{name} {_short(value)}" for name, value in options.items()) or "none",
        ", ".join(record.get("files", {})),
        ", ".join(f"{name} {was}" for name, was in other.items()) or "as below",
        record.get("command") or "unknown",
    )


def _short(value: Any) -> str:
    """An option as text; long lists by their length."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONGEST:
        return text
    return f"({len(value)} entries)" if isinstance(value, list | dict) else f"{text[: LONGEST - 3]}..."
