"""What holds for every layout, on trees of real files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from layout_trees import CASES, NUM_FRAMES, Case, make_link
from nifti_files import SHAPE, bold_image, save

from ingest.confounds import framewise_displacement_mm, read_confounds
from ingest.layouts import Scan, Selection, scan
from ingest.record import RunRecord
from shards.errors import NothingMatchedError
from shards.format import valid_run_id

pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def look(src: Path, layout: str = "auto", **filters: object) -> Scan:
    return scan(src, src.parent / "shards", layout, Selection(**filters))


def ids(found: Scan) -> list[str]:
    return [record.run_id for record in found.records]


def test_run_ids_are_those_expected_in_order_unique_and_valid(case: Case, tmp_path):
    found = look(case.write(tmp_path))
    assert ids(found) == sorted(case.runs)
    assert all(isinstance(record, RunRecord) for record in found.records)
    assert all(valid_run_id(run_id) for run_id in ids(found))


def test_each_run_has_its_own_series_mask_confounds_and_sidecar(case: Case, tmp_path):
    for record in look(case.write(tmp_path)).records:
        expected = case.runs[record.run_id]
        for kind in ("bold", "mask", "confounds", "sidecar"):
            path = getattr(record, kind)
            assert path == (tmp_path / expected[kind] if kind in expected else None), kind


def test_series_and_masks_are_images_of_one_grid(case: Case, tmp_path):
    for record in look(case.write(tmp_path)).records:
        assert nibabel.load(record.bold).shape == (*SHAPE, NUM_FRAMES)
        assert record.mask is None or nibabel.load(record.mask).shape == SHAPE


def test_motion_is_read_in_its_own_form(case: Case, tmp_path):
    for record in look(case.write(tmp_path)).records:
        assert record.confounds is not None
        fd_mm_T = framewise_displacement_mm(read_confounds(record.confounds, NUM_FRAMES).columns)
        assert fd_mm_T is not None
        np.testing.assert_allclose(fd_mm_T, [np.nan, *[0.1] * (NUM_FRAMES - 1)], atol=1e-12)


def test_detection_picks_the_layout_and_says_why(case: Case, tmp_path):
    found = look(case.write(tmp_path))
    assert found.layout == case.layout
    assert found.notes[0].startswith(f"layout {case.layout}: ") and len(found.notes[0]) > len(case.layout) + 20


def test_the_layout_forced_finds_the_same(case: Case, tmp_path):
    src = case.write(tmp_path)
    forced = look(src, case.layout)
    assert forced.records == look(src).records and forced.base == look(src).base


def test_another_layout_forced_finds_nothing_and_names_files_that_are_there(case: Case, tmp_path):
    src = case.write(tmp_path)
    if case.table:
        src = src.parent
    for other in {"bids", "hcp", "abcd", "ukb"} - {case.layout}:
        with pytest.raises(NothingMatchedError, match=r"(nearest are|such as) .+\.nii"):
            look(src, other)


def test_subjects_are_chosen_with_and_without_prefix(case: Case, tmp_path):
    src = case.write(tmp_path)
    expected = [run_id for run_id in sorted(case.runs) if run_id.startswith(f"sub-{case.subject}_")]
    assert 0 < len(expected) < len(case.runs)
    for label in (case.subject, f"sub-{case.subject}"):
        assert ids(look(src, subjects=(label,))) == expected


def test_tasks_are_chosen(case: Case, tmp_path):
    expected = [run_id for run_id in sorted(case.runs) if f"_task-{case.task}" in run_id]
    assert 0 < len(expected) < len(case.runs)
    assert ids(look(case.write(tmp_path), tasks=(case.task,))) == expected


def test_patterns_choose_by_relative_path(case: Case, tmp_path):
    src = case.write(tmp_path)
    run_id, files = sorted(case.runs.items())[0]
    assert ids(look(src, include=(files["bold"],))) == [run_id]
    assert ids(look(src, exclude=(files["bold"],))) == sorted(case.runs.keys() - {run_id})


def test_filters_that_leave_nothing_name_what_is_there(case: Case, tmp_path):
    with pytest.raises(NothingMatchedError, match=f"subjects there: .*{case.subject}.*tasks: .*{case.task}"):
        look(case.write(tmp_path), subjects=("nobody",))


def test_records_survive_json(case: Case, tmp_path):
    found = look(case.write(tmp_path))
    for record in found.records:
        values = json.loads(json.dumps(record.to_dict(found.base)))
        assert RunRecord.from_dict(values, found.base) == record


def test_signatures_cover_every_file_and_see_a_repair(case: Case, tmp_path):
    found = look(case.write(tmp_path))
    for record in found.records:
        before = record.signature(found.base)
        assert sorted(path for path, size, _ in before if size > 0) == sorted(case.runs[record.run_id].values())
        assert record.confounds is not None
        absent = [Path(path).name for path, size, _ in before if size <= 0]  # it may be fetched one day
        assert absent == ([] if record.confounds_json is None else [record.confounds_json.name])
        record.confounds.write_text("repaired")
        assert record.signature(found.base) != before


def test_foreign_files_are_not_taken(case: Case, tmp_path):
    src = case.write(tmp_path)
    before = look(src).records
    case.write_foreign(tmp_path)
    save(bold_image(99), (tmp_path / case.runs[before[0].run_id]["bold"]).parent / "._hidden.nii.gz")
    assert look(src).records == before


def test_a_linked_subject_folder_is_entered(case: Case, tmp_path):
    src = case.write(tmp_path / "source")
    before = look(src).records
    make_link(tmp_path / "source", case.subject_folder, tmp_path / "elsewhere")
    assert look(src).records == before


def test_spaces_and_unicode_in_the_parent_folder(case: Case, tmp_path):
    root = tmp_path / "my data (1) Größe"
    found = look(case.write(root))
    assert ids(found) == sorted(case.runs)
    assert all(record.bold.is_file() for record in found.records)


def test_a_relative_source_finds_the_same_runs(case: Case, tmp_path, monkeypatch):
    src = case.write(tmp_path / "source")
    monkeypatch.chdir(tmp_path / "source")
    found = scan(src.relative_to(tmp_path / "source"), tmp_path / "shards", "auto", Selection())
    assert ids(found) == sorted(case.runs) and found.layout == case.layout


def test_without_one_series_the_others_stay_as_they_are(case: Case, tmp_path):
    src = case.write(tmp_path)
    before = {record.run_id: record for record in look(src).records}
    gone = min(before)
    if case.table:
        lines = src.read_text().splitlines(keepends=True)
        src.write_text("".join(line for line in lines if before[gone].bold.name not in line))
    before[gone].bold.unlink()
    after = {record.run_id: record for record in look(src).records}
    del before[gone]
    assert after == before


def test_the_output_folder_inside_the_source_is_not_looked_into(case: Case, tmp_path):
    src = case.write(tmp_path)
    out = tmp_path / "out"
    case.write(out)
    found = scan(src, out, "auto", Selection())
    assert ids(found) == sorted(case.runs)
