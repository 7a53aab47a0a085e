"""`ingest-fmri --doctor`: what it finds, and the code it ends with."""

from __future__ import annotations

import pytest

from ingest import doctor
from ingest.cli import main


@pytest.fixture(autouse=True)
def small_probe(monkeypatch):
    monkeypatch.setattr(doctor.fitness, "write_rate", lambda folder: 500e6)


def call(src, out, *flags):
    return main(["--src", str(src), "--out", str(out), "--doctor", *flags])


def test_a_fit_machine_is_called_fit_and_nothing_is_written(make_bids, tmp_path, capsys):
    src = make_bids(["01"])
    assert call(src, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.endswith("fit for ingest\n") and "FAIL" not in said
    assert "--src: reading" in said and "sub-01" in said and "hard links       yes" in said
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_missing_or_empty_fails(tmp_path, capsys):
    assert call(tmp_path / "none", tmp_path / "out") == 2
    assert "no such file or folder; check the path" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty", tmp_path / "out") == 2
    assert "no NIfTI in it" in capsys.readouterr().out


def test_an_output_that_cannot_be_written_fails_with_its_code(make_bids, capsys):
    assert call(make_bids(["01"]), "/proc/out") == 5
    told = capsys.readouterr()
    assert "FAIL  --out" in told.out and told.err.startswith("not fit for ingest: --out")


def test_slow_disks_small_memory_and_few_files_are_noted_with_what_to_do(make_bids, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor.fitness, "write_rate", lambda folder: 20e6)
    monkeypatch.setattr(doctor.fitness, "usable_memory_bytes", lambda: 6_000_000_000)
    monkeypatch.setattr(doctor.fitness, "open_files_limit", lambda: 256)
    monkeypatch.setattr(doctor.fitness, "links_work", lambda folder: False)
    assert call(make_bids(["01"]), tmp_path / "out", "--workers", "8") == 0
    said = capsys.readouterr().out
    for text in ("20 MB/s to disk; one worker", "take --workers 2", "up to 256; ask for more", "--part will not work"):
        assert text in said


def test_a_queue_without_its_commands_fails(make_bids, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call(make_bids(["01"]), tmp_path / "out", "--cluster", "pbs", "--workers", "2") == 2
    assert "FAIL  queue" in capsys.readouterr().out
