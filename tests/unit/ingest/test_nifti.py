"""The streaming reader against nibabel."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import xxhash
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from ingest.failures import RunError
from ingest.grid import canonical_grid, stored_positions
from ingest.nifti import read_header, stream_rows

SHAPE = (5, 4, 3, 7)


def read(path: Path, mask: np.ndarray) -> tuple[np.ndarray, str]:
    """(time, voxel) of the masked canonical voxels, scaled, and the digest."""
    header = read_header(path)
    rows = np.empty((header.num_frames, int(mask.sum())), header.dtype.newbyteorder("="))
    digest = stream_rows(path, header, stored_positions(header)[mask], rows)
    return rows * header.slope + header.inter, digest


def oracle(path: Path, mask: np.ndarray) -> np.ndarray:
    return nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()[mask].T


def write(path: Path, image: nibabel.Nifti1Image) -> Path:
    data = image.to_bytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def image_of(dtype: str, *, codes: str = "RAS", kind: type = nibabel.Nifti1Image, big: bool = False):
    values = np.random.default_rng(3).integers(0, 100, SHAPE).astype(dtype)
    orientation = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([2.0, 3, 4, 1]) @ inv_ornt_aff(orientation, SHAPE[:3])
    header = kind.header_class(endianness=">" if big else "<")
    header.set_data_dtype(dtype)
    image = kind(values, affine, header=header)
    image.header["pixdim"][4] = 2
    return image


MASK_SEED = 8


def mask_for(path: Path) -> np.ndarray:
    shape = canonical_grid(read_header(path)).shape
    return np.random.default_rng(MASK_SEED).random(shape) < 0.5


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_dtype_reads_as_nibabel_reads_it(tmp_path, dtype, ending):
    path = write(tmp_path / f"x{ending}", image_of(dtype))
    rows, _ = read(path, mask_for(path))
    np.testing.assert_array_equal(rows, oracle(path, mask_for(path)))


@pytest.mark.parametrize("codes", ["LAS", "RPI", "LPS", "PIR", "SAL", "LSP"])
def test_any_orientation_comes_out_canonical(tmp_path, codes):
    path = write(tmp_path / "x.nii.gz", image_of("int16", codes=codes))
    rows, _ = read(path, mask_for(path))
    np.testing.assert_array_equal(rows, oracle(path, mask_for(path)))
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    assert canonical_grid(read_header(path)).shape == expected.shape[:3]
    np.testing.assert_allclose(canonical_grid(read_header(path)).affine, expected.affine)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("big", [False, True])
def test_both_versions_and_byte_orders(tmp_path, kind, big):
    path = write(tmp_path / "x.nii.gz", image_of("int16", kind=kind, big=big))
    assert read_header(path).dtype.isnative is not big
    rows, _ = read(path, mask_for(path))
    np.testing.assert_array_equal(rows, oracle(path, mask_for(path)))


@pytest.mark.parametrize(("slope", "inter"), [(0.25, 10.0), (0.0, 5.0), (np.nan, np.nan)])
def test_scaling_is_nibabels(tmp_path, slope, inter):
    path = write(tmp_path / "x.nii", image_of("int16"))
    data = bytearray(path.read_bytes())
    data[112:120] = struct.pack("<ff", slope, inter)
    path.write_bytes(data)
    rows, _ = read(path, mask_for(path))
    np.testing.assert_allclose(rows, oracle(path, mask_for(path)))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_digest_is_of_the_bytes_on_disk(tmp_path, ending):
    path = write(tmp_path / f"x{ending}", image_of("int16"))
    assert read(path, mask_for(path))[1] == xxhash.xxh3_128_hexdigest(path.read_bytes())


@pytest.mark.parametrize(
    ("units", "step", "tr_s"), [("sec", 2.0, 2.0), ("msec", 720.0, 0.72), ("usec", 8e5, 0.8), ("unknown", 1.5, 1.5)]
)
def test_repetition_time_in_its_units(tmp_path, units, step, tr_s):
    image = image_of("int16")
    image.header.set_xyzt_units("mm", units)
    image.header["pixdim"][4] = step
    assert read_header(write(tmp_path / "x.nii", image)).tr_s == pytest.approx(tr_s)


def damage(data: bytes, where: int, new: bytes) -> bytes:
    return data[:where] + new + data[where + len(new) :]


PLAIN = image_of("int16").to_bytes()
ZIPPED = gzip.compress(PLAIN, mtime=0)
NOISE = gzip.compress(np.random.default_rng(0).bytes(200_000), mtime=0)

BAD_HEADERS = {
    "text": (b"this is no image\n" * 9, "not a NIfTI file"),
    "text in gzip": (gzip.compress(b"this is no image\n" * 90), "not a NIfTI file"),
    "empty": (b"", "it is empty"),
    "half a header": (PLAIN[:200], "200 bytes"),
    "gzip magic only": (b"\x1f\x8b" + b"\x00" * 50, "gzip stream is damaged"),
    "pair": (damage(PLAIN, 344, b"ni1\x00"), "pair"),
    "wrong magic": (damage(PLAIN, 344, b"xxx\x00"), "magic"),
    "complex": (damage(PLAIN, 70, struct.pack("<hh", 32, 64)), "wanted real"),
    "rgb": (damage(PLAIN, 70, struct.pack("<hh", 128, 24)), "wanted real"),
    "unknown dtype": (damage(PLAIN, 70, struct.pack("<h", 999)), "data type"),
    "negative dimension": (damage(PLAIN, 42, struct.pack("<h", -5)), "below 1"),
    "nan affine": (damage(PLAIN, 280, struct.pack("<f", np.nan)), "affine"),
    "flat affine": (damage(PLAIN, 280, bytes(16)), "affine"),
    "offset before the file": (damage(PLAIN, 108, struct.pack("<f", -8.0)), "begin at byte"),
    "declares more than the file has": (PLAIN[:-10], "declares"),
    "bomb": (gzip.compress(damage(PLAIN[:352], 42, struct.pack("<hhhh", 32767, 32767, 999, 9))), "declares"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_named_before_anything_is_allocated(tmp_path, case):
    data, words = BAD_HEADERS[case]
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(data)
    with pytest.raises(RunError, match=words) as caught:
        read_header(path)
    assert caught.value.stage == "header" and caught.value.remedy


BAD_STREAMS = {
    "cut": ZIPPED[: len(ZIPPED) // 2],
    "cut in the trailer": ZIPPED[:-4],
    "wrong crc": damage(ZIPPED, len(ZIPPED) - 8, b"\x00\x01\x02\x03"),
    "garbage behind": ZIPPED + b"garbage",
    "flipped": damage(ZIPPED, len(ZIPPED) // 2, bytes([ZIPPED[len(ZIPPED) // 2] ^ 0x55])),
    "more frames than declared": gzip.compress(PLAIN + bytes(4 * 5 * 4 * 3)),
    "fewer frames than declared": gzip.compress(PLAIN[:-50] + b"")[:],
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_bad_streams_are_named(tmp_path, case):
    path = tmp_path / "bad.nii.gz"
    path.write_bytes(BAD_STREAMS[case])
    header = read_header(path)
    rows = np.empty((header.num_frames, 60), np.int16)
    with pytest.raises(RunError) as caught:
        stream_rows(path, header, np.arange(60), rows)
    assert caught.value.stage == "data" and caught.value.remedy


def test_zero_padding_behind_the_gzip_member_is_let_pass_and_hashed(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(ZIPPED + bytes(100_000))
    rows, digest = read(path, mask_for(path))
    np.testing.assert_array_equal(rows, oracle(write(tmp_path / "y.nii", image_of("int16")), mask_for(path)))
    assert digest == xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_missing_file_and_broken_link(tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone")
    for name, words in (("none.nii.gz", "No such file"), ("link.nii.gz", "broken link")):
        with pytest.raises(RunError, match=words) as caught:
            read_header(tmp_path / name)
        assert caught.value.stage == "open"


def test_no_buffer_is_allocated_per_frame(tmp_path):
    """Peak memory of a pass does not grow with the number of frames."""
    import tracemalloc

    peaks = []
    for num_frames in (4, 64):
        values = np.random.default_rng(0).integers(0, 9, (20, 20, 20, num_frames)).astype(np.int16)
        path = write(tmp_path / f"{num_frames}.nii", nibabel.Nifti1Image(values, np.eye(4)))
        header = read_header(path)
        rows = np.empty((num_frames, 100), np.int16)
        tracemalloc.start()
        stream_rows(path, header, np.arange(100), rows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 16_000  # one frame has 16,000 bytes
