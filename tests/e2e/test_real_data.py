"""Real 4D files through `ingest-fmri` and back, against nibabel's own reading of them.

The folder is named by BOLDSTREAM_REAL_DATA (default: `../shared/data` beside the checkout).
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ingest.cli import MAX_LINES_OF_A_CLASS, main
from ingest.layouts.tree import is_nifti
from shards.reader import ShardSet

DATA = Path(os.environ.get("BOLDSTREAM_REAL_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no real data at {DATA}: name a folder of NIfTI files in BOLDSTREAM_REAL_DATA"
)


def files_by_grid() -> dict[tuple, list[str]]:
    """4D files by canonical shape and affine; 3D files under the key ()."""
    grids: dict[tuple, list[str]] = {}
    for path in sorted(DATA.rglob("*")):
        if is_nifti(path.name):
            image = nibabel.as_closest_canonical(nibabel.load(path))
            four = len(image.shape) == 4
            key = (*image.shape[:3], *np.round(image.affine, 3).ravel().tolist()) if four else ()
            grids.setdefault(key, []).append(path.relative_to(DATA).as_posix())
    return grids


GRIDS = files_by_grid() if DATA.is_dir() else {}
CASES = [pytest.param(names, id=names[0].split("/")[-1]) for key, names in GRIDS.items() if key]


def ingest(names: list[str], out: Path, *flags: str) -> int:
    return main(["--src", str(DATA), "--out", str(out), "--workers", "0", "--include", *names, *flags])


def failures(out: Path) -> list[dict[str, str]]:
    with (out / "failures.tsv").open(newline="") as file:
        return sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: row["source"])


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("names", CASES)
def test_every_4d_file_comes_back_within_its_recorded_error(names, dtype, tmp_path):
    assert ingest(names, tmp_path / "out", "--dtype", dtype) == 0
    with ShardSet(tmp_path / "out") as shards:
        assert sorted(entry.source for entry in shards.runs) == sorted(names)
        for number, entry in enumerate(shards.runs):
            image = nibabel.load(DATA / entry.source)
            source = nibabel.as_closest_canonical(image).get_fdata()[shards.mask].T
            error = np.abs(shards.read_run(number) - source)
            resolution = np.finfo(np.float32).eps * np.abs(source).max()
            assert error.max() <= entry.error_max * (1 + 1e-5) + resolution
            assert entry.error_max <= shards.statistics(number).scale.max() / 2 + 2 * resolution
            assert np.sqrt((error**2).mean()) == pytest.approx(entry.error_rms, rel=1e-6, abs=1e-12)
            assert entry.num_frames == image.shape[3] and entry.tr_s == pytest.approx(image.header["pixdim"][4])
            if dtype == "float32" or entry.lossless:
                assert entry.error_max <= resolution


def test_every_3d_file_is_a_named_failure(tmp_path, capsys):
    names = GRIDS.get((), [])
    assert names
    assert ingest(names, tmp_path / "out") == 4
    rows = failures(tmp_path / "out")
    series = [name for name in names if not name.endswith("_mask.nii.gz")]  # masks are known by their names
    assert [row["source"] for row in rows] == sorted(series)
    assert all(row["class"] == "not-4d" and "wanted 4D" in row["reason"] for row in rows)
    assert len(capsys.readouterr().err.splitlines()) == min(len(series), MAX_LINES_OF_A_CLASS + 1)


def test_mixed_grids_quarantine_the_minority_by_name(tmp_path, capsys):
    names = [name for key, names in GRIDS.items() if key for name in names]
    assert ingest(names, tmp_path / "out") == 4
    with ShardSet(tmp_path / "out") as shards:
        kept = {entry.source for entry in shards.runs}
    rows = failures(tmp_path / "out")
    assert {row["source"] for row in rows} == set(names) - kept
    assert all(row["class"] == "other-grid" and "another --out" in row["remedy"] for row in rows)
    assert "more runs of class other-grid" in capsys.readouterr().err
