"""How the subcommands print: with rich on a terminal, as plain aligned text into a pipe."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shards.json_text import strict_json

GAP = 2
"""Blanks between columns."""
MOST_FOLDED = 1000
"""Rows that rich sets; it takes about 0.7 ms each."""


def printable(text: str) -> str:
    """`text` with every character that a terminal would take for a command written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def on_terminal() -> bool:
    """Whether a person reads the output."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """Print one JSON value; what is not a finite number becomes null."""
    print(strict_json(value))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print labels and what there is to say of each, which is folded at the width of a terminal."""
    width = max(len(label) for label, _ in facts)
    if not on_terminal():
        for label, text in facts:
            print(f"{label:<{width}}{' ' * GAP}{printable(text)}".rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in facts:
        grid.add_row(label, Text(printable(text)))
    Console(highlight=False).print(grid)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, folded on a narrow terminal, the others to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not on_terminal() or len(cells) > MOST_FOLDED:
        widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
        for row in (headings, *cells):
            first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            print((" " * GAP).join([first.strip().ljust(widths[0]), *rest]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


@contextmanager
def progress_bar(what: str, total: int, *, of_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal; yields what is called with each advance."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    measured = [DownloadColumn(), Speed()] if of_bytes else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(20), *measured, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def decimals(value: float, digits: int) -> str:
    """`value` with so many digits behind the point, or `n/a`."""
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def size(num_bytes: float) -> str:
    """`num_bytes` for people, in powers of 1000: `1.3 GB`."""
    from rich.filesize import decimal

    return decimal(int(num_bytes)).replace("bytes", "B")


def plural(count: int, noun: str) -> str:
    """`1 run`, `40,000 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
