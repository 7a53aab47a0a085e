"""BIDS derivatives: which files of fMRIPrep and XCP-D belong together, and which version is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_trees import touch

from ingest.layouts import Scan, Selection, scan
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError

FUNC = "sub-01/ses-a/func"
RUN = f"{FUNC}/sub-01_ses-a_task-rest"
MNI = "space-MNI152NLin6Asym_res-2"


def look(root: Path, *names: str, **filters: object) -> Scan:
    touch(*(root / name for name in names))
    return scan(root, root / "out", "auto", Selection(**filters))


def only(root: Path, *names: str, **filters: object) -> RunRecord:
    (record,) = look(root, *names, **filters).records
    return record


def test_mask_and_sidecar_share_space_cohort_and_resolution_confounds_have_none(tmp_path):
    space = "_space-MNIInfant_cohort-1_res-2"
    record = only(
        tmp_path,
        f"{RUN}_run-1{space}_desc-preproc_bold.nii.gz",
        f"{RUN}_run-1{space}_desc-preproc_bold.json",
        f"{RUN}_run-1{space}_desc-brain_mask.nii.gz",
        f"{RUN}_run-1_space-MNIInfant_cohort-2_res-2_desc-brain_mask.nii.gz",
        f"{RUN}_run-1_space-T1w_desc-brain_mask.nii.gz",
        f"{RUN}_run-2_desc-confounds_timeseries.tsv",
        f"{RUN}_run-1_desc-confounds_timeseries.tsv",
    )
    assert record.space == "MNIInfant:cohort-1:res-2"
    assert record.mask == tmp_path / f"{RUN}_run-1{space}_desc-brain_mask.nii.gz"
    assert record.confounds == tmp_path / f"{RUN}_run-1_desc-confounds_timeseries.tsv"
    assert record.sidecar == tmp_path / f"{RUN}_run-1{space}_desc-preproc_bold.json"


def test_a_mask_of_another_resolution_is_not_taken(tmp_path):
    names = (f"{RUN}_{MNI}_desc-preproc_bold.nii.gz", f"{RUN}_space-MNI152NLin6Asym_desc-brain_mask.nii.gz")
    assert only(tmp_path, *names).mask is None


def test_every_entity_that_tells_runs_apart_is_in_the_run_id(tmp_path):
    record = only(tmp_path, f"{RUN}_acq-mb_rec-a_dir-PA_run-02_echo-2_part-mag_{MNI}_desc-preproc_bold.nii.gz")
    assert record.run_id == "sub-01_ses-a_task-rest_acq-mb_rec-a_dir-PA_run-02_echo-2_part-mag"


def test_a_space_name_with_plus_is_kept_whole(tmp_path):
    assert only(tmp_path, f"{RUN}_space-MNIInfant+1_desc-preproc_bold.nii.gz").space == "MNIInfant+1"


@pytest.mark.parametrize("dropped", ["_echo-2", "_echo-2_part-mag"])
def test_confounds_of_a_multi_echo_run_have_no_echo(tmp_path, dropped):
    record = only(tmp_path, f"{RUN}{dropped}_desc-preproc_bold.nii.gz", f"{RUN}_desc-confounds_timeseries.tsv")
    assert record.confounds == tmp_path / f"{RUN}_desc-confounds_timeseries.tsv"


def test_confounds_under_their_older_name_are_found(tmp_path):
    record = only(tmp_path, f"{RUN}_{MNI}_desc-preproc_bold.nii.gz", f"{RUN}_desc-confounds_regressors.tsv")
    assert record.confounds == tmp_path / f"{RUN}_desc-confounds_regressors.tsv"


def test_single_echoes_give_way_to_their_combination_and_can_be_asked_for(tmp_path):
    names = [f"{RUN}{echo}_desc-preproc_bold.nii.gz" for echo in ("", "_echo-1", "_echo-2")]
    found = look(tmp_path, *names)
    assert [record.run_id for record in found.records] == ["sub-01_ses-a_task-rest"]
    assert any("2 single echoes not taken" in note for note in found.notes)
    assert only(tmp_path, include=("*_echo-2_*",)).run_id.endswith("echo-2")


def test_fmriprep_and_xcp_d_are_not_mixed_unless_one_is_chosen(tmp_path):
    preproc, denoised = (f"{RUN}_{MNI}_desc-{desc}_bold.nii.gz" for desc in ("preproc", "denoised"))
    with pytest.raises(UsageError, match=r"1 denoised, 1 preproc.*--include '\*_desc-preproc_bold"):
        look(tmp_path, f"fmriprep/{preproc}", f"xcp_d/{denoised}")
    assert only(tmp_path, include=("*_desc-denoised_bold.nii*",)).variant == "denoised"
    assert only(tmp_path, include=("*_desc-preproc_bold.nii*",)).variant == "preproc"


def test_xcp_d_takes_the_masks_of_fmriprep_in_the_same_source(tmp_path):
    record = only(
        tmp_path,
        f"fmriprep/{RUN}_{MNI}_desc-preproc_bold.nii.gz",
        f"fmriprep/{RUN}_{MNI}_desc-brain_mask.nii.gz",
        f"fmriprep/{RUN}_desc-confounds_timeseries.tsv",
        f"xcp_d/{RUN}_{MNI}_desc-denoised_bold.nii.gz",
        f"xcp_d/{RUN}_motion.tsv",
        include=("xcp_d/*",),
    )
    assert record.mask == tmp_path / f"fmriprep/{RUN}_{MNI}_desc-brain_mask.nii.gz"
    assert record.confounds == tmp_path / f"xcp_d/{RUN}_motion.tsv"


def test_masks_of_two_fmripreps_are_none_for_xcp_d(tmp_path):
    masks = [f"{version}/{RUN}_{MNI}_desc-brain_mask.nii.gz" for version in ("fmriprep-20", "fmriprep-23")]
    assert only(tmp_path, f"xcp_d/{RUN}_{MNI}_desc-denoised_bold.nii.gz", *masks).mask is None


def test_xcp_d_without_masks_asks_for_one(tmp_path):
    found = look(tmp_path, f"{RUN}_{MNI}_desc-denoised_bold.nii.gz")
    assert any("--mask is needed" in note for note in found.notes)


def test_the_older_motion_file_of_xcp_d_is_found_and_outliers_are_not_confounds(tmp_path):
    names = (f"{RUN}_desc-filtered_motion.tsv", f"{RUN}_outliers.tsv", f"{RUN}_desc-preproc_design.tsv")
    record = only(tmp_path, f"{RUN}_{MNI}_desc-denoised_bold.nii.gz", *names)
    assert record.confounds == tmp_path / names[0]


def test_of_xcp_ds_versions_the_whole_unsmoothed_timeline_is_taken_and_that_is_said(tmp_path):
    names = [f"{RUN}_{MNI}_desc-{desc}_bold.nii.gz" for desc in ("denoisedSmoothed", "denoised", "interpolated")]
    found = look(tmp_path, *names[:2])
    assert [record.variant for record in found.records] == ["denoised"]
    assert any("1 denoised; also there and not taken: 1 denoisedSmoothed" in note for note in found.notes)
    assert only(tmp_path, *names).variant == "interpolated"
    assert only(tmp_path, include=("*Smoothed*",)).variant == "denoisedSmoothed"


@pytest.mark.parametrize("singles", [("_run-1", "_run-2"), ("_dir-AP", "_dir-PA"), ("_dir-AP_run-1", "_dir-PA_run-1")])
def test_concatenated_series_of_xcp_d_give_way_to_their_runs(tmp_path, singles):
    names = [f"{RUN}{single}_{MNI}_desc-denoised_bold.nii.gz" for single in ("", *singles)]
    found = look(tmp_path, *names)
    assert [record.run_id for record in found.records] == [f"sub-01_ses-a_task-rest{single}" for single in singles]
    assert any("1 concatenated series not taken" in note for note in found.notes)


def test_a_run_of_fmriprep_without_a_number_stays_beside_numbered_ones(tmp_path):
    found = look(tmp_path, *(f"{RUN}{run}_{MNI}_desc-preproc_bold.nii.gz" for run in ("", "_run-2")))
    assert len(found.records) == 2


def test_native_space_throughout_is_said(tmp_path):
    found = look(tmp_path, f"{RUN}_desc-preproc_bold.nii.gz")
    assert any("its own EPI space" in note and "--output-spaces" in note for note in found.notes)


def test_the_source_may_be_one_subject_or_its_func_folder(tmp_path):
    touch(tmp_path / f"{RUN}_desc-preproc_bold.nii.gz")
    for src in (tmp_path / "sub-01", tmp_path / FUNC):
        (record,) = scan(src, tmp_path / "out", "auto", Selection()).records
        assert record.run_id == "sub-01_ses-a_task-rest"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([f"{RUN}_bold.nii.gz", f"{RUN}_bold.json"], r"none of 1 images in func/ .*raw data.*--layout flat"),
        (
            [f"{RUN}_desc-hmc_boldref.nii.gz", f"{RUN}_from-orig_to-boldref_mode-image_desc-hmc_xfm.txt"],
            r"--level minimal or resampling .*--level full",
        ),
        (
            [f"{RUN}_space-fsLR_den-91k_bold.dtseries.nii", f"{RUN}_desc-confounds_timeseries.tsv"],
            r"only surface and CIFTI series \(1 like .*dtseries\.nii\).*--output-spaces",
        ),
        ([f"{RUN}_hemi-L_space-fsaverage5_bold.func.gii"], r"only surface and CIFTI series"),
        ([f"{RUN}_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii"], r"--file-format nifti"),
    ],
)
@pytest.mark.parametrize("layout", ["auto", "bids"])
def test_a_folder_without_volumes_in_a_space_is_explained(tmp_path, layout, names, words):
    touch(*(tmp_path / name for name in names))
    with pytest.raises(NothingMatchedError, match=words):
        scan(tmp_path, tmp_path / "out", layout, Selection())


def test_raw_data_with_derivatives_beside_them_are_read_from_the_derivatives(tmp_path):
    record = only(tmp_path, f"{RUN}_bold.nii.gz", f"derivatives/fmriprep/{RUN}_{MNI}_desc-preproc_bold.nii.gz")
    assert record.bold == tmp_path / f"derivatives/fmriprep/{RUN}_{MNI}_desc-preproc_bold.nii.gz"


def test_one_run_in_two_derivatives_is_refused_with_both_names(tmp_path):
    bold = f"{RUN}_{MNI}_desc-preproc_bold.nii.gz"
    with pytest.raises(UsageError, match=r"fmriprep-20/.* and fmriprep-23/.* would both be run .*--exclude"):
        look(tmp_path, f"fmriprep-20/{bold}", f"fmriprep-23/{bold}")
