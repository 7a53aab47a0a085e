"""Listing a folder: the names of all files below it, in a fixed order, without opening or resolving any.

A file costs one entry of `os.scandir`. Folders are listed many at a time, since on a parallel filesystem
listing waits more than it works. Where the names around a folder say that no layout keeps runs in it
(`anat` and `figures` of a BIDS subject, `T1w` of an HCP subject, a FreeSurfer subject), it is not entered.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UsageError

THREADS = 16
_BATCH = 64
"""Folders that a thread lists in one go."""
_NOT_A_FOLDER = (".nii", ".gz", ".json", ".tsv", ".txt", ".par", ".html", ".svg")
"""A link with such a name is taken for a link to a file without looking: datalad's trees are all links."""
_BESIDE_FUNC = frozenset(
    ("anat", "beh", "dwi", "eeg", "fmap", "figures", "ieeg", "log", "logs", "meg", "micr", "mrs", "nirs", "perf", "pet")
)
_BESIDE_MNINONLINEAR = frozenset(("T1w", "T2w", "unprocessed", "release-notes"))
_IN_A_MELODIC_FOLDER = frozenset(("mc", "reg", "reg_standard"))
_UKB_SUBJECT = re.compile(r"\d+_\d+_\d+_\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """One folder and the names of its files."""

    where: str
    """Path below the root, with forward slashes; empty for the root."""
    parts: tuple[str, ...]
    """Every part of the absolute path, those above the root too."""
    names: tuple[str, ...]
    """Files, sorted; hidden ones left out."""

    def has(self, name: str) -> bool:
        """Whether a file of that name is in it."""
        k = bisect_left(self.names, name)
        return k < len(self.names) and self.names[k] == name


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """The files below a folder."""

    root: Path
    folders: tuple[Folder, ...]
    """In order of path; hidden folders and the output folder left out."""
    num_hidden: int
    """Hidden NIfTI files that were left out (such as macOS `._x.nii.gz`)."""
    num_not_entered: int
    """Folders in which no layout keeps runs."""
    unlistable: tuple[str, ...]
    """Path and reason of each folder that could not be listed."""

    @property
    def num_files(self) -> int:
        """Files listed."""
        return sum(len(folder.names) for folder in self.folders)

    def names(self) -> Iterator[str]:
        """Every file's name, without its folder."""
        return (name for folder in self.folders for name in folder.names)

    def path(self, folder: Folder, name: str) -> Path:
        """Path of a file as the user would write it."""
        return Path(self.root, folder.where, name)

    def first(self, folder: Folder, names: Sequence[str]) -> Path | None:
        """Path of the first of `names` that is there."""
        return next((self.path(folder, name) for name in names if folder.has(name)), None)


@dataclass(slots=True)
class _Listed:
    """What one call of `os.scandir` says."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    num_hidden: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder still to be listed."""

    where: str
    real: str
    """Path without links: a folder is entered once, whatever leads to it."""


@dataclass(slots=True)
class _Walk:
    """A listing under way."""

    root: Path
    everywhere: bool
    seen: set[str]
    """Folders without links that are listed, or never to be."""
    links: list[_Place] = field(default_factory=list)
    """To be followed when all real folders are listed."""
    folders: list[Folder] = field(default_factory=list)
    unlistable: list[str] = field(default_factory=list)
    num_hidden: int = 0
    num_not_entered: int = 0

    def take(self, place: _Place, listed: _Listed) -> list[_Place]:
        """Keep what was listed; returns the folders to list next."""
        if listed.error:
            self.unlistable.append(f"{self.root / place.where}: {listed.error}")
            return []
        above = self.root.resolve() if self.root.name in ("", "..") else self.root.absolute()
        parts = (above / place.where).parts
        self.folders.append(Folder(where=place.where, parts=parts, names=tuple(sorted(listed.files))))
        self.num_hidden += listed.num_hidden
        barred = frozenset() if self.everywhere else _without_runs(parts, listed.folders + listed.links)
        self.num_not_entered += len(barred)
        prefix = f"{place.where}/" if place.where else ""
        self.links += [_Place(prefix + name, "") for name in listed.links if name not in barred]
        return [_Place(prefix + name, f"{place.real}/{name}") for name in listed.folders if name not in barred]

    def new(self, places: list[_Place]) -> list[_Place]:
        """The places not seen before, in order of path, from now on seen."""
        new = []
        for place in sorted(places, key=lambda place: place.where):
            if place.real not in self.seen:
                self.seen.add(place.real)
                new.append(place)
        return new

    def follow_links(self) -> list[_Place]:
        """Where the links lead that have not been followed, as far as that is new."""
        places = [_Place(link.where, os.path.realpath(self.root / link.where)) for link in self.links]
        self.links = []
        return self.new(places)


def list_tree(root: Path, skip: Path, *, everywhere: bool = False) -> Tree:
    """List `root`, entering each folder once, real ones before links, and never `skip` (the output folder).

    Parameters
    ----------
    everywhere
        Enter also the folders in which no layout keeps runs.

    Raises
    ------
    UsageError
        `root` itself cannot be listed.
    """
    walk = _Walk(root=root, everywhere=everywhere, seen={os.path.realpath(skip)})
    level = walk.new([_Place("", os.path.realpath(root))])
    with ThreadPoolExecutor(THREADS) as pool:
        while level:
            listed = zip(level, _list_all(pool, root, level), strict=True)
            level = walk.new([below for place, one in listed for below in walk.take(place, one)]) or walk.follow_links()
    if not walk.folders:
        raise UsageError(f"{walk.unlistable[0]}, so it cannot be listed; check its permissions")
    return Tree(
        root=root,
        folders=tuple(sorted(walk.folders, key=lambda folder: folder.parts)),
        num_hidden=walk.num_hidden,
        num_not_entered=walk.num_not_entered,
        unlistable=tuple(sorted(walk.unlistable)),
    )


def is_nifti(name: str) -> bool:
    """Whether a file name ends as NIfTI files do."""
    return name.endswith((".nii", ".nii.gz"))


def stem(name: str) -> str:
    """`name` without `.nii` or `.nii.gz`."""
    return name.removesuffix(".gz").removesuffix(".nii")


def _without_runs(parts: tuple[str, ...], names: list[str]) -> frozenset[str]:
    """Those of the folders `names` in a folder `parts` that no layout keeps runs in."""
    name = parts[-1]
    if {"mri", "surf", "label"} <= set(names) or parts[-3:-1] == ("MNINonLinear", "Results"):
        return frozenset(names)
    if name == "MNINonLinear":
        return frozenset(names) - {"Results"}
    if "MNINonLinear" in names:
        return _BESIDE_MNINONLINEAR.intersection(names)
    if name.startswith(("sub-", "ses-")):
        return _BESIDE_FUNC.intersection(names)
    if "fMRI" in names and _UKB_SUBJECT.fullmatch(name):
        return frozenset(names) - {"fMRI"}
    if parts[-2:-1] == ("fMRI",) and name.endswith((".ica", ".feat")):
        return frozenset(names) - _IN_A_MELODIC_FOLDER
    return frozenset()


def _list_all(pool: ThreadPoolExecutor, root: Path, level: list[_Place]) -> Iterator[_Listed]:
    paths = [f"{root}/{place.where}" for place in level]
    batches = [paths[k : k + _BATCH] for k in range(0, len(paths), _BATCH)]
    for listings in pool.map(lambda batch: [_list(path) for path in batch], batches):
        yield from listings


def _list(path: str) -> _Listed:
    listed = _Listed()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                _sort_in(entry, listed)
    except OSError as error:
        listed.error = error.strerror or str(error)
    return listed


def _sort_in(entry: os.DirEntry[str], listed: _Listed) -> None:
    name = entry.name
    if name.startswith("."):
        listed.num_hidden += is_nifti(name)
    elif entry.is_symlink():
        (listed.links if _leads_to_a_folder(entry) else listed.files).append(name)
    elif entry.is_dir(follow_symlinks=False):
        listed.folders.append(name)
    else:  # pipes and devices too: a run of such a name fails later, it does not vanish
        listed.files.append(name)


def _leads_to_a_folder(link: os.DirEntry[str]) -> bool:
    if link.name.endswith(_NOT_A_FOLDER):
        return False
    try:
        return link.is_dir()
    except OSError:  # a loop of links
        return False
