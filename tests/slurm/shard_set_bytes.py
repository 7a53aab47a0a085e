"""Twelve subjects, and the shard set that one process makes of them."""

from __future__ import annotations

from pathlib import Path

from nifti_files import write_subject

from ingest.cli import main

NUM_SHARDS = 12
FLAGS = ("--shard-size", "10kB")


def write_cohort(folder: Path) -> Path:
    """Write fMRIPrep-like derivatives; a run fills a shard."""
    folder.mkdir()
    (folder / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    subjects = [f"{k:02d}" for k in range(1, NUM_SHARDS + 1)]
    rows = [f"sub-{subject}\t{20 + k}\tF\n" for k, subject in enumerate(subjects)]
    (folder / "participants.tsv").write_text("participant_id\tage\tsex\n" + "".join(rows))
    for subject in subjects:
        write_subject(folder / f"sub-{subject}" / "func", subject, 20)
    return folder


def made_by_one_process(src: Path, out: Path) -> dict[str, bytes]:
    """Ingest without any cluster; returns what it wrote."""
    assert main(["--src", str(src), "--out", str(out), "--workers", "0", *FLAGS]) == 0
    found = contents(out)
    assert sum(name.endswith(".tar") for name in found) == NUM_SHARDS
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """All but what says when and how it was made."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in ("ledger.jsonl", "report.html")]
    return {path.name: path.read_bytes() for path in files}
