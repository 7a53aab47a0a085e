"""A section of the report: what a stage has to show, whoever computed it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eval.page.canvas import Drawing

NUMBER = re.compile(r"^[<>≤≥±+\-−]? ?\d[\d.,eE+±\-−–() /%to]*( ?(ms|s|min|mm|Hz|GB|MB|kB))?$")
MISSING = ("", "undefined", "unknown", "n/a", "-", "–")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A small table; cells are text, and a column of nothing but numbers is set to the right.

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

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")

    @property
    def is_numeric(self) -> tuple[bool, ...]:
        """For each column, whether all its cells are numbers, intervals, or missing."""
        columns = ([row[place] for row in self.rows] for place in range(len(self.columns)))
        return tuple(
            any(NUMBER.match(cell) or cell == "undefined" for cell in cells)
            and all(NUMBER.match(cell) or cell in MISSING for cell in cells)
            for cells in columns
        )


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
    methods : str
        Sentences for the methods paragraph, true for what was done here, or ''.
    """

    anchor: str
    title: str
    paragraphs: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    files: tuple[str, ...] = ()
    methods: str = ""
