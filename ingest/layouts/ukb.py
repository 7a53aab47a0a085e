"""UK Biobank's preprocessed fMRI: refused as it comes, taken once it has been warped to a standard space.

As it comes (bulk fields 20227, rest, and 20249, task), a run is in its own EPI space::

    1000001_20227_2_0/fMRI/                                       or 1000001_2_2_0/
        rfMRI.ica/filtered_func_data_clean.nii.gz                 native: no voxel is the same place in two runs
        rfMRI.ica/mask.nii.gz                                     native
        rfMRI.ica/mc/prefiltered_func_data_mcf.par                rotations in radians first, then mm
        rfMRI.ica/reg/example_func2standard_warp.nii.gz
        rfMRI.json                                                RepetitionTime in seconds
        tfMRI.feat/filtered_func_data.nii.gz                      task-emotion, native

A warped series is known by its name or its folder, in rfMRI.ica/ and in rfMRI.ica/reg/::

    filtered_func_data_clean_MNI152[_2mm].nii.gz                  _MNI..., _standard..., _std...
    mask_MNI152[_2mm].nii.gz                                      the mask of the same ending, if there is one
    reg_standard/filtered_func_data_clean.nii.gz, mask.nii.gz     as FSL's featregapply leaves them

The first number of a subject's folder is the subject. The session is the second, or the third where the second is
the number of a bulk field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ingest.layouts.layout import Found
from ingest.layouts.tree import Folder, Tree
from ingest.record import RunRecord

PATTERN = "<id>_<instance>_2_0/fMRI/rfMRI.ica/{,reg/}filtered_func_data_clean_{MNI,standard,std}*.nii.gz"

_SUBJECT = re.compile(r"(?P<subject>\d+)_(?P<second>\d+)_(?P<third>\d+)_\d+")
_KINDS = {
    "rfMRI.ica": ("rest", "filtered_func_data_clean", "rfMRI.json"),
    "tfMRI.feat": ("emotion", "filtered_func_data", "tfMRI.json"),
}
_WARPED = re.compile(r"_((?:MNI|standard|std(?!mask))\w*)\.nii(?:\.gz)?")
_NATIVE = re.compile(r"\.nii(?:\.gz)?")
_PAR = "prefiltered_func_data_mcf.par"
_FIELD_DIGITS = 5


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder of a run: rfMRI.ica, tfMRI.feat, or one of the two below it that may hold warped series."""

    folder: Folder
    below: str
    """`reg` or `reg_standard`, or empty for the run's folder itself."""
    kind: str
    subject: re.Match[str]


def find_runs(tree: Tree) -> Found:
    """Every warped series; the runs that have none are counted."""
    by_path = {folder.where: folder for folder in tree.folders}
    records: list[RunRecord] = []
    native: dict[tuple[str, ...], str] = {}
    warped: set[tuple[str, ...]] = set()
    for place in _places(tree):
        run = place.folder.parts[: -1 if place.below else None]
        for name, space in _series(place):
            if space:
                warped.add(run)
                records.append(_record(tree, place, name, space, by_path))
            else:
                native[run] = tree.path(place.folder, name).relative_to(tree.root).as_posix()
    left = sorted(path for run, path in native.items() if run not in warped)
    notes = (f"{len(left)} runs in native EPI space not used ({left[0]}): warp them first",) if left else ()
    return Found(records=tuple(records), notes=notes)


def settle(records: Sequence[RunRecord]) -> Found:
    """Nothing to decide: series warped in several ways are in several spaces, and --space chooses."""
    return Found(records=tuple(records))


def explain(tree: Tree) -> str:
    """Native space, and the way out."""
    native = [tree.path(place.folder, name) for place in _places(tree) for name, space in _series(place) if not space]
    if not native:
        return ""
    return (
        f"UK Biobank in native EPI space ({len(native)} runs, such as {native[0].relative_to(tree.root)}): a voxel is "
        "another place in each run, so they cannot share a mask; warp each with FSL (applywarp -i "
        "filtered_func_data_clean -r $FSLDIR/data/standard/MNI152_T1_2mm -w reg/example_func2standard_warp -o "
        "filtered_func_data_clean_MNI152), or run XCP-D with --input-type ukb and ingest what it writes"
    )


def _places(tree: Tree) -> Iterator[_Place]:
    for folder in tree.folders:
        below = folder.parts[-1] if folder.parts[-1] in ("reg", "reg_standard") else ""
        parts = folder.parts[:-1] if below else folder.parts
        if parts[-1] in _KINDS and parts[-2:-1] == ("fMRI",) and len(parts) > 2:
            subject = _SUBJECT.fullmatch(parts[-3])
            if subject:
                yield _Place(folder, below, parts[-1], subject)


def _series(place: _Place) -> Iterator[tuple[str, str]]:
    """Names of the BOLD series in a folder, each with its space, empty for native."""
    series = _KINDS[place.kind][1]
    for name in place.folder.names:
        ending = name.removeprefix(series) if name.startswith(series) else ""
        warped = _WARPED.fullmatch(ending)
        if warped:
            yield name, warped[1]
        elif _NATIVE.fullmatch(ending) and place.below != "reg":
            yield name, "standard" if place.below == "reg_standard" else ""


def _record(tree: Tree, place: _Place, name: str, space: str, by_path: dict[str, Folder]) -> RunRecord:
    task, series, sidecar = _KINDS[place.kind]
    run = place.folder.where.removesuffix(place.below).rstrip("/")
    motion, above = by_path.get(f"{run}/mc"), by_path.get(run.rpartition("/")[0])
    second, third = place.subject["second"], place.subject["third"]
    return RunRecord(
        subject=place.subject["subject"],
        session=third if len(second) == _FIELD_DIGITS else second,
        task=task,
        space=space,
        variant="clean" if series.endswith("_clean") else "",
        bold=tree.path(place.folder, name),
        mask=tree.first(place.folder, ["mask" + name.removeprefix(series)]),
        confounds=tree.first(motion, [_PAR]) if motion else None,
        sidecar=tree.first(above, [sidecar]) if above else None,
    )
