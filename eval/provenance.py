"""Who wrote a file, and with which software."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from shards.errors import OutputError
from shards.writer import write_atomic

GENERATOR = "boldstream eval-fmri"
PACKAGES = ("boldstream", "torch", "deepspeed", "numpy", "scipy", "scikit-learn", "nilearn", "nibabel", "matplotlib")


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def refuse_foreign_files(out: Path, marks: Mapping[str, str], command: str) -> None:
    """Refuse a folder that results cannot be written to.

    Parameters
    ----------
    out : Path
        The folder; it need not exist.
    marks : mapping
        Name of each file that will be written to what stands near its beginning if `command` wrote it.
    command : str
        Such as 'eval-fmri report'.

    Raises
    ------
    OutputError
        `out` is a file, or holds a file of one of these names that `command` did not write.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}: a file, a folder is needed; choose another name")
    for path, mark in ((out / name, mark) for name, mark in marks.items()):
        if not path.exists():
            continue
        try:
            head = path.read_bytes()[:400].decode("utf-8", errors="replace")
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
        if mark not in head:
            raise OutputError(f"{path} was not written by {command} and is kept; choose another --out")


def write_files(out: Path, texts: Mapping[str, str]) -> None:
    """Write files, each whole or not at all, into a folder that is made if need be.

    Raises
    ------
    OutputError
        The folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be made ({error.strerror}); choose another folder") from error
    for name, text in texts.items():
        write_atomic(out / name, text)
