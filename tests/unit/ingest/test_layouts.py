"""Each layout on a tree that the test writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.layouts import Selection, scan
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def find(root: Path, layout: str = "auto", **selection: object) -> dict[str, RunRecord]:
    found = scan(root, root / "out", layout, Selection(**selection))
    return {record.run_id: record for record in found.records}


FUNC = "sub-01/ses-a/func/sub-01_ses-a_task-rest"


def test_bids_run_with_mask_confounds_and_sidecar(tmp_path):
    space = "_space-MNI152NLin6Asym_res-2"
    touch(
        tmp_path,
        f"{FUNC}_run-1{space}_desc-preproc_bold.nii.gz",
        f"{FUNC}_run-1{space}_desc-preproc_bold.json",
        f"{FUNC}_run-1{space}_desc-brain_mask.nii.gz",
        f"{FUNC}_run-1_space-T1w_desc-brain_mask.nii.gz",
        f"{FUNC}_run-1_desc-confounds_timeseries.tsv",
        "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        f"{FUNC}_run-1_desc-hmc_boldref.nii.gz",
    )
    found = scan(tmp_path, tmp_path / "out", "auto", Selection())
    (record,) = found.records
    assert found.layout == "bids" and "1 files match" in found.notes[0]
    assert record.run_id == "sub-01_ses-a_task-rest_run-1"
    assert record.space == "MNI152NLin6Asym:res-2"
    assert record.mask is not None and record.mask.name == f"sub-01_ses-a_task-rest_run-1{space}_desc-brain_mask.nii.gz"
    assert record.confounds is not None and record.confounds.name.endswith("run-1_desc-confounds_timeseries.tsv")
    assert record.sidecar is not None


def test_bids_multi_echo_uses_the_confounds_without_echo(tmp_path):
    touch(tmp_path, f"{FUNC}_echo-2_desc-preproc_bold.nii.gz", f"{FUNC}_desc-confounds_timeseries.tsv")
    (record,) = find(tmp_path).values()
    assert record.run_id == "sub-01_ses-a_task-rest_echo-2" and record.confounds is not None


def test_several_spaces_are_refused_by_name_unless_one_is_chosen(tmp_path):
    for subject in ("01", "02"):
        for space in ("MNI152NLin2009cAsym", "T1w"):
            touch(tmp_path, f"sub-{subject}/func/sub-{subject}_task-rest_space-{space}_desc-preproc_bold.nii.gz")
    with pytest.raises(UsageError, match=r"MNI152NLin2009cAsym \(2\), T1w \(2\).*--space"):
        find(tmp_path)
    assert {record.space for record in find(tmp_path, space="T1w").values()} == {"T1w"}
    with pytest.raises(NothingMatchedError, match=r"--space fsLR: .*T1w \(2\)"):
        find(tmp_path, space="fsLR")


def test_space_is_found_with_and_without_its_resolution(tmp_path):
    touch(tmp_path, "sub-1/func/sub-1_task-a_space-MNI_res-2_desc-preproc_bold.nii")
    for label in ("MNI", "MNI:res-2"):
        assert list(find(tmp_path, space=label)) == ["sub-1_task-a"]
    touch(tmp_path, "sub-1/func/sub-1_task-a_space-MNI_res-1_desc-preproc_bold.nii")
    with pytest.raises(UsageError, match="would both be run sub-1_task-a"):
        find(tmp_path, space="MNI")


def test_runs_not_in_the_space_asked_for_are_counted(tmp_path):
    touch(tmp_path, "sub-1/func/sub-1_space-T1w_desc-preproc_bold.nii")
    touch(tmp_path, "sub-2/func/sub-2_space-MNI_desc-preproc_bold.nii")
    found = scan(tmp_path, tmp_path / "out", "auto", Selection(space="MNI"))
    assert [record.subject for record in found.records] == ["2"]
    assert any("1 runs left out: not in space MNI" in note for note in found.notes)


def test_bids_without_preprocessed_bold_is_explained(tmp_path):
    touch(tmp_path, "sub-01/func/sub-01_task-rest_bold.nii.gz")
    with pytest.raises(NothingMatchedError, match="--level minimal"):
        find(tmp_path)
    assert list(find(tmp_path, "flat")) == ["sub-01_task-rest"]


def test_flat_names(tmp_path):
    touch(
        tmp_path,
        "scan_0042.nii",
        "patient7/rest run1.nii.gz",
        "sub-03_ses-2_task-nback_dir-AP_run-1_bold.nii.gz",
        "sub-04_task-x_bold_volreg.nii.gz",
        "sub-04_task-x_bold.nii.gz",
        "notes.txt",
        "._scan.nii",
        "out/mask.nii.gz",
    )
    found = scan(tmp_path, tmp_path / "out", "auto", Selection())
    assert [record.run_id for record in found.records] == [
        "sub-03_ses-2_task-nback_dir-AP_run-1",
        "sub-04_task-x",
        "sub-04_task-x_desc-volreg",
        "sub-patient7_task-restrun1",
        "sub-scan0042",
    ]
    assert any("1 other files not used (1 .txt)" in note for note in found.notes)
    assert any("1 hidden NIfTI" in note for note in found.notes)


def test_two_files_of_one_run_id_are_both_named(tmp_path):
    touch(tmp_path, "a b.nii", "ab.nii.gz")
    with pytest.raises(UsageError, match=r"a b\.nii and ab\.nii\.gz would both be run sub-ab"):
        find(tmp_path)


def test_linked_folders_are_entered_once(tmp_path):
    touch(tmp_path, "real/sub-01/func/sub-01_desc-preproc_bold.nii")
    root = tmp_path / "view"
    root.mkdir()
    (root / "sub-01").symlink_to(tmp_path / "real/sub-01")
    (root / "sub-01/func/loop").symlink_to(root / "sub-01")
    assert list(find(root)) == ["sub-01"]


def test_filters(tmp_path):
    for subject in ("01", "02"):
        for task in ("rest", "nback"):
            touch(tmp_path, f"sub-{subject}/func/sub-{subject}_task-{task}_desc-preproc_bold.nii.gz")
    assert list(find(tmp_path, subjects=("sub-01",))) == ["sub-01_task-nback", "sub-01_task-rest"]
    assert list(find(tmp_path, tasks=("rest",))) == ["sub-01_task-rest", "sub-02_task-rest"]
    assert list(find(tmp_path, include=("*nback*",), exclude=("sub-02/*",))) == ["sub-01_task-nback"]
    with pytest.raises(NothingMatchedError, match=r"none of 4 runs.*subjects there: 01, 02.*nearest to 'sub-001': 01"):
        find(tmp_path, subjects=("sub-001",))


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(NothingMatchedError, match=r"holds no files; tried sub-\*"):
        find(tmp_path / "data")
    touch(tmp_path / "data", "sub-01_bold.nii.bz2", "readme")
    with pytest.raises(NothingMatchedError, match=r"none of 2 files matches .*nearest are sub-01_bold\.nii\.bz2"):
        find(tmp_path / "data")
    with pytest.raises(UsageError, match=r"no such file or folder.*did you mean .*data"):
        find(tmp_path / "dta")


def test_table(tmp_path):
    table = tmp_path / "runs.tsv"
    table.write_text(
        "subject\ttask\tbold\tmask\ttr_s\nsub-0007\trest\tx/a.nii.gz\tn/a\t0.72\n\nB_2\t\tb.nii\tm.nii\t\n"
    )
    one, two = scan(table, tmp_path / "out", "auto", Selection()).records
    assert (one.run_id, one.bold, one.mask, one.tr_s) == ("sub-0007_task-rest", tmp_path / "x/a.nii.gz", None, 0.72)
    assert (two.run_id, two.mask, two.tr_s) == ("sub-B_2", tmp_path / "m.nii", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject\trun\n1\t2\n", "required are subject, bold"),
        ("subject\tbold\tsex\n1\ta\tF\n", "columns are subject, bold, sex"),
        ("subject\tbold\n1\n", "line 2: 1 cells"),
        ("subject\tbold\na/b\tx.nii\n", "line 2: subject is 'a/b'"),
        ("subject\tbold\n1\t\n", "line 2: no bold file"),
        ("subject\tbold\ttr_s\n1\tx\t-2\n", "line 2: tr_s is '-2'"),
        ("subject\tbold\ttr_s\n1\tx\tfast\n", "line 2: tr_s is 'fast'"),
    ],
)
def test_bad_tables_name_the_line(tmp_path, text, words):
    (tmp_path / "runs.tsv").write_text(text)
    with pytest.raises(UsageError, match=words):
        find(tmp_path / "runs.tsv")


def test_record_survives_the_ledger(tmp_path):
    record = RunRecord(
        subject="1", task="a", entities=(("dir", "AP"),), bold=tmp_path / "x/b.nii", mask=tmp_path / "m.nii", tr_s=2.0
    )
    assert RunRecord.from_dict(record.to_dict(tmp_path), tmp_path) == record
