"""Any folder of NIfTI files, at any depth; every .nii and .nii.gz counts as a run.

    sub-01_task-rest_bold.nii.gz        BIDS entities are read from the name
    patient7/rest.nii.gz                else the folders name the subject, the file the task
    scan_0042.nii                       and a file beside no folder is a subject of its own

Files of the run's name and folder belong to it::

    sub-01_task-rest_bold.json                              RepetitionTime in seconds
    sub-01_task-rest_mask.nii.gz                            or _desc-brain_mask, _brainmask
    sub-01_task-rest_desc-confounds_timeseries.tsv          or _confounds.tsv, _motion.tsv, .par

What cannot be a series by its name is left out: CIFTI (`.dtseries.nii`), masks, and single volumes (`_boldref`,
`_sbref`, `_T1w`, `_T2w`, `_dseg`, `_probseg`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.layouts.layout import Found
from ingest.layouts.names import parse_name, record_fields
from ingest.layouts.tree import Folder, Tree, is_nifti, stem
from ingest.record import RunRecord, clean_label

PATTERN = "**/*.nii[.gz]"
_PLAIN_SUFFIXES = ("", "bold")
_MASKS = ("_mask", "_brainmask", "_desc-brain_mask")
_CONFOUNDS = ("_desc-confounds_timeseries.tsv", "_confounds.tsv", "_motion.tsv", ".par")
_CIFTI = re.compile(r".+\.[dp][a-z]+\.nii")
_NO_SERIES = re.compile(r"(.*_)?(mask|brainmask|boldref|sbref|SBRef|T1w|T2w|dseg|probseg)")


def find_runs(tree: Tree) -> Found:
    """One record for each NIfTI file that may be a series."""
    records: list[RunRecord] = []
    left: list[Path] = []
    for folder in tree.folders:
        for name in filter(is_nifti, folder.names):
            if _CIFTI.fullmatch(name) or _NO_SERIES.fullmatch(stem(name)):
                left.append(tree.path(folder, name))
            else:
                records.append(_record(tree, folder, name))
    masks = {record.mask for record in records}
    others = [path.name for path in left if path not in masks]
    notes = (f"{len(others)} NIfTI files are no series by their names ({others[0]})",) if others else ()
    return Found(records=tuple(records), notes=notes)


def settle(records: Sequence[RunRecord]) -> Found:
    """There is one version of each run."""
    return Found(records=tuple(records))


def explain(tree: Tree) -> str:
    """Nothing looks like this layout: it has no looks."""
    return ""


def _record(tree: Tree, folder: Folder, name: str) -> RunRecord:
    entities, rest = parse_name(stem(name))
    base = stem(name).removesuffix("_bold")
    files: dict[str, Any] = {
        "bold": tree.path(folder, name),
        "mask": tree.first(folder, [f"{base}{mask}{ending}" for mask in _MASKS for ending in (".nii.gz", ".nii")]),
        "confounds": tree.first(folder, [base + ending for ending in _CONFOUNDS]),
        "sidecar": tree.first(folder, [stem(name) + ".json"]),
    }
    if not entities:
        folders = folder.where.replace("/", "")
        subject, task = (folders, stem(name)) if folders else (stem(name), "")
        return RunRecord(subject=clean_label(subject) or "unnamed", task=clean_label(task), **files)
    desc = entities.get("desc", "") + clean_label(rest.removeprefix("bold") if rest not in _PLAIN_SUFFIXES else "")
    fields = record_fields(entities)
    fields["entities"] += (("desc", desc),) if desc else ()
    return RunRecord(**fields, **files)
