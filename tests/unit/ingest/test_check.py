"""Repetition time and frames of one run, and what becomes of failures."""

from __future__ import annotations

import pytest
from nifti_files import bold_image, save

from ingest.check import check_run
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


def test_ledgers_without_a_class_of_failure_are_read():
    failure = Failure.of("sub-1", "a.nii", (("a", 1, 2),), RunError("data", "bad", "copy again", "truncated"))
    values = failure.to_dict()
    assert values["kind"] == "truncated"
    del values["kind"]
    assert Failure.from_dict(values).kind == "data"


def test_failures_table_keeps_its_columns_whatever_the_message_says():
    error = RunError("data", "bad\tbytes\nat the end", "copy\tagain")
    failure = Failure.of("sub-1", "a\tb.nii", (("a", 1, 2),), error)
    header, row = failures_to_tsv([failure]).splitlines()
    assert len(row.split("\t")) == len(header.split("\t")) == 6
    assert Failure.from_dict(failure.to_dict()) == failure
