"""Recognising a layout, choosing runs, and what is said when there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_trees import CASES, touch

from ingest.layouts import Scan, Selection, scan
from ingest.record import RunRecord
from shards.errors import NothingMatchedError, UsageError

PREP = "desc-preproc_bold.nii.gz"


def look(root: Path, layout: str = "auto", **filters: object) -> Scan:
    return scan(root, root / "out", layout, Selection(**filters))


def find(root: Path, layout: str = "auto", **filters: object) -> dict[str, RunRecord]:
    return {record.run_id: record for record in look(root, layout, **filters).records}


def write(root: Path, *names: str) -> Path:
    touch(*(root / name for name in names))
    return root


def test_several_spaces_are_refused_by_name_unless_one_is_chosen(tmp_path):
    for subject in ("01", "02"):
        for space in ("MNI152NLin2009cAsym", "T1w"):
            write(tmp_path, f"sub-{subject}/func/sub-{subject}_task-rest_space-{space}_{PREP}")
    with pytest.raises(UsageError, match=r"MNI152NLin2009cAsym \(2\), T1w \(2\).*--space"):
        find(tmp_path)
    assert {record.space for record in find(tmp_path, space="T1w").values()} == {"T1w"}
    with pytest.raises(NothingMatchedError, match=r"--space fsLR: .*T1w \(2\)"):
        find(tmp_path, space="fsLR")


def test_spaces_that_differ_between_runs_are_refused_too(tmp_path):
    write(tmp_path, f"sub-1/func/sub-1_space-T1w_{PREP}", f"sub-2/func/sub-2_space-MNI_{PREP}")
    with pytest.raises(UsageError, match=r"MNI \(1\), T1w \(1\)"):
        find(tmp_path)


def test_resolutions_that_differ_between_runs_are_said(tmp_path):
    write(tmp_path, f"sub-1/func/sub-1_space-MNI_res-1_{PREP}", f"sub-2/func/sub-2_space-MNI_res-2_{PREP}")
    found = look(tmp_path)
    assert len(found.records) == 2
    assert any("MNI:res-1 (1), MNI:res-2 (1)" in note for note in found.notes)


def test_one_run_at_two_resolutions_is_refused_until_one_is_chosen(tmp_path):
    write(tmp_path, f"sub-1/func/sub-1_task-a_space-MNI_res-2_{PREP}")
    for label in ("MNI", "MNI:res-2"):
        assert list(find(tmp_path, space=label)) == ["sub-1_task-a"]
    write(tmp_path, f"sub-1/func/sub-1_task-a_space-MNI_res-1_{PREP}")
    with pytest.raises(UsageError, match=r"MNI:res-1 \(1\), MNI:res-2 \(1\)"):
        find(tmp_path, space="MNI")
    assert find(tmp_path, space="MNI:res-1")["sub-1_task-a"].space == "MNI:res-1"


def test_native_space_can_be_chosen(tmp_path):
    write(tmp_path, f"sub-1/func/sub-1_space-MNI_{PREP}", f"sub-1/func/sub-1_{PREP}")
    with pytest.raises(UsageError, match=r"native \(no space entity\) \(1\)"):
        find(tmp_path)
    assert find(tmp_path, space="native")["sub-1"].bold.name == f"sub-1_{PREP}"


def test_runs_not_in_the_space_asked_for_are_counted(tmp_path):
    write(tmp_path, f"sub-1/func/sub-1_space-T1w_{PREP}", f"sub-2/func/sub-2_space-MNI_{PREP}")
    found = look(tmp_path, space="MNI")
    assert [record.subject for record in found.records] == ["2"]
    assert any("1 runs left out: not in space MNI" in note for note in found.notes)


def test_filters_combine(tmp_path):
    for subject in ("01", "02"):
        for task in ("rest", "nback"):
            write(tmp_path, f"sub-{subject}/func/sub-{subject}_task-{task}_{PREP}")
    assert list(find(tmp_path, include=("*nback*",), exclude=("sub-02/*",))) == ["sub-01_task-nback"]
    assert any("3 of 4 series left out" in note for note in look(tmp_path, include=("*1_task-nback*",)).notes)
    with pytest.raises(NothingMatchedError, match=r"none of 4 runs.*subjects there: 01, 02.*nearest to 'sub-001': 01"):
        find(tmp_path, subjects=("sub-001",))


def test_the_layout_with_most_files_is_taken_and_the_others_are_named(tmp_path):
    CASES["abcd_nda"].write(tmp_path)
    write(tmp_path, f"derivatives/fmriprep/sub-9/func/sub-9_{PREP}")
    found = look(tmp_path)
    assert found.layout == "abcd" and len(found.records) == 4
    assert "1 file matches layout bids (take them with --layout bids)" in found.notes[0]
    assert list(find(tmp_path, "bids")) == ["sub-9"]


def test_a_layout_given_for_a_reason_says_the_reason(tmp_path):
    src = CASES["hcp"].write(tmp_path / "source")
    found = scan(src, tmp_path / "out", "hcp", Selection(), "that of the set in /x")
    assert found.notes[0] == "layout hcp: that of the set in /x"


def test_what_is_not_used_is_counted_by_kind(tmp_path):
    write(tmp_path, f"sub-1/func/sub-1_{PREP}", "sub-1/func/a.tsv", "sub-1/func/b.tsv", "sub-1/func/c.x.json", "README")
    write(tmp_path, "participants.tsv", "sub-1/func/._d.nii")
    notes = look(tmp_path).notes
    assert "4 other files not used (2 .tsv, 1 README, 1 .x.json)" in notes
    assert "1 hidden NIfTI files not used" in notes


def test_two_files_of_one_run_id_are_both_named(tmp_path):
    write(tmp_path, "a b.nii", "ab.nii.gz")
    with pytest.raises(UsageError, match=r"a b\.nii and ab\.nii\.gz would both be run sub-ab"):
        find(tmp_path)


def test_a_run_id_that_is_too_long_is_named(tmp_path):
    write(tmp_path, f"{'x' * 120}.nii")
    with pytest.raises(UsageError, match=r"at most 90 characters; rename the file"):
        find(tmp_path)


def test_empty_and_missing_folders(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(NothingMatchedError, match=r"holds no files; tried .*sub-\*.* and \*\*/\*\.nii"):
        find(tmp_path / "data")
    write(tmp_path / "data", "sub-01_bold.nii.bz2", "readme")
    with pytest.raises(NothingMatchedError, match=r"none of 2 files matches .*nearest are sub-01_bold\.nii\.bz2"):
        find(tmp_path / "data")
    with pytest.raises(UsageError, match=r"no such file or folder.*did you mean .*data"):
        find(tmp_path / "dta")


def test_source_and_output_may_not_be_one_folder(tmp_path):
    with pytest.raises(UsageError, match="is the source itself"):
        scan(tmp_path, tmp_path / "x" / "..", "auto", Selection())


def test_a_record_without_variant_from_an_older_ledger_is_read(tmp_path):
    record = RunRecord(
        subject="1", task="a", entities=(("dir", "AP"),), bold=tmp_path / "x/b.nii", mask=tmp_path / "m.nii", tr_s=2.0
    )
    values = record.to_dict(tmp_path)
    del values["variant"]
    assert RunRecord.from_dict(values, tmp_path) == record
