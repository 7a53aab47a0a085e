"""NIfTI files, read once and in order: header checks, then frames streamed into masked rows.

nibabel parses the header; the data never exist as a dense 4D array. A frame is inflated into one
reused buffer, its mask voxels are kept, and the file's own bytes are hashed on the way.
"""

from __future__ import annotations

import math
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from ingest.failures import RunError

GZIP_MAGIC = b"\x1f\x8b"
MAX_DEFLATE_RATIO = 1032
"""No deflate stream expands further than this (a 258-byte match in 2 bits)."""
MAX_TR_S = 100.0
TIME_UNITS_S = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}
"""xyzt_units code to seconds; 0, unknown, is taken as seconds."""
HEADER_PIECE_BYTES = 64 * 1024
PIECE_BYTES = 512 * 1024
"""Read at once where it is not frames that are wanted."""
_HEADER_BYTES = (348, 540)
_LINE_ENDS = (b"\r\n\x1a\n", bytes(4))
"""What follows the magic of NIfTI-2; something else went through a transfer of text."""
_BYTE_ORDERS: dict[Any, str] = {"little": "<", "big": ">"}
AGAIN, SFORM, FLOAT32 = "copy or make the file again", "correct the sform", "convert it to float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What a NIfTI header says, checked."""

    shape: tuple[int, ...]
    """As stored: (x, y, z) or (x, y, z, time)."""
    dtype: np.dtype[Any]
    """Of the stored values, with their byte order."""
    affine: NDArray[np.float64]
    """(4, 4), stored voxel indices to millimetres."""
    slope: float
    inter: float
    """value = slope * stored + inter."""
    tr_s: float
    """Repetition time in seconds; nan where the header has none that makes sense."""
    data_offset: int
    compressed: bool
    num_file_bytes: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one volume."""
        return math.prod(self.shape[:3]) * self.dtype.itemsize

    @property
    def num_frames(self) -> int:
        """Volumes in the file."""
        return math.prod(self.shape[3:])


def read_header(path: Path) -> Header:
    """Read and check the header of a NIfTI-1 or NIfTI-2 file, plain or gzipped.

    Raises
    ------
    RunError
        Stage `open` or `header`: the file cannot be read, is no NIfTI file, or declares what cannot be.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RunError("open", "not a regular file", "leave it out with --exclude", "unreadable")
        num_file_bytes = status.st_size
        with path.open("rb") as file:
            first = file.read(HEADER_PIECE_BYTES)
            compressed = first[:2] == GZIP_MAGIC
            block = _inflate_start(first, file) if compressed else first
    except OSError as error:
        raise _os_error("open", path, error, "check the path, the link and the permissions") from None
    raw = _parse(block, path.name, compressed)
    header = Header(
        shape=_chk_shape(raw),
        dtype=_chk_dtype(raw),
        affine=_chk_affine(raw),
        slope=_chk_scaling(raw)[0],
        inter=_chk_scaling(raw)[1],
        tr_s=_time_step_s(raw),
        data_offset=_chk_offset(raw),
        compressed=compressed,
        num_file_bytes=num_file_bytes,
    )
    _chk_size(header)
    return header


def stream_rows(path: Path, header: Header, voxels: NDArray[np.intp], rows: NDArray[Any]) -> str:
    """Read every frame once, in order, and keep the voxels asked for.

    Parameters
    ----------
    path, header
        The file and what `read_header` said of it.
    voxels
        (voxel,) positions in a stored frame (Fortran order, as NIfTI lays it out).
    rows
        (time, voxel), filled; of the file's own dtype in native byte order.

    Returns
    -------
    str
        XXH3-128 of the file's bytes as they lie on disk.

    Raises
    ------
    RunError
        Stage `data`: the stream is cut, damaged, or holds more frames than its header says.
    """
    from ingest.crop import Crop

    crop = Crop(voxels, header.shape[:3])
    return for_each_frame(path, header, lambda t, frame: crop.take(frame, rows[t]))


def for_each_frame(path: Path, header: Header, use: Callable[[int, NDArray[Any]], Any]) -> str:
    """Call `use(t, frame)` for each frame, flat and in native byte order; return XXH3-128 of the file.

    The frame's buffer is reused: it must be neither kept nor written to. Errors are those of `stream_rows`.
    """
    from ingest.gunzip import Gunzip, GzipError  # compiled kernels: half a second that headers need not pay

    native = np.empty(0 if header.dtype.isnative else math.prod(header.shape[:3]), header.dtype.newbyteorder("="))
    most = max(header.frame_bytes, PIECE_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            raw = HashedFile(file)
            stream: _Stream = Gunzip(raw, most) if header.compressed else _Plain(raw, most)
            _skip(stream, header.data_offset)
            for t in range(header.num_frames):
                frame = _read(stream, header.frame_bytes, f"in frame {t} of {header.num_frames}").view(header.dtype)
                if not header.dtype.isnative:
                    native[:] = frame
                use(t, frame if header.dtype.isnative else native)
            _chk_end(stream, header)
            return raw.hexdigest()
    except EOFError as error:
        raise RunError("data", f"the gzip stream is cut short ({error})", AGAIN, "truncated") from None
    except GzipError as error:
        raise RunError("data", f"the gzip stream is damaged ({error})", AGAIN, "damaged") from None
    except OSError as error:
        raise _os_error("data", path, error, "check the disk, then run ingest again") from None


class _Stream(Protocol):
    def read(self, num_bytes: int) -> NDArray[np.uint8]:
        """The next bytes, fewer only at the end; a view that lasts until the next call."""


class HashedFile:
    """A raw file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = xxhash.xxh3_128()

    def readinto(self, buffer: Any, /) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._hash.update(memoryview(buffer)[:count])
        return count

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Plain:
    """A file without compression, read as `Gunzip` is."""

    def __init__(self, file: HashedFile, most_bytes: int) -> None:
        self._file = file
        self._buffer = np.empty(most_bytes, np.uint8)

    def read(self, num_bytes: int) -> NDArray[np.uint8]:
        done = 0
        while count := self._file.readinto(self._buffer[done:num_bytes]):
            done += count
        return self._buffer[:done]


def _skip(stream: _Stream, num_bytes: int) -> None:
    for start in range(0, num_bytes, PIECE_BYTES):
        _read(stream, min(PIECE_BYTES, num_bytes - start), "before the data")


def _read(stream: _Stream, num_bytes: int, where: str) -> NDArray[np.uint8]:
    found = stream.read(num_bytes)
    if len(found) < num_bytes:
        raise RunError("data", f"the file ends {where}", AGAIN, "truncated")
    return found


def _chk_end(stream: _Stream, header: Header) -> None:
    """Read on to the end, which checks the gzip CRC; up to one frame of padding is let pass."""
    extra = 0
    while count := len(stream.read(PIECE_BYTES)):
        extra += count
        if extra >= header.frame_bytes:
            raise RunError(
                "data",
                f"the file holds more than the {header.num_frames} frames that its header declares",
                "correct dim[4] in the header, or make the file again",
                "excess-data",
            )


def _inflate_start(data: bytes, file: IO[bytes]) -> bytes:
    """The first bytes of the content, out of as many gzip members as they lie in."""
    block, member = b"", zlib.decompressobj(wbits=31)
    try:
        while data and len(block) < max(_HEADER_BYTES):
            block += member.decompress(data, max(_HEADER_BYTES) - len(block))
            data = (member.unused_data if member.eof else member.unconsumed_tail) or file.read(HEADER_PIECE_BYTES)
            if member.eof:
                member = zlib.decompressobj(wbits=31)
        return block
    except zlib.error as error:
        raise RunError("header", f"the gzip stream is damaged ({error})", AGAIN, "damaged") from None


def _parse(block: bytes, name: str, compressed: bool) -> Any:
    """nibabel's header object for the first bytes of a file."""
    import nibabel

    if len(block) < 4:
        size = f"{len(block)} byte{'s' if len(block) > 1 else ''}, a header has 348" if block else "it is empty"
        raise RunError("header", f"not a NIfTI file: {size}", AGAIN, "truncated")
    orders = {int.from_bytes(block[:4], order): sign for order, sign in _BYTE_ORDERS.items()}
    needed = next((size for size in _HEADER_BYTES if size in orders), None)
    if needed is None:
        unzipped = "" if compressed or not name.endswith(".gz") else "no gzip stream and "
        raise RunError(
            "header",
            f"{unzipped}not a NIfTI file (first bytes {block[:8]!r}, wanted 348 or 540 as an int32)",
            "remove it or leave it out with --exclude",
            "not-nifti",
        )
    if len(block) < needed:
        raise RunError("header", f"{len(block)} bytes, a header has {needed}", AGAIN, "truncated")
    kind = nibabel.Nifti1Header if needed == 348 else nibabel.Nifti2Header
    raw = kind(block[:needed], endianness=orders[needed], check=False)
    magic, wanted = (block[344:348], b"n+1\0") if needed == 348 else (block[4:8], b"n+2\0")
    if magic[:3] in (b"ni1", b"ni2"):
        raise RunError("header", "a .hdr/.img pair, not one file", "convert it to .nii.gz", "pair")
    if magic != wanted or (needed == 540 and block[8:12] not in _LINE_ENDS):
        reason = f"magic is {magic!r}, wanted {wanted!r}, and no line ends converted as in text"
        raise RunError("header", reason, "convert it to .nii.gz", "not-nifti")
    return raw


def _chk_shape(raw: Any) -> tuple[int, ...]:
    num_axes = int(raw["dim"][0])
    if not 1 <= num_axes <= 7:
        raise RunError("header", f"dim[0] is {num_axes}, allowed 1 to 7", "make the file again", "bad-shape")
    shape = tuple(int(size) for size in raw["dim"][1 : 1 + num_axes])
    if min(shape) < 1:
        raise RunError("header", f"a dimension is below 1: {shape}", "make the file again", "bad-shape")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape + (1,) * (3 - len(shape))


def _chk_dtype(raw: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except KeyError as error:
        raise RunError("header", f"unknown data type, code {error}", FLOAT32, "bad-dtype") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise RunError("header", f"values are {dtype}, wanted real numbers of at most 8 bytes", FLOAT32, "bad-dtype")
    return dtype


def _chk_affine(raw: Any) -> NDArray[np.float64]:
    from nibabel.spatialimages import HeaderDataError

    try:
        affine = np.asarray(raw.get_best_affine(), np.float64)
    except (ValueError, ArithmeticError, HeaderDataError) as error:
        raise RunError("header", f"its orientation makes no sense ({error})", SFORM, "bad-affine") from None
    with np.errstate(all="ignore"):
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    if not np.isfinite(affine).all() or not 1e-12 <= voxel_mm3 < math.inf:
        rows = [[float(f"{x:.4g}") for x in row] for row in affine[:3]]
        raise RunError("header", f"its affine is not finite and invertible: {rows}", SFORM, "bad-affine")
    return affine


def _chk_scaling(raw: Any) -> tuple[float, float]:
    """scl_slope and scl_inter; slope 0 or NaN means that there is no scaling."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return (1.0, 0.0)
    if not math.isfinite(inter):
        raise RunError("header", f"scl_slope is {slope:g} but scl_inter {inter}", "correct the header", "bad-scaling")
    return (slope, inter)


def _chk_offset(raw: Any) -> int:
    offset = float(raw["vox_offset"])
    least = 352 if int(raw["sizeof_hdr"]) == 348 else 544
    if not 0 <= offset < 2**31 or offset != int(offset) or 0 < offset < least:
        raise RunError("header", f"data begin at byte {offset}", "make the file again", "bad-offset")
    return int(offset) or least


def _chk_size(header: Header) -> None:
    """Compare what the header declares with what the file can hold, before anything is allocated."""
    declared = header.data_offset + header.frame_bytes * header.num_frames
    most = header.num_file_bytes * (MAX_DEFLATE_RATIO if header.compressed else 1)
    if declared > most:
        holds = "can inflate to at most" if header.compressed else "has"
        raise RunError(
            "header",
            f"declares {declared} bytes ({' x '.join(map(str, header.shape))} {header.dtype}), the file {holds} {most}",
            AGAIN,
            "too-large" if header.compressed else "truncated",
        )


def _time_step_s(raw: Any) -> float:
    factor = TIME_UNITS_S.get(int(raw["xyzt_units"]) & 0x38)
    step = float(raw["pixdim"][4])
    return step * factor if factor is not None and math.isfinite(step) and step != 0 else math.nan


def _os_error(stage: str, path: Path, error: OSError, remedy: str) -> RunError:
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 -- those of Path raise
        return RunError(stage, "a broken link (with DataLad: not fetched yet)", remedy, "missing")
    kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
    return RunError(stage, f"cannot be read ({error.strerror or error})", remedy, kind)
