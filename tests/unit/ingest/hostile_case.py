"""A hostile input: what it is called, how it is written, and how the command must end on it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nifti_files import bold_image
from numpy.typing import NDArray

BAD = "bad.nii.gz"
"""Stands between the good runs in order of name, so in the middle of their shard."""
GOOD = {"a-good.nii.gz": 1, "z-good.nii": 2}
"""Name to seed of the runs that lie beside every hostile input."""
IMAGE = bold_image(9)
PLAIN = IMAGE.to_bytes()
"""A run that nothing is wrong with."""
VALUES = IMAGE.get_fdata()

Write = Callable[[Path], Any]
"""Writes into the source folder, where the good runs are."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of hostile input."""

    name: str
    write: Write
    exit_code: int = 0
    failed: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Source to stage, class and words of the reason in failures.tsv."""
    taken: Mapping[str, NDArray | None] = field(default_factory=dict)
    """Source to the values it stands for, canonical (x, y, z, time); None: as nibabel reads the file."""
    says: str = ""
    """Words on stdout or, if the call is refused, of its one line on stderr."""
    flags: tuple[str, ...] = ("--mask", "MASK")
    """MASK stands for a good mask, SRC for the source folder."""
    src: str = ""
    """What --src names, below the source folder."""
    good: frozenset[str] = frozenset(GOOD)
    """The good runs that are ingested all the same."""


def fails(name: str, write: Write, stage: str, kind: str, words: str, *, source: str = BAD, **more: Any) -> Case:
    """A run that is left out, and said so, while the good ones are ingested."""
    return Case(name=name, write=write, exit_code=4, failed={source: (stage, kind, words)}, **more)


def takes(name: str, write: Write, values: NDArray | None = None, *, source: str = BAD, **more: Any) -> Case:
    """A run that looks strange and has nothing wrong with it."""
    return Case(name=name, write=write, taken={source: values}, **more)


def refuses(name: str, write: Write, exit_code: int, says: str, **more: Any) -> Case:
    """A call that ends in one line, with nothing written."""
    return Case(name=name, write=write, exit_code=exit_code, says=says, good=frozenset(), **more)


def content(data: bytes | Callable[[], bytes], name: str = BAD) -> Write:
    """Write these bytes as they are."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data() if callable(data) else data)

    return write


def link_to(target: str) -> Write:
    """For `beside`: a symbolic link."""
    return lambda path: path.symlink_to(target)


def link_to_pipe(path: Path) -> None:
    """For `beside`: a symbolic link to a named pipe that nobody writes to."""
    os.mkfifo(path.parent / "pipe")
    path.symlink_to("pipe")


def beside(name: str, data: bytes | str | Write) -> Write:
    """A run that nothing is wrong with, and a file of its own, or whatever `data(path)` makes."""

    def write(folder: Path) -> None:
        (folder / BAD).write_bytes(ZIPPED)
        path = folder / name
        if callable(data):
            data(path)
        else:
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    return write


def zipped(data: bytes) -> bytes:
    """One ordinary gzip member."""
    return gzip.compress(data, 1, mtime=0)


ZIPPED = zipped(PLAIN)


def edited(data: bytes = PLAIN, **fields: Any) -> bytes:
    """The bytes of an image with fields of its header changed: a value, or {position: value}."""
    kind, size = (nibabel.Nifti1Header, 348) if data[:4] == PLAIN[:4] else (nibabel.Nifti2Header, 540)
    raw = np.frombuffer(data[:size], kind.template_dtype).copy()  # as it is, no guessing of byte orders
    for name, value in fields.items():
        if isinstance(value, dict):
            for position, one in value.items():
                raw[name][0, position] = one
        else:
            raw[name][0] = value
    return raw.tobytes() + data[size:]


def header(**fields: Any) -> Write:
    """A gzipped run with fields of its header changed."""
    return content(partial(lambda: zipped(edited(**fields))))


def nifti2(**fields: Any) -> bytes:
    """The run as NIfTI-2, with fields of its header changed."""
    image = nibabel.Nifti2Image(VALUES.astype(np.float32), IMAGE.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = 2
    return edited(image.to_bytes(), **fields)


def array(values: NDArray, *, affine: NDArray | None = None, name: str = BAD, **fields: Any) -> Write:
    """A NIfTI-1 file of these values, of their dtype, on the good runs' grid unless `affine` is given."""
    image = nibabel.Nifti1Image(values, IMAGE.affine if affine is None else affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim > 3:
        image.header["pixdim"][4] = 2
    data = edited(image.to_bytes(), **fields)
    return content(zipped(data) if name.endswith(".gz") else data, name)


def canonical(values: NDArray) -> NDArray:
    """Stored values of the good runs' orientation, LAS, as the set has them, RAS."""
    return values[::-1]


STORED = canonical(VALUES.astype(np.float32))
"""The run that nothing is wrong with, as the set has it."""
