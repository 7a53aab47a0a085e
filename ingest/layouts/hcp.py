"""The Human Connectome Project's minimal preprocessing: HCP-YA at 3T and 7T, rest and task.

The source is a folder of subjects, one above it (`HCP_1200/` of the S3 bucket), or one subject::

    [HCP_1200/]100307/MNINonLinear/Results/
        rfMRI_REST1_LR/                                           task-rest run-1 dir-LR
            rfMRI_REST1_LR_hp2000_clean.nii.gz                    version hp2000_clean
            rfMRI_REST1_LR.nii.gz                                 version minimal
            brainmask_fs.2.nii.gz                                 or brainmask_fs.2.0.nii.gz; 7T: 1.60
            Movement_Regressors.txt                               rotations in degrees
        tfMRI_WM_RL/                                              task-wm dir-RL
        rfMRI_REST1_7T_PA/                                        task-rest acq-7T run-1 dir-PA, 1.6 mm
        tfMRI_7T_RETCCW_AP_RETCW_PA_.../                          several runs in one: left out

There is no JSON: the repetition time is that of the header. Space is MNI152NLin6Asym, res-2 (7T: res-1p6).
Of several versions of a run the most cleaned one is taken (`VERSIONS`, the better first), and that is said;
another is chosen with `--include '*_hp2000_clean.nii.gz'`. Other subject folders than HCP-YA's six digits are
recognised by their digits too (Lifespan: `HCA6002236_V1_MR` is subject HCA6002236, session V1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ingest.layouts.layout import Found
from ingest.layouts.tree import Folder, Tree
from ingest.layouts.versions import prefer
from ingest.record import RunRecord

PATTERN = "<id>/MNINonLinear/Results/[rt]fMRI_*/[rt]fMRI_*{_hp2000_clean,}.nii.gz"
_CLEANED = ("clean_rclean_tclean", "clean_rclean", "clean")
VERSIONS = (*(f"{hp}_{stage}" for stage in _CLEANED for hp in ("hp2000", "hp0")), "minimal")
"""`clean` is FIX, `rclean` its reclassification, `tclean` temporal ICA; `minimal` is not cleaned."""

_RUN = re.compile(r"(?P<kind>[rt]fMRI)_(?P<task>[A-Za-z]+)(?P<run>\d*)(?P<field>_7T)?_(?P<dir>LR|RL|AP|PA)")
_FMRI = re.compile(r"[rt]fMRI_\w+")
_SUBJECT = re.compile(r"(?:sub-)?([A-Za-z]*\d+)(?:_(V\d+))?(?:_[A-Za-z]+)?")
_ENDING = re.compile(rf"(?:_({'|'.join(VERSIONS[:-1])}))?\.nii(?:\.gz)?")
_MASKS = tuple(f"brainmask_fs{size}.nii.gz" for size in (".2", ".2.0", ".1.60", ".1.6", ""))
_MOTION = "Movement_Regressors.txt"


def find_runs(tree: Tree) -> Found:
    """Every version of every run."""
    records: list[RunRecord] = []
    several, others = [], []
    for folder, run in _run_folders(tree):
        subject = _SUBJECT.fullmatch(_subject_folder(folder))
        if subject is None:
            others.append(folder.where)
        elif run is None:
            several.append(folder.where)
        else:
            records += _versions(tree, folder, run, subject)
    notes = []
    if several:
        notes.append(f"{len(several)} folders of several runs in one not used ({several[0]})")
    if others:
        notes.append(f"{len(others)} folders not of a subject (no number in the name) not used ({others[0]})")
    return Found(records=tuple(records), notes=tuple(notes))


def settle(records: Sequence[RunRecord]) -> Found:
    """The most cleaned version of each run."""
    chosen, notes = prefer(records, VERSIONS)
    return Found(records=tuple(chosen), notes=tuple(notes))


def explain(tree: Tree) -> str:
    """CIFTI without volumes, or only concatenated runs."""
    folders = [folder for folder, _ in _run_folders(tree)]
    cifti = [name for folder in folders for name in folder.names if name.endswith(".dtseries.nii")]
    if cifti:
        return (
            f"HCP folders with CIFTI only ({len(cifti)} like {cifti[0]}), and a volume is needed; download the files "
            "that end in _hp2000_clean.nii.gz, or for tasks the volumes of the preprocessed package"
        )
    if folders:
        return f"HCP folders ({folders[0].where}), but no volume of a single run in them ({PATTERN}); download them"
    return ""


def _run_folders(tree: Tree) -> Iterator[tuple[Folder, re.Match[str] | None]]:
    """Folders in MNINonLinear/Results that hold fMRI; None for one that is not of a single run."""
    for folder in tree.folders:
        if folder.parts[-3:-1] == ("MNINonLinear", "Results") and _FMRI.fullmatch(folder.parts[-1]):
            yield folder, _RUN.fullmatch(folder.parts[-1])


def _subject_folder(folder: Folder) -> str:
    """The folder above MNINonLinear, or the one above that where files/ lies between."""
    above = folder.parts[:-3]
    return above[-2] if above[-1] == "files" and len(above) > 1 else above[-1]


def _versions(tree: Tree, folder: Folder, run: re.Match[str], subject: re.Match[str]) -> Iterator[RunRecord]:
    for name in folder.names:
        ending = _ENDING.fullmatch(name.removeprefix(run[0])) if name.startswith(run[0]) else None
        if ending is None:
            continue
        acquisition = (("acq", "7T"),) if run["field"] else ()
        yield RunRecord(
            subject=subject[1],
            session=subject[2] or "",
            task=run["task"].lower(),
            run=run["run"],
            entities=(*acquisition, ("dir", run["dir"])),
            space=f"MNI152NLin6Asym:res-{'1p6' if run['field'] else '2'}",
            variant=ending[1] or "minimal",
            bold=tree.path(folder, name),
            mask=tree.first(folder, _MASKS),
            confounds=tree.first(folder, [_MOTION]),
        )
