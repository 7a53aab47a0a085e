"""A table of runs, for everything that has no layout of its own.

A tab-separated file with a header line:

    subject  bold  [session  task  run  mask  confounds  tr_s  space]

`subject` and `bold` are required; empty cells and `n/a` mean absent; labels are text (`007` stays `007`); paths
are relative to the table's folder; `tr_s` is in seconds; `space` is a name such as MNI152NLin6Asym:res-2. `--src`
is the table itself.
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from ingest.record import RunRecord
from ingest.text_file import read_text
from shards.errors import UsageError

REQUIRED = ("subject", "bold")
OPTIONAL = ("session", "task", "run", "mask", "confounds", "tr_s", "space")
_LABEL = re.compile(r"[A-Za-z0-9_-]*")


def find_runs(table: Path) -> list[RunRecord]:
    """One record for each row.

    Raises
    ------
    UsageError
        A column is missing or unknown, or a cell is not what its column holds; the line is named.
    """
    numbered = _rows(table)
    columns = [name.strip() for name in numbered[0][1]] if numbered else []
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in REQUIRED + OPTIONAL]
    if missing or unknown or len(set(columns)) != len(columns):
        raise UsageError(
            f"{table}: columns are {', '.join(columns) or 'none'}; required are {', '.join(REQUIRED)}, allowed "
            f"{', '.join(OPTIONAL)}, each once and separated by tabs"
        )
    return [_record(table, number, columns, row) for number, row in numbered[1:] if any(cell.strip() for cell in row)]


def _rows(table: Path) -> list[tuple[int, list[str]]]:
    """The cells of each row and the number of its last line."""
    try:
        text = io.StringIO(read_text(table), newline=None)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{table}: cannot be read as a text table ({error}); save it as tab-separated UTF-8") from None
    reader = csv.reader(text, delimiter="\t", strict=True)
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UsageError(f"{table}, line {reader.line_num}: {error}; correct the line") from None


def _record(table: Path, number: int, columns: list[str], row: list[str]) -> RunRecord:
    where = f"{table}, line {number}"
    if len(row) != len(columns):
        raise UsageError(f"{where}: {len(row)} cells, the header has {len(columns)}; complete the line")
    if any("\0" in cell for cell in row):
        raise UsageError(f"{where}: a cell holds a nul byte, which no path or label has; remove it")
    values = {name: "" if cell.strip() == "n/a" else cell.strip() for name, cell in zip(columns, row, strict=True)}
    labels = {name: values.get(name, "") for name in ("subject", "session", "task", "run")}
    for name, prefix in (("subject", "sub-"), ("session", "ses-")):
        labels[name] = labels[name].removeprefix(prefix)
    for name, label in labels.items():
        if not _LABEL.fullmatch(label) or (name == "subject" and not label):
            raise UsageError(f"{where}: {name} is {label!r}; allowed are letters, digits, - and _")
    if not values["bold"]:
        raise UsageError(f"{where}: no bold file; name one or remove the line")
    paths = {name: table.parent / values[name] if values.get(name) else None for name in ("mask", "confounds")}
    return RunRecord(
        subject=labels["subject"],
        session=labels["session"],
        task=labels["task"],
        run=labels["run"],
        space=values.get("space", ""),
        bold=table.parent / values["bold"],
        mask=paths["mask"],
        confounds=paths["confounds"],
        tr_s=_tr_s(where, values.get("tr_s", "")),
    )


def _tr_s(where: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{where}: tr_s is {cell!r}; allowed is a positive number of seconds")
    return value
