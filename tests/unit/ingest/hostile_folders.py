"""Names, links, pipes and masks that a lab's archive may hold."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import nibabel
import numpy as np
from hostile_case import (
    BAD,
    IMAGE,
    PLAIN,
    STORED,
    ZIPPED,
    Case,
    Write,
    beside,
    content,
    edited,
    fails,
    link_to,
    link_to_pipe,
    refuses,
    takes,
    zipped,
)
from numpy.typing import NDArray

CUT = ZIPPED[:-3]
NAMES = {
    "blanks": "bad name .nii.gz",
    "quotes": "bad'\"`name.nii.gz",
    "a command": "bad;$(touch x)|&name.nii.gz",
    "patterns": "bad[*?]{name}.nii.gz",
    "percent signs": "bad%00%2e%s.nii.gz",
    "a backslash": "bad\\name.nii.gz",
    "a leading dash": "-bad.nii.gz",
    "letters of no label": "脳🧠.nii.gz",
    "dots": "bad...nii.gz",
    "composed umlaut": "b\u00e4d.nii.gz",
    "decomposed umlaut": "ba\u0308d.nii.gz",
}
UNPRINTABLE = {
    "a tab": "bad\tname.nii.gz",
    "a line end": "bad\nname.nii.gz",
    "a carriage return": "bad\rname.nii.gz",
    "a terminal's colours": "bad\x1b[31mname.nii.gz",
    "right to left": "bad\u202ename.nii.gz",
    "a line separator": "bad\u2028name.nii.gz",
    "bytes that are no UTF-8": os.fsdecode(b"bad\xe9name.nii.gz"),
}


def shown(name: str) -> str:
    """A name as messages and tables have it: on one line, in characters that can be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def at(path: str, data: bytes = ZIPPED) -> Write:
    """A file below folders that are made."""

    def write(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)

    return write


def two(one: str, other: str) -> Write:
    def write(folder: Path) -> None:
        for name in (one, other):
            (folder / name).write_bytes(ZIPPED if name.endswith(".gz") else PLAIN)

    return write


def linked(name: str, target: str) -> Write:
    return lambda folder: (folder / name).symlink_to(target)


def write_pipe(folder: Path) -> None:
    os.mkfifo(folder / BAD)


def write_link_to_pipe(folder: Path) -> None:
    link_to_pipe(folder / BAD)


def write_socket(folder: Path) -> None:
    """Bound by its name in the current folder: an address has at most 108 bytes."""
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(BAD)


def write_loops(folder: Path) -> None:
    """Folders that lead to themselves, to each other and to the folder above."""
    at("deep/" + BAD)(folder)
    for name, target in (
        ("self", "."),
        ("deep/up", ".."),
        ("one", "two"),
        ("two", "one"),
        ("deep/again", "../deep/up"),
    ):
        (folder / name).symlink_to(target)


def write_abyss(folder: Path) -> None:
    """Folders in folders, deeper than a path can say."""
    (folder / BAD).write_bytes(ZIPPED)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(250 * "d", dir_fd=here)
        below = os.open(250 * "d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def write_twin(folder: Path) -> None:
    (folder / BAD).hardlink_to(folder / "a-good.nii.gz")


def mask_image(values: NDArray, affine: NDArray | None = None) -> bytes:
    return zipped(nibabel.Nifti1Image(values, IMAGE.affine if affine is None else affine).to_bytes())


BLOCK = np.zeros((5, 6, 4), np.float32)
BLOCK[1:, 1:, 1:] = 1
HUGE = zipped(edited(nibabel.Nifti1Image(BLOCK, IMAGE.affine).to_bytes(), dim={1: 32767, 2: 32767, 3: 32767}))
MASKS = {
    "without a voxel": (mask_image(0 * BLOCK), "no voxel in it"),
    "of nan": (mask_image(np.nan * BLOCK), "no voxel in it"),
    "of complex numbers": (mask_image(BLOCK.astype(np.complex64)), "complex64"),
    "of four axes": (mask_image(np.stack([BLOCK, BLOCK], axis=3)), "4D, wanted 3D"),
    "of two axes": (mask_image(BLOCK[:, :, 0]), "grid is 5 x 6 x 1"),
    "on another grid": (mask_image(BLOCK, np.eye(4)), "grid is 5 x 6 x 4 at 1 x 1 x 1"),
    "of another shape": (mask_image(BLOCK[:, :5]), "grid is 5 x 5 x 4"),
    "cut": (mask_image(BLOCK)[:-3], "cut short"),
    "of text": (b"mask\n", "not a NIfTI file"),
    "that is empty": (b"", "empty"),
    "that declares 32767 in each axis": (HUGE, "declares"),
    "that leads nowhere": (link_to("gone"), "bad_mask.nii.gz"),
    "that is a folder": (link_to("."), "bad_mask.nii.gz"),
    "of endless zeros": (link_to("/dev/zero"), "bad_mask.nii.gz"),
    "that is a named pipe": (link_to_pipe, "bad_mask.nii.gz"),
}
GIVEN = ("--mask", "SRC/bad_mask.nii.gz")

NAMED = [
    *(takes(f"name with {what}", at(name), STORED, source=name) for what, name in {**NAMES, **UNPRINTABLE}.items()),
    *(
        fails(f"name with {what}, and cut", at(name, CUT), "data", "truncated", "", source=shown(name))
        for what, name in {**NAMES, **UNPRINTABLE}.items()
    ),
    fails(
        "a script of HTML",
        at("<script>alert(1)</script>.nii.gz", CUT),
        "data",
        "truncated",
        "",
        source="<script>alert(1)</script>.nii.gz",
    ),
]

CASES: list[Case] = [
    *NAMED,
    refuses("name of 255 bytes", at(248 * "b" + ".nii.gz"), 2, "at most 90 characters"),
    refuses("two names of no label", two("脳.nii.gz", "脑.nii.gz"), 2, "would both be run sub-unnamed"),
    refuses("plain and gzipped", two("bad.nii", BAD), 2, "would both be run sub-bad"),
    Case(
        name="names that differ in case", write=two("bad.nii", "Bad.nii"), taken={"bad.nii": STORED, "Bad.nii": STORED}
    ),
    Case(
        name="composed and decomposed",
        write=two("b\u00e4d.nii", "ba\u0308d.nii"),
        taken={"b\u00e4d.nii": STORED, "ba\u0308d.nii": STORED},
    ),
    Case(
        name="what macOS leaves beside a file",
        write=content(bytes(4096), "._bad.nii.gz"),
        says="1 hidden NIfTI files not used",
    ),
    # links and things that are no files
    fails("a link that leads nowhere", linked(BAD, "gone"), "open", "missing", "broken link"),
    fails("a link to itself", linked(BAD, BAD), "open", "missing", "link"),
    fails("a link to a folder", linked(BAD, "."), "open", "unreadable", ""),
    fails("a link to endless zeros", linked(BAD, "/dev/zero"), "open", "unreadable", "regular file"),
    fails("a link to nothing", linked(BAD, "/dev/null"), "open", "unreadable", "regular file"),
    fails("a link to this process's memory", linked(BAD, "/proc/self/mem"), "open", "unreadable", ""),
    fails("a link to a named pipe", write_link_to_pipe, "open", "unreadable", "regular file"),
    fails("a named pipe", write_pipe, "open", "unreadable", "regular file"),
    fails("a socket", write_socket, "open", "unreadable", "regular file"),
    takes("a link to a run", linked("bad.nii", "z-good.nii"), source="bad.nii", says="same content twice"),
    takes("two names of one file", write_twin, says="same content twice"),
    takes("folders in circles", write_loops, STORED, source="deep/" + BAD),
    takes("folders deeper than a path can say", write_abyss, STORED, says="cannot be listed"),
    takes("a folder with the name of a run", at("bad.nii.gz/x.nii.gz"), STORED, source="bad.nii.gz/x.nii.gz"),
    Case(name="an empty folder with the name of a run", write=lambda folder: (folder / BAD).mkdir()),
    refuses("--src is a link to itself", linked("loop", "loop"), 2, "no such file or folder", src="loop"),
    refuses("--src is a named pipe", write_pipe, 2, "cannot be listed", src=BAD),
    refuses(
        "--src is a named pipe, taken for a table",
        write_pipe,
        2,
        "cannot be read as a text table",
        src=BAD,
        flags=("--layout", "table"),
    ),
    refuses("--src is a run", content(ZIPPED), 2, "cannot be read as a text table", src=BAD),
    refuses("--src is an empty folder", lambda folder: (folder / "void").mkdir(), 3, "holds no files", src="void"),
    # masks
    *(
        takes(
            f"own mask {what}",
            beside("bad_mask.nii.gz", data),
            STORED,
            says="brain mask not used: bad_mask.nii.gz",
            flags=(),
        )
        for what, (data, _) in MASKS.items()
    ),
    *(
        refuses(f"--mask {what}", beside("bad_mask.nii.gz", data), 2, words, flags=GIVEN)
        for what, (data, words) in MASKS.items()
    ),
    takes(
        "--mask of halves, negatives and nan",
        beside("bad_mask.nii.gz", mask_image(np.where(BLOCK > 0, -0.5, np.nan))),
        STORED,
        flags=GIVEN,
    ),
    takes(
        "--mask of one volume on four axes",
        beside("bad_mask.nii.gz", mask_image(BLOCK[..., None])),
        STORED,
        flags=GIVEN,
    ),
    refuses("--mask without a file", content(ZIPPED), 2, "no such file", flags=GIVEN),
]
