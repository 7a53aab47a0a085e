"""Outputs of several models as one table of text: a line for each model and subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.scoring.metrics import Floats

HEAD = ("model", "subject")


def write_outputs(outputs: Mapping[str, Mapping[str, Floats]], names: Sequence[str]) -> str:
    """Tab-separated lines of model, subject and K outputs, with as many digits as it takes to read them back exactly.

    Parameters
    ----------
    outputs : mapping of str to mapping
        Model to subject to outputs (K,).
    names : sequence of str
        Names of the K outputs.
    """
    lines = ["\t".join((*HEAD, *names))]
    for model, rows in outputs.items():
        lines += ["\t".join((model, who, *map(repr, rows[who].tolist()))) for who in sorted(rows)]
    return "\n".join(lines) + "\n"


def read_outputs(path: Path) -> dict[str, dict[str, Floats]]:
    """What `write_outputs` wrote: model to subject to outputs (K,)."""
    found: dict[str, dict[str, Floats]] = {}
    for line in path.read_text().splitlines()[1:]:
        model, subject, *values = line.split("\t")
        found.setdefault(model, {})[subject] = np.array([float(value) for value in values])
    return found
