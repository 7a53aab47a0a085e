"""Listing a folder: every file below it, in a fixed order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """The files below a folder."""

    root: Path
    files: tuple[Path, ...]
    """Sorted; hidden files, hidden folders and the output folder left out."""
    num_hidden: int
    """Hidden NIfTI files that were left out (such as macOS `._x.nii.gz`)."""

    def names(self) -> dict[Path, frozenset[str]]:
        """Folder to the names of the files in it."""
        folders: dict[Path, set[str]] = {}
        for path in self.files:
            folders.setdefault(path.parent, set()).add(path.name)
        return {folder: frozenset(names) for folder, names in folders.items()}


def list_tree(root: Path, skip: Path) -> Tree:
    """List `root`, following links to folders once, without going into `skip` (the output folder).

    Raises
    ------
    UsageError
        A folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    num_hidden = 0
    skip = skip.resolve()
    for folder, names, leaves in os.walk(root, followlinks=True, onerror=_raise):
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".") and _is_new(Path(folder, name), seen) and Path(folder, name).resolve() != skip
        )
        files += [Path(folder, name) for name in leaves if not name.startswith(".")]
        num_hidden += sum(name.startswith(".") and is_nifti(name) for name in leaves)
    return Tree(root=root, files=tuple(sorted(files)), num_hidden=num_hidden)


def is_nifti(name: str) -> bool:
    """Whether a file name ends as NIfTI files do."""
    return name.endswith((".nii", ".nii.gz"))


def stem(name: str) -> str:
    """`name` without `.nii` or `.nii.gz`."""
    return name.removesuffix(".gz").removesuffix(".nii")


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return False
    seen.add(key)
    return True


def _raise(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")
