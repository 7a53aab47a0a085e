"""Gzip streams that are cut, damaged, or unusual, and other compressions under a gzip name."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from hostile_case import PLAIN, STORED, ZIPPED, Case, content, edited, fails, nifti2, takes, zipped
from numcodecs import Zstd

CRC = struct.pack("<I", zlib.crc32(PLAIN))
SIZE = struct.pack("<I", len(PLAIN))
FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT = 1, 2, 4, 8, 16
MIDDLE = len(ZIPPED) // 2


def member(data: bytes, flags: int = 0, fields: bytes = b"", trailer: bytes | None = None, level: int = 1) -> bytes:
    """A gzip member put together by hand: flags and optional fields of the header, and a trailer that may lie."""
    packer = zlib.compressobj(level, wbits=-15)
    body = packer.compress(data) + packer.flush()
    end = struct.pack("<II", zlib.crc32(data), len(data)) if trailer is None else trailer
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\x00\xff" + fields + body + end


def damaged(position: int, data: bytes) -> bytes:
    return ZIPPED[:position] + data + ZIPPED[position + len(data) :]


def header_crc() -> bytes:
    """Every optional field there is, the last one the header's own checksum."""
    flags = FTEXT | FHCRC | FEXTRA | FNAME | FCOMMENT
    fields = struct.pack("<H", 6) + b"xx\x02\x00ab" + b"bold.nii\x00" + b"a comment\x00"
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\x00\xff" + fields
    return member(PLAIN, flags, fields + struct.pack("<H", zlib.crc32(head) & 0xFFFF))


def in_members(size: int) -> bytes:
    """A member for every `size` bytes."""
    return b"".join(member(PLAIN[k : k + size]) for k in range(0, len(PLAIN), size))


def bgzip() -> bytes:
    """As htslib's bgzip writes it: members that say their size in an extra field, the last one empty."""
    blocks = []
    for data in (PLAIN[:4000], PLAIN[4000:], b""):
        size = len(member(data, FEXTRA, bytes(8))) - 1
        blocks.append(member(data, FEXTRA, struct.pack("<H2sHH", 6, b"BC", 2, size)))
    return b"".join(blocks)


def deflate(*blocks: bytes) -> bytes:
    """A gzip header before these bytes."""
    return b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff" + b"".join(blocks)


def zeros_behind(data: bytes, num_mib: int) -> bytes:
    """These bytes and then zeros in one member, about a thousand for each byte; its trailer is missing."""
    packer = zlib.compressobj(9, wbits=31)
    begin = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)
    return begin + num_mib * (packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH))


def few_behind_many() -> bytes:
    """A header that declares nearly what so many bytes could inflate to, before bytes that do not inflate at all."""
    noise = np.random.default_rng(0).bytes(300_000)
    num_frames = 900 * len(noise) // 480
    return zipped(nifti2(dim={4: num_frames})[:544] + noise)


def as_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("bold.nii", PLAIN)
    return file.getvalue()


def as_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("bold.nii")
        info.size = len(PLAIN)
        archive.addfile(info, io.BytesIO(PLAIN))
    return file.getvalue()


NOT_NIFTI = ("header", "not-nifti")
CUTS = {"after the gzip header": 10, "in the gzip header": 5, "after the magic": 2, "in the NIfTI header": 100}
OTHERS = {
    "zstd": lambda: bytes(Zstd().encode(PLAIN)),
    "bzip2": lambda: bz2.compress(PLAIN),
    "xz": lambda: lzma.compress(PLAIN),
    "zlib": lambda: zlib.compress(PLAIN),
    "zip": as_zip,
    "LZW (.Z)": b"\x1f\x9d\x90" + ZIPPED,
    "a tar in gzip": as_tar,
    "gzip in gzip": lambda: zipped(ZIPPED),
}

CASES: list[Case] = [
    # cut
    *(fails(f"cut {name}", content(ZIPPED[:end]), "header", "truncated", "") for name, end in CUTS.items()),
    fails("cut within the magic", content(ZIPPED[:1]), "header", "truncated", "1 byte"),
    fails("cut in the data", content(ZIPPED[:MIDDLE]), "data", "truncated", ""),
    fails("cut before the trailer", content(ZIPPED[:-8]), "data", "truncated", ""),
    fails("cut in the trailer", content(ZIPPED[:-3]), "data", "truncated", ""),
    fails("cut in the second member", content(in_members(4000)[:-2000]), "data", "truncated", ""),
    fails("whole members missing", content(member(PLAIN[:4000])), "data", "truncated", "of 20"),
    # damaged
    fails("checksum of another file", content(member(PLAIN, trailer=b"abcd" + SIZE)), "data", "damaged", ""),
    fails("length of another file", content(member(PLAIN, trailer=CRC + b"abcd")), "data", "damaged", ""),
    fails("a flipped bit", content(damaged(MIDDLE, bytes([ZIPPED[MIDDLE] ^ 4]))), "data", "damaged", ""),
    fails("a block of zeros in the middle", content(damaged(MIDDLE, bytes(512))), "data", "damaged", ""),
    fails("garbage behind", content(ZIPPED + 10 * b"garbage"), "data", "damaged", ""),
    fails("a damaged member behind", content(ZIPPED + damaged(12, b"\xff\xff\xff")), "data", "damaged", ""),
    fails("unknown compression method", content(damaged(2, b"\x07")), "header", "damaged", ""),
    fails("a block of no type", content(deflate(b"\x07", bytes(100))), "header", "damaged", ""),
    fails(
        "reaches back before the beginning", content(deflate(b"\x4b\x04\x41\x00", bytes(100))), "header", "damaged", ""
    ),
    fails("a name without an end", content(deflate()[:3] + bytes([FNAME]) + b"n" * 10**6), "header", "truncated", ""),
    # too much or too little in a sound stream
    fails("fewer frames than declared", content(zipped(PLAIN[:-50])), "data", "truncated", "frame 19 of 20"),
    fails(
        "a frame more than declared",
        content(zipped(PLAIN + bytes(480))),
        "data",
        "excess-data",
        "more than the 20 frames",
    ),
    fails("two files joined", content(ZIPPED + ZIPPED), "data", "excess-data", "more than the 20 frames"),
    fails(
        "1 GB of zeros behind the run",
        content(zeros_behind(PLAIN, 1024)),
        "data",
        "excess-data",
        "more than the 20 frames",
    ),
    fails("1 GB of zeros and no header", content(zeros_behind(b"", 1024)), *NOT_NIFTI, ""),
    fails("256 MB declared, 300 kB there", content(few_behind_many), "data", "truncated", ""),
    fails(
        "30 MB of zeros as frames",
        content(lambda: zipped(nifti2(dim={4: 65_536})[:544]) + zipped(bytes(480 * 65_536))),
        "constant",
        "constant",
        "no voxel in the mask varies",
    ),
    # strange and sound
    takes("zeros behind, as tapes leave them", content(ZIPPED + bytes(100_000)), STORED),
    takes("less than a frame behind the last", content(zipped(PLAIN + bytes(100))), STORED),
    takes("blocks that are stored, not deflated", content(lambda: member(PLAIN, level=0)), STORED),
    takes("many members", content(in_members(1000)), STORED),
    takes("a member for each 100 bytes", content(in_members(100)), STORED),
    takes("an empty member first", content(member(b"") + ZIPPED), STORED),
    takes("an empty member last", content(ZIPPED + member(b"")), STORED),
    takes("bgzip", content(bgzip), STORED),
    takes("all optional fields", content(header_crc), STORED),
    takes("a comment of 100 kB", content(member(PLAIN, FCOMMENT, b"c" * 100_000 + b"\0")), STORED),
    takes("plain under a gzip name", content(PLAIN), STORED),
    takes("gzip under a plain name", content(ZIPPED, "bad.nii"), STORED, source="bad.nii"),
    takes("header in version 2 and gzip", content(lambda: zipped(nifti2())), STORED),
    takes(
        "an offset beyond a member's end",
        content(lambda: zipped(edited(vox_offset=70_352)[:352] + bytes(70_000) + PLAIN[352:])),
        STORED,
    ),
    *(fails(f"{name} under a gzip name", content(data), *NOT_NIFTI, "") for name, data in OTHERS.items()),
]
