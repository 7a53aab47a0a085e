"""Listing folders: links, loops, what is not entered, what cannot be listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from layout_trees import touch

from ingest.layouts import Selection, scan
from ingest.layouts.tree import list_tree
from shards.errors import UsageError

BOLD = "sub-01_desc-preproc_bold.nii"


def listed(root: Path, **options: bool) -> list[str]:
    tree = list_tree(root, root / "out", **options)
    return [f"{folder.where}/{name}".lstrip("/") for folder in tree.folders for name in folder.names]


def test_files_are_listed_in_order_with_their_folders(tmp_path):
    touch(tmp_path / "b/2", tmp_path / "b/1", tmp_path / "a/z/3", tmp_path / "c")
    assert listed(tmp_path) == ["c", "a/z/3", "b/1", "b/2"]


def test_linked_folders_are_entered_once(tmp_path):
    touch(tmp_path / f"real/sub-01/func/{BOLD}")
    root = tmp_path / "view"
    root.mkdir()
    (root / "sub-01").symlink_to(tmp_path / "real/sub-01")
    (root / "sub-01/func/loop").symlink_to(root / "sub-01")
    (root / "sub-01/func/up").symlink_to(tmp_path)
    assert listed(root) == [f"sub-01/func/{BOLD}"]


def test_a_real_folder_goes_before_a_link_to_it(tmp_path):
    touch(tmp_path / "b_real/file")
    (tmp_path / "a_link").symlink_to(tmp_path / "b_real")
    assert listed(tmp_path) == ["b_real/file"]


def test_a_link_to_itself_is_a_file_like_any_other(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "gone")
    assert listed(tmp_path) == ["dangling.nii.gz", "self"]


def test_linked_files_are_listed(tmp_path):
    touch(tmp_path / "annex/x1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rest.nii.gz").symlink_to(tmp_path / "annex/x1")
    assert listed(tmp_path / "data") == ["rest.nii.gz"]


def test_a_pipe_is_listed_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "rest.nii.gz")
    assert listed(tmp_path) == ["rest.nii.gz"]


@pytest.mark.parametrize(
    "folder",
    [
        "sub-01/anat",
        "sub-01/figures",
        "sub-01/ses-1/fmap",
        "HCP_1200/100307/T1w/Results",
        "HCP_1200/100307/MNINonLinear/Native",
        "HCP_1200/100307/MNINonLinear/Results/rfMRI_REST1_LR/RibbonVolumeToSurfaceMapping",
        "freesurfer/sub-01/mri",
        "1000001_20227_2_0/T1",
        "1000001_20227_2_0/fMRI/rfMRI.ica/filtered_func_data.ica",
    ],
)
def test_folders_in_which_no_layout_has_runs_are_not_entered_but_counted(tmp_path, folder):
    touch(tmp_path / folder / "x.nii.gz", tmp_path / "HCP_1200/100307/MNINonLinear/Results/x")
    for name in ("mri", "surf", "label"):
        touch(tmp_path / f"freesurfer/sub-01/{name}/y")
    touch(tmp_path / "1000001_20227_2_0/fMRI/z")
    assert f"{folder}/x.nii.gz" not in listed(tmp_path)
    assert f"{folder}/x.nii.gz" in listed(tmp_path, everywhere=True)
    assert list_tree(tmp_path, tmp_path / "out").num_not_entered > 0


def test_a_flat_folder_is_searched_everywhere(tmp_path):
    touch(tmp_path / "sub-01/anat/rest.nii.gz")
    for layout in ("auto", "flat"):
        assert len(scan(tmp_path, tmp_path / "out", layout, Selection()).records) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can list everything")
def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_taken(tmp_path):
    touch(tmp_path / f"sub-01/func/{BOLD}", tmp_path / "sub-02/func/x")
    (tmp_path / "sub-02/func").chmod(0)
    try:
        found = scan(tmp_path, tmp_path / "out", "auto", Selection())
    finally:
        (tmp_path / "sub-02/func").chmod(0o700)
    assert [record.subject for record in found.records] == ["01"]
    assert any(
        "1 folders cannot be listed" in note and "sub-02/func: Permission denied" in note for note in found.notes
    )


def test_an_error_while_listing_is_said_and_one_at_the_root_ends_it(tmp_path, monkeypatch):
    touch(tmp_path / f"sub-01/func/{BOLD}", tmp_path / "sub-02/func/x")
    scandir = os.scandir
    locked = str(tmp_path / "sub-02/func")

    def refuse(path: str) -> object:
        if str(path).rstrip("/") == locked:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    notes = scan(tmp_path, tmp_path / "out", "auto", Selection()).notes
    assert any("1 folders cannot be listed" in note and "sub-02/func: Permission denied" in note for note in notes)
    locked = str(tmp_path)
    with pytest.raises(UsageError, match="Permission denied, so it cannot be listed"):
        list_tree(tmp_path, tmp_path / "out")
