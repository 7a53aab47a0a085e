"""Sets made of runs on several grids, orientations and file forms."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nifti_files import bold_image, save
from nilearn.image import resample_img

from ingest.cli import main
from shards.reader import ShardSet


def run(src: Path, out: Path, *flags: str) -> int:
    return main(["--src", str(src), "--out", str(out), "--workers", "0", *flags])


def moved(image: nibabel.Nifti1Image, millimetres: float) -> nibabel.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += millimetres
    out = nibabel.Nifti1Image(np.asanyarray(image.dataobj), affine, image.header)
    out.set_sform(affine, 1)
    out.set_qform(affine, 1)
    return out


def qc_of(shards: ShardSet, run_id: str) -> dict:
    entry = next(entry for entry in shards.runs if entry.run_id == run_id)
    with (Path(shards.location) / entry.shard).open("rb") as file:
        file.seek(entry.offset + 512)
        text = file.read(entry.num_bytes - 512)
    return json.JSONDecoder().raw_decode(text[: text.index(b"\0")].decode())[0]["qc"]


def test_a_run_on_another_grid_fails_without_and_is_interpolated_with_resample(tmp_path, capsys):
    src = tmp_path / "data"
    for k in range(3):
        save(bold_image(k), src / f"s{k}.nii.gz")
    elsewhere = moved(bold_image(3), 1.0)
    save(elsewhere, src / "s3.nii.gz")
    assert run(src, tmp_path / "no") == 4
    assert "--resample linear" in (tmp_path / "no/failures.tsv").read_text()
    capsys.readouterr()
    assert run(src, tmp_path / "yes", "--resample", "linear", "--dtype", "float32") == 0
    assert "1 run on another grid: resampled (linear)" in capsys.readouterr().out
    with ShardSet(tmp_path / "yes") as shards:
        affine, shape = np.asarray(shards.manifest.grid.affine), shards.manifest.grid.shape
        floats = nibabel.Nifti1Image(elsewhere.get_fdata(dtype=np.float32), elsewhere.affine)
        wanted = resample_img(
            floats, affine, shape, interpolation="linear", force_resample=True, copy_header=True
        ).get_fdata()[shards.mask]
        np.testing.assert_allclose(shards.read_run(3), wanted.T, rtol=1e-5, atol=1e-3)
        qc = qc_of(shards, "sub-s3")
        assert qc["resampled"] and qc["num_outside_field_of_view"] == (wanted == 0).all(axis=1).sum()
        assert "resampled" not in qc_of(shards, "sub-s0")
        assert shards.manifest.config["resample"] == "linear"


def test_with_resample_the_grid_of_the_mask_is_the_sets(tmp_path):
    src, mask = tmp_path / "data", tmp_path / "mask.nii.gz"
    save(bold_image(0), src / "s0.nii.gz")
    affine = bold_image(0).affine @ np.diag([1.5, 1.5, 1.5, 1])
    save(nibabel.Nifti1Image(np.ones((3, 3, 2), np.uint8), affine), mask)
    assert run(src, tmp_path / "no", "--mask", str(mask)) == 2
    assert run(src, tmp_path / "out", "--mask", str(mask), "--resample", "cubic") == 0
    with ShardSet(tmp_path / "out") as shards:
        assert shards.manifest.grid.shape == (3, 3, 2) and shards.num_voxels == 18


def test_another_resampling_is_refused_by_name(tmp_path, capsys):
    src, out = tmp_path / "data", tmp_path / "out"
    save(bold_image(0), src / "s0.nii.gz")
    assert run(src, out) == 0
    assert run(src, out, "--resample", "cubic") == 6
    assert "--resample found None, now cubic" in capsys.readouterr().err


@pytest.mark.parametrize("codes", ["LAS", "RPI", "PIR", "SAL", "ARS"])
def test_every_stored_orientation_gives_the_same_set(tmp_path, codes):
    """Axes are permuted and flipped on disk; what is stored is one canonical orientation, and which it was is kept."""
    plain = bold_image(0)
    orientation = nibabel.orientations.axcodes2ornt(codes)
    ras = nibabel.as_closest_canonical(plain)
    turn = nibabel.orientations.ornt_transform(io_orientation(ras.affine), orientation)
    data = apply_orientation(np.asanyarray(ras.dataobj), turn)
    turned = nibabel.Nifti1Image(data, ras.affine @ inv_ornt_aff(turn, ras.shape[:3]), plain.header)
    assert nibabel.aff2axcodes(turned.affine) == tuple(codes)
    save(plain, tmp_path / "plain/s.nii.gz")
    save(turned, tmp_path / "turned/s.nii.gz")
    for name in ("plain", "turned"):
        assert run(tmp_path / name, tmp_path / f"{name}-set", "--name", "x") == 0
    with ShardSet(tmp_path / "plain-set") as one, ShardSet(tmp_path / "turned-set") as two:
        assert one.manifest.grid.shape == two.manifest.grid.shape
        np.testing.assert_allclose(one.manifest.grid.affine, two.manifest.grid.affine, atol=1e-4)
        np.testing.assert_array_equal(one.mask, two.mask)
        np.testing.assert_array_equal(one.read_run(0), two.read_run(0))
        assert qc_of(two, "sub-s")["orientation"] == codes


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_form_of_nifti_is_read_as_nibabel_reads_it(tmp_path, kind, ending, order, dtype):
    rng = np.random.default_rng(5)
    low = 0 if dtype[0] == "u" else -100
    values = rng.uniform(low, 120, (4, 5, 3, 12)).astype(dtype).astype(np.dtype(dtype).newbyteorder(order))
    image = kind(values, np.diag([3.0, 3.0, 3.0, 1.0]), dtype=values.dtype)
    header = image.header if order == "<" else image.header.as_byteswapped(">")
    image = kind(values, image.affine, header)
    image.header.set_slope_inter(0.5, 7.0)
    image.header["pixdim"][4] = 2.0
    path = tmp_path / f"data/s{ending}"
    path.parent.mkdir()
    image.to_filename(path)
    assert nibabel.load(path).header.endianness == order
    ones = tmp_path / "mask.nii"
    nibabel.Nifti1Image(np.ones((4, 5, 3), np.uint8), image.affine).to_filename(ones)
    assert run(path.parent, tmp_path / "out", "--dtype", "float32", "--mask", str(ones), "--layout", "flat") == 0
    with ShardSet(tmp_path / "out") as shards:
        wanted = nibabel.load(path).get_fdata()[shards.mask].T
        np.testing.assert_allclose(shards.read_run(0), wanted, rtol=1e-6)
