"""Peak memory of a worker: about one run in the mask as read, plus its stored values; never the dense run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from zlib_ng import gzip_ng

MASK_PART = 0.253
_BUILD = """
import json, sys
from ingest.cli import main
from ingest.memory import peak_rss_bytes
assert main(sys.argv[1:]) == 0
print(json.dumps(peak_rss_bytes()))
"""


def write_run(folder: Path, shape: tuple[int, int, int], num_frames: int) -> None:
    """A float32 run; frames repeat with another scale, which no figure of memory can tell from noise."""
    rng = np.random.default_rng(0)
    radius = sum((axis - n / 2) ** 2 for axis, n in zip(np.indices(shape), shape, strict=True))
    mask = radius < np.quantile(radius, MASK_PART)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nibabel.Nifti1Image(mask.astype(np.uint8), affine).to_filename(folder / "mask.nii")
    header = nibabel.Nifti1Image(np.zeros((*shape, 1), "f4"), affine).header
    header.set_data_shape((*shape, num_frames))
    header["pixdim"][4], header["vox_offset"] = 0.72, 352
    frames = [np.where(mask, 1000 + 20 * rng.standard_normal(shape), 0).astype("f4").tobytes("F") for _ in range(4)]
    (folder / "data").mkdir()
    with gzip_ng.open(folder / "data/s.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for t in range(num_frames):
            file.write(frames[t % 4])


def peak_bytes(folder: Path) -> int:
    """Of a process that ingests the run alone."""
    flags = ["--src", str(folder / "data"), "--out", str(folder / "out"), "--mask", str(folder / "mask.nii")]
    command = [sys.executable, "-c", _BUILD, *flags, "--workers", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def test_a_worker_holds_the_masked_run_and_not_the_dense_one(tmp_path):
    """46 x 55 x 46 x 400: 186 MB dense, 47 MB in the mask as read, 12 MB stored."""
    (tmp_path / "tiny").mkdir()
    write_run(tmp_path / "tiny", (20, 24, 20), 20)
    (tmp_path / "large").mkdir()
    write_run(tmp_path / "large", (46, 55, 46), 400)
    in_mask = MASK_PART * 46 * 55 * 46 * 400
    assert peak_bytes(tmp_path / "large") - peak_bytes(tmp_path / "tiny") < 1.6 * 5 * in_mask  # float32 and int8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_hcp_size_fits_in_two_and_a_half_gigabytes(tmp_path):
    """91 x 109 x 91 x 1200 float32: 4.3 GB dense, 1.1 GB in the mask."""
    write_run(tmp_path, (91, 109, 91), 1200)
    peak = peak_bytes(tmp_path)
    print(f"peak of a worker: {peak / 1e9:.2f} GB")
    assert peak < 2.5e9
