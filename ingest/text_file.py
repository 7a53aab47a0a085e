"""The small text files that lie beside runs."""

from __future__ import annotations

import stat
from pathlib import Path


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises
    ------
    OSError
        It cannot be read, or is a pipe or a device, whose end may never come.
    UnicodeDecodeError
        It is not UTF-8.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.read_text(encoding="utf-8-sig")
