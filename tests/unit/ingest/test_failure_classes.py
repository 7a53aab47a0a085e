"""Every class that a failure can have is in the user's guide, with its stage, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ingest

FOLDER = Path(ingest.__file__).parent


def raised() -> Iterator[tuple[str, str]]:
    """(stage, class) of every `RunError` in the code."""
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RunError"):
                continue
            stages = texts(node.args[0]) or {"open", "data"}  # `_os_error` has both
            kinds = texts(node.args[3]) if len(node.args) > 3 else stages
            kinds = kinds or {"missing", "unreadable"}
            yield from ((stage, kind) for stage in stages for kind in kinds)


def texts(node: ast.expr) -> set[str]:
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def documented() -> set[tuple[str, str]]:
    rows = re.findall(r"^\| `([a-z]+)` \| ((?:`[a-z0-9-]+`(?:, )?)+) \|", (FOLDER / "README.md").read_text(), re.M)
    return {(stage, kind) for stage, kinds in rows for kind in re.findall(r"`([^`]+)`", kinds)}


def test_the_guide_lists_every_class_of_failure():
    masks_of_flags = {("mask", kind) for kind in ("not-3d", "other-grid", "empty")}  # they end as usage errors
    assert set(raised()) - masks_of_flags == documented()
