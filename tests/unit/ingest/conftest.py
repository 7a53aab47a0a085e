"""Small cohorts for the tests of ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nifti_files import write_subject


@pytest.fixture
def make_bids(tmp_path: Path) -> Callable[..., Path]:
    """Write fMRIPrep-like derivatives: `make_bids(["01", "02"])` returns the folder."""

    def make(subjects: list[str], num_frames: int = 20, folder: str = "prep") -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        (root / "dataset_description.json").write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
        everyone = sorted({*subjects, *(path.name[4:] for path in root.glob("sub-*"))})
        rows = [f"sub-{subject}\t{20 + k}\tF" for k, subject in enumerate(everyone)]
        (root / "participants.tsv").write_text("participant_id\tage\tsex\n" + "\n".join(rows) + "\n")
        for subject in subjects:
            write_subject(root / f"sub-{subject}" / "func", subject, num_frames)
        return root

    return make
