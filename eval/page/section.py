"""A section of the report: what a stage has to show, whoever computed it."""

from __future__ import annotations

from dataclasses import dataclass

from eval.page.canvas import Drawing


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A small table; cells are text, and those that look like numbers are set to the right.

    Attributes
    ----------
    columns : tuple of str
        Heads.
    rows : tuple of tuple of str
        As many cells each as there are columns.
    caption : str
        One sentence below it, or ''.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A titled part of the page.

    Attributes
    ----------
    anchor : str
        Its id on the page: lower-case letters and '-'.
    title : str
        For people.
    paragraphs : tuple of str
        Plain text: what was done and how to read it, then what came out.
    tables, drawings
        Shown in this order below the paragraphs.
    files : tuple of str
        Files that belong to it, relative to the report's folder.
    """

    anchor: str
    title: str
    paragraphs: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    files: tuple[str, ...] = ()
