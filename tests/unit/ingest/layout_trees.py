"""A small tree for each layout, with real NIfTI files, and what is to be found in it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from nifti_files import AFFINE, SHAPE, bold_image, save

NUM_FRAMES = 12

Runs = Mapping[str, Mapping[str, str]]
"""run id -> bold, and mask, confounds, sidecar where there are such: paths relative to the source folder."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of tree."""

    layout: str
    runs: Runs
    subject_folder: str
    """A folder that may be a link."""
    foreign: tuple[str, ...] = ()
    """Files of the same places that are no runs."""
    subject: str
    """The subject of `subject_folder`."""
    task: str
    """A task that some runs have and others do not."""
    table: str = ""
    """The file that is the source, where it is not the folder."""
    more: Callable[[Path], None] = field(default=lambda root: None)

    def write(self, root: Path) -> Path:
        """Write the tree below `root`; returns what --src would be."""
        for seed, files in enumerate(self.runs.values()):
            for kind, name in files.items():
                write_file(root / name, kind, seed)
        self.more(root)
        return root / self.table if self.table else root

    def write_foreign(self, root: Path) -> None:
        """Add files that are no runs."""
        for name in self.foreign:
            path = root / name
            if path.name.endswith((".nii", ".nii.gz")):
                save(bold_image(99, NUM_FRAMES), path)
            else:
                touch(path)


def touch(*paths: Path) -> None:
    """Make empty files and the folders that they lie in."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write_file(path: Path, kind: str, seed: int) -> None:
    """Write a BOLD series, a mask, a JSON or motion in the form that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "bold":
        save(bold_image(seed, NUM_FRAMES), path)
    elif kind == "mask":
        save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), path)
    elif kind == "sidecar":
        path.write_text('{"RepetitionTime": 0.8}')
    else:
        write_motion(path)


def write_motion(path: Path) -> None:
    """Write a head that moves by 0.1 mm along x a frame, whatever the form of the file."""
    x = np.arange(NUM_FRAMES) * 0.1
    zero = np.zeros(NUM_FRAMES)
    if path.suffix == ".par":
        np.savetxt(path, np.stack([zero, zero, zero, x, zero, zero], 1))
    elif path.suffix == ".txt":
        np.savetxt(path, np.stack([x, *[zero] * 11], 1))
    else:
        names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
        with path.open("w", newline="") as file:
            rows = csv.writer(file, delimiter="\t")
            rows.writerow(names)
            rows.writerows([value, 0, 0, 0, 0, 0] for value in x)


def _fmriprep(subject: str, task: str) -> dict[str, str]:
    func = f"sub-{subject}/ses-a/func/sub-{subject}_ses-a_task-{task}_run-1"
    space = f"{func}_space-MNI152NLin2009cAsym_res-2"
    return {
        "bold": f"{space}_desc-preproc_bold.nii.gz",
        "mask": f"{space}_desc-brain_mask.nii.gz",
        "confounds": f"{func}_desc-confounds_timeseries.tsv",
        "sidecar": f"{space}_desc-preproc_bold.json",
    }


def _xcp_d(subject: str, task: str) -> dict[str, str]:
    func = f"sub-{subject}/func/sub-{subject}_task-{task}"
    space = f"{func}_space-MNI152NLin6Asym_res-2"
    return {
        "bold": f"{space}_desc-denoised_bold.nii.gz",
        "confounds": f"{func}_motion.tsv",
        "sidecar": f"{space}_desc-denoised_bold.json",
    }


def _hcp(subject: str, run: str, ending: str, mask: str) -> dict[str, str]:
    folder = f"HCP_1200/{subject}/MNINonLinear/Results/{run}"
    return {
        "bold": f"{folder}/{run}{ending}.nii.gz",
        "mask": f"{folder}/{mask}",
        "confounds": f"{folder}/Movement_Regressors.txt",
    }


def _abcd_results(subject: str, task: str) -> dict[str, str]:
    run = f"ses-baseline_task-{task}_run-01"
    folder = f"sub-{subject}/ses-baseline/files/MNINonLinear/Results/{run}"
    return {
        "bold": f"{folder}/{run}.nii.gz",
        "mask": f"{folder}/brainmask_fs.2.0.nii.gz",
        "confounds": f"{folder}/Movement_Regressors.txt",
    }


def _abcd_nda(subject: str, task: str) -> dict[str, str]:
    ses = "ses-baselineYear1Arm1"
    run = f"derivatives/abcd-hcp-pipeline/sub-{subject}/{ses}/func/sub-{subject}_{ses}_task-{task}_run-1"
    return {"bold": f"{run}_space-MNI_bold.nii.gz", "confounds": f"{run}_desc-includingFD_motion.tsv"}


def _ukb(subject: str, kind: str = "rfMRI.ica", series: str = "filtered_func_data_clean") -> dict[str, str]:
    folder = f"{subject}_20227_2_0/fMRI"
    return {
        "bold": f"{folder}/{kind}/{series}_MNI152.nii.gz",
        "mask": f"{folder}/{kind}/mask_MNI152.nii.gz",
        "confounds": f"{folder}/{kind}/mc/prefiltered_func_data_mcf.par",
        "sidecar": f"{folder}/{kind.split('.')[0]}.json",
    }


def _flat(name: str) -> dict[str, str]:
    return {
        "bold": f"{name}.nii.gz",
        "mask": f"{name}_mask.nii.gz",
        "confounds": f"{name}_confounds.tsv",
        "sidecar": f"{name}.json",
    }


def _table(name: str) -> dict[str, str]:
    return {"bold": f"data/{name}.nii", "mask": f"data/{name} m.nii.gz", "confounds": f"data/{name}.par"}


def _write_table(root: Path) -> None:
    (root / "runs.tsv").write_text(
        "subject\tsession\ttask\trun\tbold\tmask\tconfounds\ttr_s\tspace\n"
        "007\tb\trest\t1\tdata/one.nii\tdata/one m.nii.gz\tdata/one.par\t0.8\tMNI152NLin6Asym:res-2\n"
        "sub-8\tn/a\tnback\t\tdata/two.nii\tdata/two m.nii.gz\tdata/two.par\t\tMNI152NLin6Asym:res-2\n"
    )


CASES = {
    "fmriprep": Case(
        layout="bids",
        runs={f"sub-{s}_ses-a_task-{t}_run-1": _fmriprep(s, t) for s in ("01", "02") for t in ("nback", "rest")},
        subject_folder="sub-01",
        subject="01",
        task="nback",
        foreign=(
            "dataset_description.json",
            "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1_desc-hmc_boldref.nii.gz",
            "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1_space-fsLR_den-91k_bold.dtseries.nii",
            "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1_space-MNI152NLin2009cAsym_res-2_boldref.nii.gz",
            "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "sub-01/anat/func/sub-01_task-rest_desc-preproc_bold.nii.gz",
            "rest_desc-preproc_bold.nii.gz",
        ),
    ),
    "xcp_d": Case(
        layout="bids",
        runs={f"sub-{s}_task-{t}": _xcp_d(s, t) for s in ("01", "02") for t in ("nback", "rest")},
        subject_folder="sub-01",
        subject="01",
        task="nback",
        foreign=(
            "sub-01/func/sub-01_task-rest_outliers.tsv",
            "sub-01/func/sub-01_task-rest_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii",
            "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_res-2_stat-alff_boldmap.nii.gz",
        ),
    ),
    "hcp": Case(
        layout="hcp",
        runs={
            "sub-100307_task-rest_dir-LR_run-1": _hcp(
                "100307", "rfMRI_REST1_LR", "_hp2000_clean", "brainmask_fs.2.nii.gz"
            ),
            "sub-100307_task-wm_dir-RL": _hcp("100307", "tfMRI_WM_RL", "", "brainmask_fs.2.0.nii.gz"),
            "sub-100408_task-rest_dir-RL_run-2": _hcp(
                "100408", "rfMRI_REST2_RL", "_hp2000_clean", "brainmask_fs.2.nii.gz"
            ),
        },
        subject_folder="HCP_1200/100307",
        subject="100307",
        task="wm",
        foreign=(
            "HCP_1200/100307/MNINonLinear/T1w_restore.nii.gz",
            "HCP_1200/100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_SBRef.nii.gz",
            "HCP_1200/100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Jacobian.nii.gz",
            "HCP_1200/100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_hp2000_clean_vn.nii.gz",
            "HCP_1200/100307/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_hp2000_clean.dtseries.nii",
            "HCP_1200/100307/MNINonLinear/Results/rfMRI_REST1_LR/Movement_Regressors_dt.txt",
            "HCP_1200/100307/unprocessed/3T/rfMRI_REST1_LR/100307_3T_rfMRI_REST1_LR.nii.gz",
        ),
    ),
    "hcp7t": Case(
        layout="hcp",
        runs={
            f"sub-{s}_task-{task}_acq-7T_dir-{d}_run-1": _hcp(
                s, f"{kind}_7T_{d}", "_hp2000_clean", "brainmask_fs.1.60.nii.gz"
            )
            for s in ("100610", "102311")
            for task, kind, d in (("movie", "tfMRI_MOVIE1", "AP"), ("rest", "rfMRI_REST1", "PA"))
        },
        subject_folder="HCP_1200/100610",
        subject="100610",
        task="movie",
        foreign=(
            "HCP_1200/100610/MNINonLinear/Results/tfMRI_7T_RETCCW_AP_RETCW_PA_RETEXP_AP_RETCON_PA_RETBAR1_AP_RETBAR2_PA/"
            "tfMRI_7T_RETCCW_AP_RETCW_PA_RETEXP_AP_RETCON_PA_RETBAR1_AP_RETBAR2_PA_hp2000_clean.nii.gz",
        ),
    ),
    "abcd": Case(
        layout="abcd",
        runs={
            f"sub-{s}_ses-baseline_task-{t}_run-01": _abcd_results(s, t)
            for s in ("NDARINV0001", "NDARINV0002")
            for t in ("MID", "rest")
        },
        subject_folder="sub-NDARINV0001",
        subject="NDARINV0001",
        task="MID",
        foreign=(
            "sub-NDARINV0001/ses-baseline/files/MNINonLinear/Results/task-rest_DCANBOLDProc_v4.0.0_Atlas.dtseries.nii",
            "sub-NDARINV0001/ses-baseline/files/MNINonLinear/Results/ses-baseline_task-rest_run-01/"
            "ses-baseline_task-rest_run-01_SBRef.nii.gz",
            "sub-NDARINV0001/ses-baseline/files/T1w/T1w_acpc.nii.gz",
        ),
    ),
    "abcd_nda": Case(
        layout="abcd",
        runs={
            f"sub-{s}_ses-baselineYear1Arm1_task-{t}_run-1": _abcd_nda(s, t)
            for s in ("NDARINV0001", "NDARINV0002")
            for t in ("nback", "rest")
        },
        subject_folder="derivatives/abcd-hcp-pipeline/sub-NDARINV0001",
        subject="NDARINV0001",
        task="nback",
        foreign=tuple(
            "derivatives/abcd-hcp-pipeline/sub-NDARINV0001/ses-baselineYear1Arm1/func/"
            f"sub-NDARINV0001_ses-baselineYear1Arm1_task-rest_{ending}"
            for ending in (
                "bold_desc-filtered_timeseries.dtseries.nii",
                "desc-filtered_motion_mask.mat",
                "run-1_bold_timeseries.dtseries.nii",
                "run-1_desc-filteredincludingFD_motion.tsv",
                "run-1_motion.tsv",
            )
        ),
    ),
    "ukb": Case(
        layout="ukb",
        runs={
            "sub-1000001_ses-2_task-emotion": _ukb("1000001", "tfMRI.feat", "filtered_func_data"),
            "sub-1000001_ses-2_task-rest": _ukb("1000001"),
            "sub-1000002_ses-2_task-rest": _ukb("1000002"),
        },
        subject_folder="1000001_20227_2_0",
        subject="1000001",
        task="emotion",
        foreign=(
            "1000001_20227_2_0/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz",
            "1000001_20227_2_0/fMRI/rfMRI.ica/mask.nii.gz",
            "1000001_20227_2_0/fMRI/rfMRI.ica/reg/example_func2standard_warp.nii.gz",
            "1000001_20227_2_0/fMRI/rfMRI.nii.gz",
            "1000001_20227_2_0/T1/T1_brain_to_MNI.nii.gz",
        ),
    ),
    "flat": Case(
        layout="flat",
        runs={
            "sub-7_task-nback": _flat("patients/sub-7_task-nback"),
            "sub-patients_task-rest": _flat("patients/rest"),
            "sub-scan0042": _flat("scan_0042"),
        },
        subject_folder="patients",
        subject="7",
        task="nback",
        foreign=("patients/rest.dtseries.nii", "patients/sub-7_task-nback_sbref.nii.gz", "patients/notes.txt"),
    ),
    "table": Case(
        layout="table",
        runs={"sub-007_ses-b_task-rest_run-1": _table("one"), "sub-8_task-nback": _table("two")},
        subject_folder="data",
        subject="007",
        task="nback",
        table="runs.tsv",
        more=_write_table,
        foreign=("data/three.nii",),
    ),
}


def make_link(root: Path, folder: str, elsewhere: Path) -> None:
    """Move a folder away and leave a link in its place."""
    elsewhere.mkdir(parents=True)
    target = Path(shutil.move(root / folder, elsewhere))
    (root / folder).symlink_to(target, target_is_directory=True)
