"""HCP-YA, ABCD-BIDS and UK Biobank: the traps of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_trees import touch

from ingest.layouts import Scan, Selection, scan
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError

RESULTS = "100307/MNINonLinear/Results"
REST = f"{RESULTS}/rfMRI_REST1_LR"
NDA = "sub-NDARINV1/ses-baselineYear1Arm1/func/sub-NDARINV1_ses-baselineYear1Arm1_task-rest"
ICA = "1000001_20227_2_0/fMRI/rfMRI.ica"


def look(root: Path, *names: str, **filters: object) -> Scan:
    touch(*(root / name for name in names))
    return scan(root, root / "out", "auto", Selection(**filters))


def only(root: Path, *names: str, **filters: object) -> RunRecord:
    (record,) = look(root, *names, **filters).records
    return record


VERSIONS = [
    "_hp2000_clean_rclean_tclean",
    "_hp0_clean_rclean_tclean",
    "_hp2000_clean_rclean",
    "_hp0_clean_rclean",
    "_hp2000_clean",
    "_hp0_clean",
    "",
]


@pytest.mark.parametrize("first", range(len(VERSIONS) - 1))
def test_hcp_takes_the_most_cleaned_version_and_says_so(tmp_path, first):
    found = look(tmp_path, *(f"{REST}/rfMRI_REST1_LR{ending}.nii.gz" for ending in VERSIONS[first:]))
    (record,) = found.records
    assert record.bold.name == f"rfMRI_REST1_LR{VERSIONS[first]}.nii.gz"
    assert any(note.startswith(f"versions taken: 1 {VERSIONS[first][1:]}; also there") for note in found.notes)


def test_hcp_takes_another_version_when_asked(tmp_path):
    names = [f"{REST}/rfMRI_REST1_LR{ending}.nii.gz" for ending in VERSIONS]
    assert only(tmp_path, *names, include=("*_LR.nii.gz",)).variant == "minimal"
    assert only(tmp_path, include=("*_hp2000_clean.nii.gz",)).variant == "hp2000_clean"


def test_hcp_says_when_runs_are_not_of_one_version(tmp_path):
    found = look(tmp_path, f"{REST}/rfMRI_REST1_LR_hp2000_clean.nii.gz", f"{RESULTS}/tfMRI_WM_LR/tfMRI_WM_LR.nii.gz")
    assert len(found.records) == 2
    assert any("versions taken: 1 hp2000_clean, 1 minimal;" in note for note in found.notes)


@pytest.mark.parametrize(
    ("run", "run_id", "space"),
    [
        ("rfMRI_REST2_RL", "sub-100307_task-rest_dir-RL_run-2", "MNI152NLin6Asym:res-2"),
        ("tfMRI_LANGUAGE_LR", "sub-100307_task-language_dir-LR", "MNI152NLin6Asym:res-2"),
        ("rfMRI_REST4_7T_AP", "sub-100307_task-rest_acq-7T_dir-AP_run-4", "MNI152NLin6Asym:res-1p6"),
        ("tfMRI_RETBAR1_7T_AP", "sub-100307_task-retbar_acq-7T_dir-AP_run-1", "MNI152NLin6Asym:res-1p6"),
        ("tfMRI_RETCCW_7T_AP", "sub-100307_task-retccw_acq-7T_dir-AP", "MNI152NLin6Asym:res-1p6"),
    ],
)
def test_hcp_names_become_entities(tmp_path, run, run_id, space):
    record = only(tmp_path, f"{RESULTS}/{run}/{run}_hp2000_clean.nii.gz")
    assert (record.run_id, record.space) == (run_id, space)


def test_hcp_takes_the_mask_on_the_runs_grid_before_the_anatomical_one(tmp_path):
    names = [f"{REST}/{name}" for name in ("rfMRI_REST1_LR.nii.gz", "brainmask_fs.nii.gz", "brainmask_fs.2.0.nii.gz")]
    assert only(tmp_path, *names).mask == tmp_path / REST / "brainmask_fs.2.0.nii.gz"


def test_hcp_leaves_out_series_of_several_runs_and_folders_of_no_subject(tmp_path):
    merged = "tfMRI_7T_RETCCW_AP_RETCW_PA_RETEXP_AP_RETCON_PA_RETBAR1_AP_RETBAR2_PA"
    found = look(
        tmp_path,
        f"{REST}/rfMRI_REST1_LR.nii.gz",
        f"{RESULTS}/{merged}/{merged}_hp2000_clean.nii.gz",
        f"{RESULTS}/rfMRI_REST/rfMRI_REST_hp0_clean.nii.gz",
        "GroupAverage/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR.nii.gz",
    )
    assert [record.run_id for record in found.records] == ["sub-100307_task-rest_dir-LR_run-1"]
    assert any(note.startswith("2 folders of several runs in one not used (100307/") for note in found.notes)
    assert any("1 folders not of a subject" in note and "GroupAverage" in note for note in found.notes)


def test_hcp_lifespan_visits_are_sessions_of_one_subject(tmp_path):
    run = "MNINonLinear/Results/rfMRI_REST1_AP/rfMRI_REST1_AP_hp0_clean.nii.gz"
    found = look(tmp_path, f"HCA6002236_V1_MR/{run}", f"HCA6002236_V2_MR/{run}")
    assert [(record.subject, record.session) for record in found.records] == [
        ("HCA6002236", "V1"),
        ("HCA6002236", "V2"),
    ]


@pytest.mark.parametrize("src", ["", "HCP_1200", "HCP_1200/100307", "HCP_1200/100307/MNINonLinear/Results"])
def test_hcp_source_may_be_any_folder_above_the_runs(tmp_path, src):
    touch(tmp_path / "HCP_1200" / REST / "rfMRI_REST1_LR.nii.gz")
    (record,) = scan(tmp_path / src, tmp_path / "out", "auto", Selection()).records
    assert record.run_id == "sub-100307_task-rest_dir-LR_run-1"


def test_hcp_cifti_without_volumes_is_explained(tmp_path):
    with pytest.raises(NothingMatchedError, match=r"CIFTI only \(1 like .*_hp2000_clean\.nii\.gz"):
        look(tmp_path, f"{REST}/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii")


def test_abcd_falls_back_to_the_motion_file_without_displacement_and_never_to_a_filtered_one(tmp_path):
    names = [f"{NDA}_run-1_{name}" for name in ("space-MNI_bold.nii.gz", "motion.tsv", "desc-filtered_motion.tsv")]
    assert only(tmp_path, *names).confounds == tmp_path / names[1]
    (tmp_path / names[1]).unlink()
    assert only(tmp_path).confounds is None


def test_abcd_takes_either_mask_of_the_results_folder(tmp_path):
    run = "ses-1_task-MID_run-2"
    folder = f"sub-A/ses-1/files/MNINonLinear/Results/{run}"
    record = only(tmp_path, f"{folder}/{run}.nii.gz", f"{folder}/brainmask_fs.nii.gz")
    assert record.run_id == "sub-A_ses-1_task-MID_run-2"
    assert record.mask == tmp_path / folder / "brainmask_fs.nii.gz"


def test_abcd_both_forms_of_one_run_are_refused(tmp_path):
    run = "ses-baselineYear1Arm1_task-rest_run-1"
    results = f"sub-NDARINV1/ses-baselineYear1Arm1/files/MNINonLinear/Results/{run}/{run}.nii.gz"
    with pytest.raises(UsageError, match="would both be run"):
        look(tmp_path, f"{NDA}_run-1_space-MNI_bold.nii.gz", results)


def test_abcd_cifti_without_volumes_is_explained(tmp_path):
    with pytest.raises(NothingMatchedError, match=r"ABCD-BIDS with CIFTI only .*_space-MNI_bold\.nii\.gz"):
        look(tmp_path, f"{NDA}_bold_desc-filtered_timeseries.dtseries.nii")


@pytest.mark.parametrize("layout", ["auto", "ukb"])
def test_ukb_in_native_space_is_refused_with_reason_and_way_out(tmp_path, layout):
    touch(tmp_path / ICA / "filtered_func_data_clean.nii.gz", tmp_path / ICA / "mask.nii.gz")
    with pytest.raises(NothingMatchedError, match=r"native EPI space \(1 runs.*another place.*applywarp.*XCP-D"):
        scan(tmp_path, tmp_path / "out", layout, Selection())


@pytest.mark.parametrize(
    ("bold", "mask"),
    [
        ("filtered_func_data_clean_MNI152.nii.gz", "mask_MNI152.nii.gz"),
        ("filtered_func_data_clean_MNI152_2mm.nii.gz", "mask_MNI152_2mm.nii.gz"),
        ("filtered_func_data_clean_standard.nii.gz", "mask_standard.nii.gz"),
        ("filtered_func_data_clean_std.nii", "mask_std.nii"),
        ("reg/filtered_func_data_clean_standard.nii.gz", "reg/mask_standard.nii.gz"),
        ("reg_standard/filtered_func_data_clean.nii.gz", "reg_standard/mask.nii.gz"),
    ],
)
def test_ukb_warped_series_are_taken_with_the_mask_of_their_own_space(tmp_path, bold, mask):
    par, sidecar = f"{ICA}/mc/prefiltered_func_data_mcf.par", "1000001_20227_2_0/fMRI/rfMRI.json"
    native = [f"{ICA}/{name}" for name in ("filtered_func_data_clean.nii.gz", "mask.nii.gz")]
    record = only(tmp_path, *native, f"{ICA}/{bold}", par, sidecar)
    assert record.bold == tmp_path / ICA / bold and record.mask is None
    assert (record.confounds, record.sidecar) == (tmp_path / par, tmp_path / sidecar)
    assert only(tmp_path, f"{ICA}/{mask}").mask == tmp_path / ICA / mask


def test_ukb_runs_that_are_not_warped_are_counted(tmp_path):
    native = "1000002_20227_2_0/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz"
    found = look(tmp_path, f"{ICA}/filtered_func_data_clean_MNI152.nii.gz", native)
    assert [record.subject for record in found.records] == ["1000001"]
    assert f"1 runs in native EPI space not used ({native}): warp them first" in found.notes


@pytest.mark.parametrize(("folder", "session"), [("1000001_20227_3_0", "3"), ("1000001_2_2_0", "2")])
def test_ukb_session_is_the_imaging_visit(tmp_path, folder, session):
    record = only(tmp_path, f"{folder}/fMRI/rfMRI.ica/filtered_func_data_clean_MNI152.nii.gz")
    assert (record.subject, record.session, record.task) == ("1000001", session, "rest")


def test_ukb_a_map_of_sd_is_no_series(tmp_path):
    names = ("filtered_func_data_clean_MNI152.nii.gz", "filtered_func_data_clean_stdmask.nii.gz")
    assert only(tmp_path, *(f"{ICA}/{name}" for name in names)).bold.name == names[0]


def test_ukb_two_warps_of_one_run_are_refused_by_name(tmp_path):
    names = [f"{ICA}/filtered_func_data_clean_MNI152{ending}.nii.gz" for ending in ("", "_4mm")]
    with pytest.raises(UsageError, match=r"several spaces: MNI152 \(1\), MNI152_4mm \(1\); choose one with --space"):
        look(tmp_path, *names)
    assert only(tmp_path, space="MNI152_4mm").bold.name.endswith("_4mm.nii.gz")
