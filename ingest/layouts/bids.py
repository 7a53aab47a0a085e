"""BIDS derivatives as fMRIPrep writes them.

    sub-01/[ses-1/]func/
        sub-01[_ses-1]_task-rest[_acq-..][_dir-..][_run-1][_echo-1]_space-MNI152NLin2009cAsym[_res-2]_desc-preproc_bold.nii.gz
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-preproc_bold.json      RepetitionTime in seconds
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-brain_mask.nii.gz      same space and resolution
        sub-01[_ses-1]_task-rest[..]_desc-confounds_timeseries.tsv        no space, no resolution

Without a space entity the file is in the run's own EPI space.
"""

from __future__ import annotations

from pathlib import Path

from ingest.layouts.names import other_entities, parse_name, space_label
from ingest.layouts.tree import Tree, is_nifti, stem
from ingest.record import RunRecord

PATTERN = "sub-*/[ses-*/]func/*_desc-preproc_bold.nii[.gz]"
_ENDINGS = ("_desc-preproc_bold.nii", "_desc-preproc_bold.nii.gz")
_CONFOUNDS = ("desc-confounds_timeseries.tsv", "desc-confounds_regressors.tsv")
_NOT_IN_CONFOUNDS = ("space-", "res-", "cohort-", "den-")


def is_bold(path: Path) -> bool:
    """Whether a path is a preprocessed BOLD series of this layout."""
    return path.name.startswith("sub-") and path.name.endswith(_ENDINGS) and path.parent.name == "func"


def looks_like_bids(tree: Tree) -> bool:
    """Whether the folder has subject folders with functional images of some kind."""
    images = (path for path in tree.files if is_nifti(path.name))
    return any(path.parent.name == "func" and path.name.startswith("sub-") for path in images)


def find_runs(tree: Tree) -> list[RunRecord]:
    """Every preprocessed BOLD run in every space there is."""
    names = tree.names()
    return [_record(path, names[path.parent]) for path in tree.files if is_bold(path)]


def _record(bold: Path, siblings: frozenset[str]) -> RunRecord:
    entities, _ = parse_name(stem(bold.name))
    prefix = stem(bold.name).removesuffix("_desc-preproc_bold")
    masks = [f"{prefix}_desc-brain_mask{ending}" for ending in (".nii.gz", ".nii")]
    return RunRecord(
        subject=entities["subject"],
        session=entities.get("session", ""),
        task=entities.get("task", ""),
        run=entities.get("run", ""),
        entities=other_entities(entities),
        space=space_label(entities),
        bold=bold,
        mask=_first(bold.parent, masks, siblings),
        confounds=_first(bold.parent, _confounds_names(prefix), siblings),
        sidecar=_first(bold.parent, [stem(bold.name) + ".json"], siblings),
    )


def _confounds_names(prefix: str) -> list[str]:
    """Confounds carry no space; those of a multi-echo run carry no echo either."""
    parts = [part for part in prefix.split("_") if not part.startswith(_NOT_IN_CONFOUNDS)]
    without_echo = [part for part in parts if not part.startswith("echo-")]
    return ["_".join([*some, name]) for some in (parts, without_echo) for name in _CONFOUNDS]


def _first(folder: Path, names: list[str], siblings: frozenset[str]) -> Path | None:
    return next((folder / name for name in names if name in siblings), None)
