"""Any folder of NIfTI files, at any depth; every .nii and .nii.gz counts as a run.

    sub-01_task-rest_bold.nii.gz      BIDS entities are read from the name
    patient7/rest.nii.gz              else the folder names the subject, the file the task
    scan_0042.nii                     and a file beside no folder is a subject of its own

A JSON of the same name gives RepetitionTime.
"""

from __future__ import annotations

from pathlib import Path

from ingest.layouts.names import other_entities, parse_name, space_label
from ingest.layouts.tree import Tree, is_nifti, stem
from ingest.record import RunRecord, clean_label

PATTERN = "**/*.nii[.gz]"
_PLAIN_SUFFIXES = ("", "bold")


def find_runs(tree: Tree) -> list[RunRecord]:
    """One record for each NIfTI file."""
    names = tree.names()
    return [_record(path, tree.root, names[path.parent]) for path in tree.files if is_nifti(path.name)]


def _record(bold: Path, root: Path, siblings: frozenset[str]) -> RunRecord:
    entities, rest = parse_name(stem(bold.name))
    sidecar_name = stem(bold.name) + ".json"
    sidecar = bold.parent / sidecar_name if sidecar_name in siblings else None
    if not entities:
        folders = bold.parent.relative_to(root).parts
        subject, task = ("".join(folders), stem(bold.name)) if folders else (stem(bold.name), "")
        return RunRecord(subject=clean_label(subject) or "unnamed", task=clean_label(task), bold=bold, sidecar=sidecar)
    desc = entities.get("desc", "") + clean_label(rest.removeprefix("bold") if rest not in _PLAIN_SUFFIXES else "")
    return RunRecord(
        subject=entities["subject"],
        session=entities.get("session", ""),
        task=entities.get("task", ""),
        run=entities.get("run", ""),
        entities=other_entities(entities) + ((("desc", desc),) if desc else ()),
        space=space_label(entities),
        bold=bold,
        sidecar=sidecar,
    )
