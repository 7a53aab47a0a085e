"""Repetition time, frames and confounds of one run."""

from __future__ import annotations

import math

import pytest
from nifti_files import bold_image, save

from ingest.check import check_run, mean_fd_mm
from ingest.failures import Failure, RunError, failures_to_tsv
from ingest.record import RunRecord


@pytest.fixture
def bold(tmp_path):
    return save(bold_image(0, tr_s=2.0), tmp_path / "a.nii.gz")


def test_repetition_time_is_the_flags_then_the_tables_then_the_sidecars_then_the_headers(bold, tmp_path):
    sidecar = tmp_path / "a.json"
    sidecar.write_text('{"RepetitionTime": 0.8}')
    for record, flag, wanted in (
        (RunRecord(subject="1", bold=bold, sidecar=sidecar, tr_s=0.7), 0.5, 0.5),
        (RunRecord(subject="1", bold=bold, sidecar=sidecar, tr_s=0.7), None, 0.7),
        (RunRecord(subject="1", bold=bold, sidecar=sidecar), None, 0.8),
        (RunRecord(subject="1", bold=bold), None, 2.0),
    ):
        assert check_run(record, min_frames=2, tr_s=flag).tr_s == wanted
    sidecar.write_text("{}")
    assert check_run(RunRecord(subject="1", bold=bold, sidecar=sidecar), min_frames=2, tr_s=None).tr_s == 2.0


@pytest.mark.parametrize("text", ["not json", '{"RepetitionTime": "fast"}', "[1]", '{"RepetitionTime": 2000}'])
def test_a_sidecar_that_makes_no_sense_fails_the_run(bold, tmp_path, text):
    sidecar = tmp_path / "a.json"
    sidecar.write_text(text)
    with pytest.raises(RunError) as caught:
        check_run(RunRecord(subject="1", bold=bold, sidecar=sidecar), min_frames=2, tr_s=None)
    assert caught.value.stage == "tr"


def test_too_few_frames(bold):
    with pytest.raises(RunError, match="20 frames, wanted 21"):
        check_run(RunRecord(subject="1", bold=bold), min_frames=21, tr_s=None)


def test_mean_framewise_displacement_leaves_out_what_is_not_a_number(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text("csf\tframewise_displacement\n1\tn/a\n1\t0.1\n1\t0.3\n")
    assert mean_fd_mm(path, 3) == pytest.approx(0.2)
    path.write_text("csf\n1\n2\n3\n")
    assert math.isnan(mean_fd_mm(path, 3))
    assert math.isnan(mean_fd_mm(None, 3))
    for num_frames in (2, 4):
        with pytest.raises(RunError, match="3 rows"):
            mean_fd_mm(path, num_frames)
    with pytest.raises(RunError, match="cannot be read"):
        mean_fd_mm(tmp_path / "none.tsv", 3)


def test_failures_table_keeps_its_columns_whatever_the_message_says():
    error = RunError("data", "bad\tbytes\nat the end", "copy\tagain")
    failure = Failure.of("sub-1", "a\tb.nii", (("a", 1, 2),), error)
    header, row = failures_to_tsv([failure]).splitlines()
    assert len(row.split("\t")) == len(header.split("\t")) == 5
    assert Failure.from_dict(failure.to_dict()) == failure
