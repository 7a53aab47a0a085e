"""Headers that lie, and files of other formats under a NIfTI name."""

from __future__ import annotations

import io
import struct
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from hostile_case import IMAGE, PLAIN, STORED, VALUES, Case, content, edited, fails, header, nifti2, takes, zipped

NOT_NIFTI = ("header", "not-nifti")
NO_TR = ("tr", "no-repetition-time")


def with_extension(size: int, num_bytes: int = 32) -> bytes:
    """A header extension whose own size field says `size`, and `num_bytes` of it in the file."""
    extension = b"\1\0\0\0" + struct.pack("<ii", size, 6) + b"x" * (num_bytes - 8)
    return edited(vox_offset=348 + len(extension))[:348] + extension + PLAIN[352:]


def swapped_size() -> bytes:
    """sizeof_hdr in big-endian, all other fields in little-endian."""
    return struct.pack(">i", 348) + PLAIN[4:]


def big_endian(kind: type = nibabel.Nifti1Image) -> bytes:
    image = kind(VALUES.astype(np.float32), IMAGE.affine, header=kind.header_class(endianness=">"))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2
    return image.to_bytes()


def random_text() -> bytes:
    """Every field that is only for people holds random bytes."""
    noise = np.random.default_rng(0).bytes
    text = {"descrip": noise(80), "aux_file": noise(24), "intent_name": noise(16), "db_name": noise(18)}
    return edited(**text, intent_code=-7, cal_max=np.nan, slice_code=99, toffset=np.inf, regular=b"\xff", glmax=-1)


def mgz() -> bytes:
    image = nibabel.MGHImage(VALUES.astype(np.float32), IMAGE.affine)
    return zipped(image.to_bytes())


def cifti() -> bytes:
    """What a dense time series looks like from outside: NIfTI-2 of six axes."""
    values = np.zeros((1, 1, 1, 1, 20, 91), np.float32)
    return nibabel.Nifti2Image(values, np.eye(4)).to_bytes()


def gifti() -> bytes:
    data = nibabel.gifti.GiftiDataArray(np.zeros((20, 3), np.float32))
    return bytes(nibabel.GiftiImage(darrays=[data]).to_bytes())


def analyze() -> bytes:
    """Analyze 7.5: a header of 348 bytes without a magic, values in another file."""
    file = io.BytesIO()
    nibabel.AnalyzeHeader().write_to(file)
    return file.getvalue()


def write_pair(folder: Path) -> None:
    """A NIfTI pair as it should be, under its own names."""
    nibabel.save(nibabel.Nifti1Pair(VALUES.astype(np.float32), IMAGE.affine), folder / "pair.img")


FORMATS = {
    "MGZ": mgz,
    "GIFTI": gifti,
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(2000),
    "MINC-1 (NetCDF)": b"CDF\x01" + bytes(2000),
    "DICOM": bytes(128) + b"DICM" + bytes(2000),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(2000),
    "a web page": b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head></html>\n",
    "git-annex pointer": b"/annex/objects/MD5E-s123456--0123456789abcdef.nii.gz\n",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "zeros": bytes(20_000),
    "random bytes": np.random.default_rng(1).bytes(20_000),
    "text": b"this is no image\n",
}
TYPES = {
    "no type (0)": 0, "binary (1)": 1, "complex64 (32)": 32, "RGB (128)": 128, "all (255)": 255,
    "float128 (1536)": 1536, "complex128 (1792)": 1792, "complex256 (2048)": 2048, "RGBA (2304)": 2304,
    "unknown (9999)": 9999, "negative": -16,
}  # fmt: skip
OFFSETS = {
    "negative": -352.0, "nan": np.nan, "infinite": np.inf, "1e30": 1e30, "not whole": 400.5,
    "inside the header": 10.0, "where the extension flag is": 348.0,
}  # fmt: skip
STEPS = {"0": 0.0, "nan": np.nan, "infinite": np.inf, "negative": -2.0, "1e9 s": 1e9, "in ms, called s": 2000.0}

CASES: list[Case] = [
    *(fails(f"{name} as NIfTI", content(data), *NOT_NIFTI, "") for name, data in FORMATS.items()),
    fails("CIFTI as NIfTI", content(cifti), "header", "not-4d", "6D"),
    fails("Analyze header as NIfTI", content(analyze), *NOT_NIFTI, "magic is"),
    Case(name="a true pair beside runs", write=write_pair, says="2 other files not used (1 .hdr, 1 .img)"),
    # magic and size of the header
    fails("magic of letters", header(magic=b"abc"), *NOT_NIFTI, "magic is b'abc"),
    fails("magic of a pair", header(magic=b"ni1"), "header", "pair", ".hdr/.img pair"),
    fails("magic of version 2 in version 1", header(magic=b"n+2"), *NOT_NIFTI, "magic"),
    fails("magic of version 3", header(magic=b"n+3"), *NOT_NIFTI, "magic"),
    fails(
        "NIfTI-2 that went through text mode",
        content(partial(nifti2, eol_check=[10, 10, 26, 10])),
        *NOT_NIFTI,
        "magic is",
    ),
    *(fails(f"sizeof_hdr {size}", header(sizeof_hdr=size), *NOT_NIFTI, "348 or 540") for size in (0, 349, -348)),
    fails("sizeof_hdr 540 before a header of version 1", header(sizeof_hdr=540), *NOT_NIFTI, "magic"),
    fails(
        "byte order of sizeof_hdr is not that of the rest",
        content(swapped_size),
        "header",
        "bad-shape",
        "dim[0] is 1024",
    ),
    # cut
    fails("empty file", content(b""), "header", "truncated", "empty"),
    fails("empty file, plain", content(b"", "bad.nii"), "header", "truncated", "empty", source="bad.nii"),
    fails("one byte", content(b"\x5c"), "header", "truncated", "1 byte"),
    fails("half a header", content(PLAIN[:174]), "header", "truncated", "174 bytes, a header has 348"),
    fails("half a header of version 2", content(nifti2()[:400]), "header", "truncated", "400 bytes, a header has 540"),
    fails("header only", content(PLAIN[:348]), "header", "truncated", "declares"),
    fails("header only, gzipped", content(zipped(PLAIN[:352])), "data", "truncated", "frame 0 of 20"),
    fails("last byte missing", content(PLAIN[:-1], "bad.nii"), "header", "truncated", "declares", source="bad.nii"),
    # dimensions
    fails("dim[0] 0", header(dim={0: 0}), "header", "bad-shape", "dim[0]"),
    fails("dim[0] 8", header(dim={0: 8}), "header", "bad-shape", "dim[0] is 8"),
    fails("dim[0] negative", header(dim={0: -1}), "header", "bad-shape", "dim[0] is -1"),
    fails("no frames", header(dim={4: 0}), "header", "bad-shape", "below 1"),
    fails("negative width", header(dim={1: -5}), "header", "bad-shape", "below 1"),
    takes("axes behind the fourth are not looked at", header(dim={5: -1, 6: 0, 7: 32767}), STORED),
    fails("32767 in each axis", header(dim=dict.fromkeys((1, 2, 3, 4), 32767)), "header", "too-large", "declares"),
    fails("32767 in seven axes", header(dim=[7] + 7 * [32767]), "header", "too-large", "declares"),
    fails(
        "32767 in each axis, plain",
        content(partial(edited, dim=dict.fromkeys((1, 2, 3, 4), 32767)), "bad.nii"),
        "header",
        "truncated",
        "declares",
        source="bad.nii",
    ),
    fails("2000 frames declared, 20 there", header(dim={4: 2000}), "data", "truncated", "frame 20 of 2000"),
    fails("18 frames declared, 20 there", header(dim={4: 18}), "data", "excess-data", "more than the 18 frames"),
    fails("2^62 frames", content(lambda: zipped(nifti2(dim={4: 2**62}))), "header", "too-large", "declares"),
    fails(
        "a product that 64 bits hold as 0",
        content(lambda: zipped(nifti2(dim=[4, 2**32, 2**32, 1, 1, 1, 1, 1]))),
        "header",
        "too-large",
        "declares",
    ),
    fails("largest 64-bit axis", content(lambda: nifti2(dim={1: 2**63 - 1})), "header", "truncated", "declares"),
    fails("smallest 64-bit axis", content(lambda: nifti2(dim={3: -(2**63)})), "header", "bad-shape", "below 1"),
    # type, offset, scaling
    *(fails(f"datatype {name}", header(datatype=code), "header", "bad-dtype", "") for name, code in TYPES.items()),
    *(takes(f"bitpix {bits} for float32", header(bitpix=bits), STORED) for bits in (0, 8, -32)),
    *(
        fails(f"vox_offset {name}", header(vox_offset=offset), "header", "bad-offset", "begin at byte")
        for name, offset in OFFSETS.items()
    ),
    takes("vox_offset 0", header(vox_offset=0), STORED),
    fails("vox_offset of 1 GB", header(vox_offset=1e9), "header", "too-large", "declares"),
    fails("vox_offset 2^62", content(lambda: nifti2(vox_offset=2**62)), "header", "bad-offset", "begin at byte"),
    fails("vox_offset a frame late", header(vox_offset=352 + 480), "data", "truncated", "frame 19 of 20"),
    *(
        takes(f"extension of 32 bytes that says {size}", content(partial(with_extension, size)), STORED)
        for size in (0, -1, 7, 2**31 - 1)
    ),
    takes("extension flag without an extension", content(PLAIN[:348] + b"\1\0\0\0" + PLAIN[352:]), STORED),
    takes("extension of 1 MB", content(lambda: zipped(with_extension(10**6, 10**6))), STORED),
    # time, units, text
    *(
        fails(f"repetition time {name}", header(pixdim={4: step}), *NO_TR, "repetition time")
        for name, step in STEPS.items()
    ),
    fails("repetition time in s, called ms", header(xyzt_units=2 | 16), *NO_TR, "repetition time"),
    fails("time in hertz", header(xyzt_units=2 | 32), *NO_TR, "repetition time"),
    fails("units of ones", header(xyzt_units=255), *NO_TR, "repetition time"),
    takes("units of space that do not exist", header(xyzt_units=7 | 8), STORED),
    takes("text of random bytes", content(random_text), STORED),
    takes("pixdim of nan beside an sform", header(pixdim={1: np.nan, 2: 0, 3: -1}), STORED),
    takes("big-endian throughout", content(big_endian), STORED),
    takes("big-endian NIfTI-2 that is good", content(lambda: zipped(big_endian(nibabel.Nifti2Image))), STORED),
]
