"""BIDS derivatives as fMRIPrep and XCP-D write them.

fMRIPrep (`desc-preproc`; also NiBabies)::

    sub-01/[ses-1/]func/
        sub-01[_ses-1]_task-rest[_acq-..][_dir-..][_run-1][_echo-1][_part-mag]_space-MNI152NLin2009cAsym[_res-2]_desc-preproc_bold.nii.gz
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-preproc_bold.json      RepetitionTime in seconds
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-brain_mask.nii.gz      same space, cohort and resolution
        sub-01[_ses-1]_task-rest[..]_desc-confounds_timeseries.tsv        no space, cohort, resolution; no echo
                                     desc-confounds_regressors.tsv        its name before fMRIPrep 20.2

XCP-D (`desc-denoised`)::

    sub-01/[ses-1/]func/
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-denoised_bold.nii.gz, .json
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-denoisedSmoothed_bold.nii.gz     with --smoothing
        ..._space-MNI152NLin2009cAsym[_res-2]_desc-interpolated_bold.nii.gz         before 0.8
        sub-01[_ses-1]_task-rest[..]_motion.tsv                   or, before 0.10, desc-filtered_motion.tsv
        sub-01[_ses-1]_task-rest[..]_outliers.tsv                 1 for each frame that was censored

XCP-D writes no brain masks. If fMRIPrep's derivatives lie in the same source folder, its masks are used; else
give one (`--mask`), for none can be computed from series without a mean.

Which version of a run is taken: fMRIPrep's and XCP-D's are never mixed, one is chosen with `--include`. Of
XCP-D's, `interpolated` (the whole timeline) goes before `denoised`, and that before `denoisedSmoothed`. Single
echoes are left out where their combination is there, and XCP-D's concatenated series (`--combine-runs`) where its
runs are. Without a space entity a series is in the run's own EPI space (`--space native`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ingest.layouts.layout import Found
from ingest.layouts.names import parse_name, record_fields
from ingest.layouts.tree import Folder, Tree, is_nifti, stem
from ingest.layouts.versions import count_variants, prefer, split
from ingest.record import RunRecord
from shards.errors import UsageError

PATTERN = "sub-*/[ses-*/]func/*_desc-{preproc,denoised}_bold.nii[.gz]"
XCP_D = ("interpolated", "denoised", "denoisedSmoothed")
"""The better first."""

_BOLD = re.compile(rf"(sub-.+)_desc-(preproc|{'|'.join(XCP_D)})_bold\.nii(\.gz)?")
_CONFOUNDS = ("desc-confounds_timeseries.tsv", "desc-confounds_regressors.tsv")
_MOTION = ("motion.tsv", "desc-filtered_motion.tsv")
_NOT_IN_CONFOUNDS = ("space-", "res-", "cohort-", "den-")
_MASK = ("_desc-brain_mask.nii.gz", "_desc-brain_mask.nii")
_SURFACE = (".dtseries.nii", ".ptseries.nii", ".func.gii")


def find_runs(tree: Tree) -> Found:
    """Every preprocessed or denoised BOLD series, in every space there is."""
    records = [
        _record(tree, folder, name, match)
        for folder in _func_folders(tree)
        for name in folder.names
        if (match := _BOLD.fullmatch(name))
    ]
    return Found(records=tuple(_with_masks_from_elsewhere(tree, records)))


def settle(records: Sequence[RunRecord]) -> Found:
    """One version of each run; fMRIPrep's and XCP-D's are never mixed."""
    preprocessed, denoised = split(records, lambda record: record.variant == "preproc")
    if preprocessed and denoised:
        raise UsageError(
            f"runs of fMRIPrep and of XCP-D are there ({count_variants(records)}); choose one with --include "
            "'*_desc-preproc_bold.nii*' or --include '*_desc-denoised_bold.nii*'"
        )
    chosen, notes = prefer(records, XCP_D)
    chosen, more = _without_echoes(chosen)
    if denoised:
        chosen, concatenated = _without_concatenated(chosen)
        more += concatenated
        if any(record.mask is None for record in chosen):
            more.append(
                "no brain masks for series of XCP-D, which writes none: --mask is needed, for none can be computed "
                "from series without a mean"
            )
    if chosen and not any(record.space for record in chosen):
        more.append(
            "every run is in its own EPI space (no space entity), where a voxel is another place in each run; for a "
            "common space run fMRIPrep with --output-spaces MNI152NLin2009cAsym:res-2"
        )
    return Found(records=tuple(chosen), notes=(*notes, *more))


def explain(tree: Tree) -> str:
    """Raw data, minimal derivatives, or surfaces only."""
    names = [name for folder in _func_folders(tree) for name in folder.names if name.startswith("sub-")]
    if not names:
        return ""
    surfaces = [name for name in names if name.endswith(_SURFACE)]
    minimal = [name for name in names if "_boldref" in name or "_from-orig_to-boldref" in name]
    volumes = [name for name in names if is_nifti(name) and not name.endswith(_SURFACE)]
    if surfaces:
        return (
            f"only surface and CIFTI series ({len(surfaces)} like {surfaces[0]}), and a volume is needed; run fMRIPrep "
            "with --output-spaces MNI152NLin6Asym:res-2, or XCP-D with --file-format nifti"
        )
    if minimal:
        return (
            f"fMRIPrep derivatives without a BOLD series in any space ({minimal[0]}), as --level minimal or resampling "
            "leaves them; run fMRIPrep again with --level full and --derivatives on this folder"
        )
    if volumes:
        return (
            f"BIDS, but none of {len(volumes)} images in func/ is preprocessed BOLD ({PATTERN}), such as {volumes[0]}: "
            "raw data, or another pipeline's names; give fMRIPrep's or XCP-D's derivatives, name the runs in a table "
            "(--src TABLE.tsv), or take every NIfTI as it is with --layout flat"
        )
    return ""


def _func_folders(tree: Tree) -> list[Folder]:
    return [folder for folder in tree.folders if folder.parts[-1] == "func"]


def _record(tree: Tree, folder: Folder, name: str, match: re.Match[str]) -> RunRecord:
    prefix, variant = match[1], match[2]
    confounds = _beside(prefix, _CONFOUNDS)
    if variant in XCP_D:
        confounds = [*_beside(prefix, _MOTION), *confounds]
    return RunRecord(
        **record_fields(parse_name(stem(name))[0]),
        variant=variant,
        bold=tree.path(folder, name),
        mask=tree.first(folder, [prefix + ending for ending in _MASK]),
        confounds=tree.first(folder, confounds),
        sidecar=tree.first(folder, [stem(name) + ".json"]),
    )


def _beside(prefix: str, names: Sequence[str]) -> list[str]:
    """Names of tables of a run: they carry no space; those of a multi-echo or complex run no echo or part either."""
    parts = [part for part in prefix.split("_") if not part.startswith(_NOT_IN_CONFOUNDS)]
    without = [[part for part in parts if not part.startswith(dropped)] for dropped in ("echo-", ("echo-", "part-"))]
    return ["_".join([*some, name]) for some in (parts, *without) for name in names]


def _with_masks_from_elsewhere(tree: Tree, records: list[RunRecord]) -> list[RunRecord]:
    """Give XCP-D's runs the masks that fMRIPrep wrote, if exactly one file of the right name is in the tree."""
    if all(record.mask is not None or record.variant == "preproc" for record in records):
        return records
    masks: dict[str, list[Path]] = {}
    for folder in _func_folders(tree):
        for name in folder.names:
            if name.endswith(_MASK):
                masks.setdefault(name, []).append(tree.path(folder, name))

    def mask(record: RunRecord) -> Path | None:
        if record.mask is not None or record.variant == "preproc":
            return record.mask
        prefix = stem(record.bold.name).removesuffix(f"_desc-{record.variant}_bold")
        found = [path for ending in _MASK for path in masks.get(prefix + ending, [])]
        return found[0] if len(found) == 1 else None

    return [replace(record, mask=mask(record)) for record in records]


def _without_echoes(records: list[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    combined = {_identity(record) for record in records if "echo" not in dict(record.entities)}

    def is_wanted(record: RunRecord) -> bool:
        return "echo" not in dict(record.entities) or _identity(record, "echo") not in combined

    chosen, echoes = split(records, is_wanted)
    return chosen, [f"{len(echoes)} single echoes not taken: their combination is there"] if echoes else []


def _without_concatenated(records: list[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """XCP-D names what it concatenates as the runs are named, without run, and without dir since 0.2."""
    with_run = {_identity(record, "run", "dir") for record in records if record.run}
    with_dir = {_identity(record, "run", "dir") for record in records if "dir" in dict(record.entities)}

    def is_single(record: RunRecord) -> bool:
        name = _identity(record, "dir")
        return bool(record.run) or not (name in with_run or (name == _identity(record) and name in with_dir))

    chosen, joined = split(records, is_single)
    return chosen, [f"{len(joined)} concatenated series not taken: their runs are there"] if joined else []


def _identity(record: RunRecord, *without: str) -> tuple[str, ...]:
    """Everything that tells runs apart, some entities left out."""
    others = [f"{key}-{label}" for key, label in record.entities if key not in without]
    return (record.subject, record.session, record.task, "" if "run" in without else record.run, *others)
