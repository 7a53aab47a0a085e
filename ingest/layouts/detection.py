"""Which layout a folder has: the one of which most files are there, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from ingest.layouts import abcd, bids, flat, hcp, ukb
from ingest.layouts.layout import Found, Layout
from ingest.layouts.selection import nearest
from ingest.layouts.tree import Tree, list_tree
from ingest.record import RunRecord
from shards.errors import NothingMatchedError

RECOGNISED: dict[str, Layout] = {"hcp": hcp, "abcd": abcd, "ukb": ukb, "bids": bids}
"""Layouts with a look of their own, the more particular first."""
FOLDER_LAYOUTS: dict[str, Layout] = {**RECOGNISED, "flat": flat}

_ABOUT_THE_DATASET = ("participants.tsv", "participants.json", "dataset_description.json")


def find_in_folder(src: Path, out: Path, layout: str, why: str) -> tuple[str, Found]:
    """List a folder and find its runs, in the layout given (for the reason `why`) or in the one recognised.

    Returns
    -------
    layout
        Its name; `flat` where no other has a run.
    found
        Every version of every run; the first note says what was recognised and why.

    Raises
    ------
    NothingMatchedError
        There is no run; the message says what the folder looks like and what to do, or names the nearest files.
    """
    tree = list_tree(src, out, everywhere=layout == "flat")
    if layout == "auto":
        layout, found = _recognise(tree)
        if layout == "flat" and tree.num_not_entered:
            tree = list_tree(src, out, everywhere=True)
            layout, found = _recognise(tree)
    else:
        found = _with_note(FOLDER_LAYOUTS[layout].find_runs(tree), f"layout {layout}: {why}")
    if not found.records:
        raise NothingMatchedError(_nothing(tree, layout))
    return layout, replace(found, notes=(*found.notes, *_not_used(tree, found.records)))


def _recognise(tree: Tree) -> tuple[str, Found]:
    found = {name: layout.find_runs(tree) for name, layout in RECOGNISED.items()}
    there = {name: len(runs.records) for name, runs in found.items() if runs.records}
    if not there:
        for layout in RECOGNISED.values():
            if reason := layout.explain(tree):
                raise NothingMatchedError(f"{tree.root}: {reason}")
        note = f"layout flat: nothing of {', '.join(RECOGNISED)} recognised, so every NIfTI file counts as a run"
        return "flat", _with_note(flat.find_runs(tree), note)
    best = max(there, key=lambda name: there[name])
    note = f"layout {best}: {_files(there[best])} {FOLDER_LAYOUTS[best].PATTERN}"
    others = [f"{_files(there[name])} layout {name} (take them with --layout {name})" for name in there if name != best]
    return best, _with_note(found[best], "; ".join([note, *others]))


def _with_note(found: Found, note: str) -> Found:
    return replace(found, notes=(note, *found.notes))


def _files(count: int) -> str:
    return f"{count} file{' matches' if count == 1 else 's match'}"


def _not_used(tree: Tree, records: tuple[RunRecord, ...]) -> list[str]:
    """One line each on files and folders that are part of no run."""
    used = {path for r in records for path in (r.bold, r.mask, r.confounds, r.sidecar) if path is not None}
    kinds = Counter(_ending(name) for name in tree.names() if name not in _ABOUT_THE_DATASET)
    kinds.subtract(_ending(path.name) for path in used)
    about_confounds = {path.name for r in records if (path := r.confounds_json) is not None}
    kinds.subtract(_ending(name) for name in tree.names() if name in about_confounds)
    others = Counter({kind: count for kind, count in kinds.items() if count > 0})
    lines = []
    if others:
        listed = ", ".join(f"{count} {kind}" for kind, count in others.most_common(4))
        lines.append(f"{others.total()} other files not used ({listed}{', ...' if len(others) > 4 else ''})")
    if tree.num_not_entered:
        lines.append(f"{tree.num_not_entered} folders not looked into (anat, figures and such)")
    if tree.num_hidden:
        lines.append(f"{tree.num_hidden} hidden NIfTI files not used")
    if tree.unlistable:
        lines.append(
            f"{len(tree.unlistable)} folders cannot be listed, so what they hold is missing ({tree.unlistable[0]}); "
            "correct their permissions and run the same command again"
        )
    return lines


def _ending(name: str) -> str:
    """The last two extensions, or the whole name."""
    parts = name.split(".")
    return "." + ".".join(parts[1:][-2:]) if len(parts) > 1 else name


def _nothing(tree: Tree, layout: str) -> str:
    """What a folder without runs holds."""
    pattern = FOLDER_LAYOUTS[layout].PATTERN
    reason = FOLDER_LAYOUTS[layout].explain(tree)
    if reason:
        return f"{tree.root}: {reason}"
    names = [f"{folder.where}/{name}".lstrip("/") for folder in tree.folders for name in folder.names]
    if not names:
        return f"{tree.root}: nothing to ingest, it holds no files; tried {' and '.join(_patterns(layout))}"
    images = [name for name in names if ".nii" in name]
    near = nearest(pattern, images or names, 0.0)
    return f"{tree.root}: none of {len(names)} files matches {pattern}; nearest are {', '.join(near)}"


def _patterns(layout: str) -> list[str]:
    """The patterns that were tried."""
    layouts = FOLDER_LAYOUTS.values() if layout == "flat" else [FOLDER_LAYOUTS[layout]]
    return [layout.PATTERN for layout in layouts]
