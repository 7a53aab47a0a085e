"""BIDS file names: entities and what is left of a name without them."""

from __future__ import annotations

import re
from typing import Any

_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")  # + as in TemplateFlow's space-MNIInfant+1
_LONG = {"sub": "subject", "ses": "session"}
OWN_FIELDS = ("subject", "session", "task", "run")
NOT_IN_ID = frozenset({*OWN_FIELDS, "space", "res", "den", "cohort", "desc"})


def parse_name(stem: str) -> tuple[dict[str, str], str]:
    """Split a file name without extension into its entities and its other parts.

    Returns
    -------
    entities
        Entity to label, `sub` and `ses` written out; empty unless the name has `sub-<label>`.
    rest
        The parts that are no entity, joined by `_` (usually the suffix, `bold`).

    Examples
    --------
    >>> parse_name("sub-01_task-rest_run-2_desc-preproc_bold")
    ({'subject': '01', 'task': 'rest', 'run': '2', 'desc': 'preproc'}, 'bold')
    """
    entities: dict[str, str] = {}
    rest = []
    for part in stem.split("_"):
        match = _ENTITY.fullmatch(part)
        if match is None or _LONG.get(match[1], match[1]) in entities:
            rest.append(part)
        else:
            entities[_LONG.get(match[1], match[1])] = match[2]
    return (entities, "_".join(rest)) if "subject" in entities else ({}, stem)


def record_fields(entities: dict[str, str]) -> dict[str, Any]:
    """The fields of a `RunRecord` that a name's entities give; `subject` must be among them."""
    return {
        **{name: entities.get(name, "") for name in OWN_FIELDS},
        "entities": other_entities(entities),
        "space": space_label(entities),
    }


def other_entities(entities: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The entities that tell runs apart beside subject, session, task and run."""
    return tuple(sorted((key, label) for key, label in entities.items() if key not in NOT_IN_ID))


def space_label(entities: dict[str, str]) -> str:
    """Space as fMRIPrep's --output-spaces writes it: `MNI152NLin6Asym:res-2`; empty without a space entity."""
    parts = [f"{key}-{entities[key]}" for key in ("cohort", "res") if key in entities]
    return ":".join([entities["space"], *parts]) if "space" in entities else ""
