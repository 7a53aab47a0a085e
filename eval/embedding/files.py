"""The files of embeddings: npz that numpy alone reads, or parquet that every data frame reads.

Columns of both: `run_id, subject, session, run, part, clip_start, num_frames, tr_s, embedding` a window, and
`subject, part, embedding` a subject. No file holds pickled objects.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eval.arrays import packed, unpacked
from eval.embedding.embeddings import Vectors, WindowTable
from shards.errors import CorruptShardError, UsageError

FileFormat = Literal["npz", "parquet"]
EMBEDDING = "embedding"
TEXTS = ("run_id", "subject", "session", "run", "part")
NUMBERS = ("clip_start", "num_frames", "tr_s")
Columns = Mapping[str, npt.NDArray[Any]]


def check_format(file_format: str) -> None:
    """Refuse a format that cannot be written here, before anything is computed.

    Raises
    ------
    UsageError
        parquet, and pyarrow is not installed.
    """
    from importlib.util import find_spec

    if file_format == "parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            "--file-format parquet needs the package pyarrow, which is not installed; "
            "pip install 'boldstream[parquet]', or write npz"
        )


def windows_bytes(table: WindowTable, file_format: str) -> bytes:
    """The file of the windows."""
    columns = {name: _texts(getattr(table, name)) for name in TEXTS}
    columns |= {name: getattr(table, name) for name in NUMBERS}
    return _packed(columns | {EMBEDDING: table.vectors}, file_format)


def subjects_bytes(subjects: Sequence[str], part: Sequence[str], vectors: Vectors, file_format: str) -> bytes:
    """The file of the subjects."""
    return _packed({"subject": _texts(subjects), "part": _texts(part), EMBEDDING: vectors}, file_format)


def read_windows(folder: Path, file_format: str) -> WindowTable:
    """Windows as `windows_bytes` wrote them.

    Raises
    ------
    CorruptShardError
        The file is gone or damaged.
    """
    found = _unpacked(folder / f"windows.{file_format}")
    columns: dict[str, Any] = {name: tuple(found[name].tolist()) for name in TEXTS}
    columns |= {name: found[name] for name in NUMBERS}
    return WindowTable(**columns, vectors=found[EMBEDDING])


def read_subjects(folder: Path, file_format: str) -> tuple[tuple[str, ...], tuple[str, ...], Vectors]:
    """Subjects, their parts, and their vectors `(S, E)`; raises as `read_windows`."""
    found = _unpacked(folder / f"subjects.{file_format}")
    return tuple(found["subject"].tolist()), tuple(found["part"].tolist()), found[EMBEDDING]


def _texts(values: Sequence[str]) -> npt.NDArray[np.str_]:
    return np.array(values, dtype=np.str_)


def _packed(columns: Columns, file_format: str) -> bytes:
    if file_format == "npz":
        return packed(columns)
    import pyarrow as pa
    from pyarrow import parquet

    vectors = np.ascontiguousarray(columns[EMBEDDING], dtype=np.float32)
    listed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    others = {name: pa.array(values) for name, values in columns.items() if name != EMBEDDING}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(others | {EMBEDDING: listed}), buffer)
    return buffer.getvalue()


def _unpacked(path: Path) -> dict[str, npt.NDArray[Any]]:
    if path.suffix == ".npz":
        return unpacked(path)
    try:
        return _from_parquet(path)
    except (OSError, ValueError, KeyError) as error:
        raise CorruptShardError(f"{path}: cannot be read ({error}); remove its folder and run again") from error


def _from_parquet(path: Path) -> dict[str, npt.NDArray[Any]]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    found = {name: table[name].to_numpy() for name in table.column_names if name != EMBEDDING}
    column = table[EMBEDDING].combine_chunks()
    return found | {EMBEDDING: column.flatten().to_numpy().reshape(len(table), column.type.list_size)}
