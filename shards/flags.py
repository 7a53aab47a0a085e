"""One door for the flags of every command: what the parser draws as a box becomes one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

from shards.errors import EXIT_PIPE, UsageError

T = TypeVar("T")

_FRAME = re.compile(r"\x1b\[[0-9;]*m|[─━│┃╭╮╰╯┌┐└┘]+|-{10,}|^[|+]|[|+]$")
"""Drawn with lines, or with ASCII where the terminal knows no other."""
_DESCRIPTION_INDENT = 6
"""In the box, flags stand up to five columns behind the sentence they belong to, and what they mean further right."""
_HEADINGS = ("Missing from", "Unrecognized options", "Perhaps you meant")
_LEFT_OUT = ("For full helptext", "Argument helptext")


def read_flags(parse: Callable[[], T], command: str) -> T:
    """Call a tyro parser; its complaints become a `UsageError` of one line.

    Parameters
    ----------
    parse
        Calls `tyro.cli` or one of its kind.
    command
        As the user calls it, to point to its `--help`.

    Raises
    ------
    UsageError
        The flags do not fit the command: unknown, missing, or with a value that cannot be read.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except BrokenPipeError:  # whoever reads the help has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_PIPE) from None
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UsageError(f"{_one_line(said.getvalue())}; see {command} --help")


def _one_line(box: str) -> str:
    """The sentences of a box, without its title, its frame and the meaning of the flags it lists."""
    lines = [_FRAME.sub("", line).rstrip() for line in box.splitlines()[1:]]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        else:
            blocks.append([])
    said = [_sentence(block) for block in blocks if block and not block[0].strip().startswith(_LEFT_OUT)]
    return "; ".join(text for text in said if text) or "these flags cannot be read"


def _sentence(block: list[str]) -> str:
    first = _indent(block[0])
    kept = [line for line in block if _indent(line) - first < _DESCRIPTION_INDENT]
    texts = [text for line in kept if not (text := line.strip()).startswith(_LEFT_OUT)]
    head, *flags = texts
    text = f"{head} {', '.join(flags)}" if head.endswith(":") and head.startswith(_HEADINGS) else " ".join(texts)
    return text[0].lower() + text[1:].removesuffix(".").rstrip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
