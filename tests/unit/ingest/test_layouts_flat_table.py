"""A flat folder and a table of runs: names, labels, bad lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_trees import touch

from ingest.layouts import Selection, scan
from shards.errors import NothingMatchedError, UsageError


def look(src: Path, layout: str = "auto"):
    return scan(src, src.parent / "shards", layout, Selection())


def test_flat_names(tmp_path):
    for name in (
        "scan_0042.nii",
        "patient7/rest run1.nii.gz",
        "sub-03_ses-2_task-nback_dir-AP_run-1_bold.nii.gz",
        "sub-04_task-x_bold_volreg.nii.gz",
        "sub-04_task-x_bold.nii.gz",
        "notes.txt",
        "._scan.nii",
    ):
        touch(tmp_path / name)
    found = look(tmp_path)
    assert [record.run_id for record in found.records] == [
        "sub-03_ses-2_task-nback_dir-AP_run-1",
        "sub-04_task-x",
        "sub-04_task-x_desc-volreg",
        "sub-patient7_task-restrun1",
        "sub-scan0042",
    ]
    assert any("1 other files not used (1 .txt)" in note for note in found.notes)
    assert any("1 hidden NIfTI" in note for note in found.notes)


@pytest.mark.parametrize(
    "name",
    ["x.dtseries.nii", "x.pconn.nii", "x_mask.nii.gz", "mask.nii", "x_T1w.nii.gz", "x_boldref.nii", "x_SBRef.nii.gz"],
)
def test_flat_leaves_out_what_is_no_series_by_its_name_and_says_so(tmp_path, name):
    touch(tmp_path / "rest.nii.gz", tmp_path / name)
    found = look(tmp_path)
    assert [record.bold.name for record in found.records] == ["rest.nii.gz"]
    assert f"1 NIfTI files are no series by their names ({name})" in found.notes


def test_flat_masks_that_belong_to_a_run_are_not_left_over(tmp_path):
    touch(tmp_path / "rest_bold.nii.gz", tmp_path / "rest_mask.nii.gz")
    found = look(tmp_path)
    assert found.records[0].mask == tmp_path / "rest_mask.nii.gz"
    assert not any("no series" in note for note in found.notes)


@pytest.mark.parametrize("name", ["t1wish.nii.gz", "masked_rest.nii", "rest_unmasked.nii.gz"])
def test_flat_takes_names_that_only_look_alike(tmp_path, name):
    touch(tmp_path / name)
    assert [record.bold.name for record in look(tmp_path).records] == [name]


@pytest.mark.parametrize("ending", ["_desc-confounds_timeseries.tsv", "_confounds.tsv", "_motion.tsv", ".par"])
def test_flat_confounds_go_by_the_name_of_the_series(tmp_path, ending):
    touch(tmp_path / "sub-1_task-a_bold.nii.gz", tmp_path / f"sub-1_task-a{ending}", tmp_path / f"sub-1_task-b{ending}")
    (record,) = look(tmp_path).records
    assert record.confounds == tmp_path / f"sub-1_task-a{ending}"


def test_table_labels_stay_text_and_absent_cells_are_absent(tmp_path):
    table = tmp_path / "runs.tsv"
    table.write_text(
        "subject\ttask\tbold\tmask\ttr_s\tspace\n"
        "sub-0007\trest\tx/a.nii.gz\tn/a\t0.72\tMNI\n"
        "\n"
        "B_2\t\tb.nii\tm.nii\t\tMNI\n"
    )
    one, two = look(table).records
    assert (one.run_id, one.bold, one.mask, one.tr_s) == ("sub-0007_task-rest", tmp_path / "x/a.nii.gz", None, 0.72)
    assert (two.run_id, two.mask, two.tr_s, two.space) == ("sub-B_2", tmp_path / "m.nii", None, "MNI")


def test_table_with_a_byte_order_mark_and_absolute_paths(tmp_path):
    table = tmp_path / "runs.tsv"
    table.write_text(f"subject\tbold\n01\t{tmp_path}/far/away.nii.gz\n", encoding="utf-8-sig")
    (record,) = look(table).records
    assert record.bold == tmp_path / "far/away.nii.gz"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject\trun\n1\t2\n", "required are subject, bold"),
        ("subject,bold\n1,x.nii\n", "columns are subject,bold; .*separated by tabs"),
        ("subject\tbold\tsex\n1\ta\tF\n", "columns are subject, bold, sex"),
        ("subject\tbold\n1\n", "line 2: 1 cells"),
        ("subject\tbold\na/b\tx.nii\n", "line 2: subject is 'a/b'"),
        ("subject\tbold\n1\t\n", "line 2: no bold file"),
        ("subject\tbold\ttr_s\n1\tx\t-2\n", "line 2: tr_s is '-2'"),
        ("subject\tbold\ttr_s\n1\tx\tfast\n", "line 2: tr_s is 'fast'"),
        ('subject\tbold\n1\tx\n\n2\t"y\n3\tz\n', "line 5: unexpected end of data"),
        (f"subject\tbold\n1\t{200_000 * 'x'}\n", "line 2: field larger than field limit"),
        ("subject\tbold\n\n1\tx\0\n", "line 3: a cell holds a nul byte"),
    ],
)
def test_bad_tables_name_the_line(tmp_path, text, words):
    (tmp_path / "runs.tsv").write_text(text)
    with pytest.raises(UsageError, match=words):
        look(tmp_path / "runs.tsv")


def test_a_table_without_rows_has_nothing(tmp_path):
    (tmp_path / "runs.tsv").write_text("subject\tbold\n")
    with pytest.raises(NothingMatchedError, match="no rows below the header"):
        look(tmp_path / "runs.tsv")


def test_a_folder_is_no_table_and_a_file_no_folder(tmp_path):
    touch(tmp_path / "data/x.nii")
    with pytest.raises(UsageError, match="a table is a file, the other layouts are folders"):
        look(tmp_path / "data", "table")
    with pytest.raises(UsageError, match="a table is a file, the other layouts are folders"):
        look(tmp_path / "data/x.nii", "bids")
