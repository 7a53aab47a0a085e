"""ABCD-BIDS: the output of DCAN's abcd-hcp-pipeline, in both forms in which it is met.

As the pipeline leaves it::

    sub-NDARINV00000001/ses-baselineYear1Arm1/files/MNINonLinear/Results/ses-baselineYear1Arm1_task-rest_run-01/
        ses-baselineYear1Arm1_task-rest_run-01.nii.gz
        brainmask_fs.2.0.nii.gz                                  or brainmask_fs.nii.gz
        Movement_Regressors.txt                                  rotations in degrees

As NDA collection 3165 (ABCC) has it, without masks::

    derivatives/abcd-hcp-pipeline/sub-NDARINV00000001/ses-baselineYear1Arm1/func/
        sub-.._ses-.._task-rest_run-1_space-MNI_bold.nii.gz
        sub-.._ses-.._task-rest_run-1_desc-includingFD_motion.tsv    rotations in degrees
        sub-.._ses-.._task-rest_run-1_motion.tsv                     the same without displacement

The filtered motion files (`desc-filtered...`) have breathing taken out and are not used. There is no JSON: the
repetition time is that of the header. Space is MNI152NLin6Asym at 2 mm, whatever the name says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ingest.layouts.layout import Found
from ingest.layouts.names import other_entities, parse_name
from ingest.layouts.tree import Folder, Tree
from ingest.record import RunRecord

PATTERN = "sub-*/ses-*/{func/*_space-MNI_bold,files/MNINonLinear/Results/ses-*_task-*_run-*/ses-*_task-*_run-*}.nii.gz"
SPACE = "MNI152NLin6Asym:res-2"

_RESULTS = re.compile(r"ses-[A-Za-z0-9]+_task-[A-Za-z0-9]+(_run-\d+)?")
_VOLUME = re.compile(r"(sub-[A-Za-z0-9]+_ses-[A-Za-z0-9]+_task-.+)_space-MNI_bold\.nii(\.gz)?")
_GRAYORDINATES = re.compile(r"sub-.+_bold(_desc-filtered)?_timeseries\.dtseries\.nii")
_MASKS = ("brainmask_fs.2.0.nii.gz", "brainmask_fs.2.nii.gz", "brainmask_fs.nii.gz")
_MOTION = ("desc-includingFD_motion.tsv", "motion.tsv")


def find_runs(tree: Tree) -> Found:
    """Every run of either form."""
    records = [record for folder in tree.folders for record in (*_in_results(tree, folder), *_in_func(tree, folder))]
    return Found(records=tuple(records))


def settle(records: Sequence[RunRecord]) -> Found:
    """There is one version of each run."""
    return Found(records=tuple(records))


def explain(tree: Tree) -> str:
    """CIFTI without volumes."""
    cifti = [name for name in tree.names() if _GRAYORDINATES.fullmatch(name)]
    if not cifti:
        return ""
    return (
        f"ABCD-BIDS with CIFTI only ({len(cifti)} like {cifti[0]}), and a volume is needed; download the subset "
        "derivatives.func.runs_task-*_volume (files that end in _space-MNI_bold.nii.gz)"
    )


def _in_results(tree: Tree, folder: Folder) -> Iterator[RunRecord]:
    """The run of a folder MNINonLinear/Results/ses-.._task-.._run-.., if it is one."""
    if folder.parts[-4:-1] != ("files", "MNINonLinear", "Results") or not _RESULTS.fullmatch(folder.parts[-1]):
        return
    subject = next((part for part in reversed(folder.parts[:-4]) if part.startswith("sub-")), "")
    bold = tree.first(folder, [folder.parts[-1] + ending for ending in (".nii.gz", ".nii")])
    entities, _ = parse_name(f"{subject}_{folder.parts[-1]}")
    if bold is None or not entities:
        return
    yield RunRecord(
        subject=entities["subject"],
        session=entities["session"],
        task=entities["task"],
        run=entities.get("run", ""),
        space=SPACE,
        bold=bold,
        mask=tree.first(folder, _MASKS),
        confounds=tree.first(folder, ["Movement_Regressors.txt"]),
    )


def _in_func(tree: Tree, folder: Folder) -> Iterator[RunRecord]:
    """The runs of a folder func/ as the NDA has it."""
    if folder.parts[-1] != "func":
        return
    for name in folder.names:
        match = _VOLUME.fullmatch(name)
        if match is None:
            continue
        entities, _ = parse_name(match[1])
        yield RunRecord(
            subject=entities["subject"],
            session=entities["session"],
            task=entities["task"],
            run=entities.get("run", ""),
            entities=other_entities(entities),
            space=SPACE,
            bold=tree.path(folder, name),
            confounds=tree.first(folder, [f"{match[1]}_{motion}" for motion in _MOTION]),
        )
