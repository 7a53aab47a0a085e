"""One Slurm for all tests of this folder, and what they tell at the end: the faults tried, or why they were skipped."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import two_nodes

sys.path.append(str(two_nodes.STAND_INS))

Note = Callable[[str, str, str], None]
_faults = pytest.StashKey[list[tuple[str, str, str]]]()
_skipped = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def _nodes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Two nodes of this machine; skips, and says why, where there is no Slurm."""
    with contextlib.ExitStack() as stack:
        variables, reason = {}, two_nodes.why_not()
        if reason is None:
            try:
                variables = stack.enter_context(two_nodes.running(tmp_path_factory.mktemp("slurm")))
            except TimeoutError as error:
                reason = f"Slurm is installed, but did not start: {error}"
        if reason is not None:
            request.config.stash[_skipped] = reason
            pytest.skip(reason)
        yield variables


@pytest.fixture
def slurm(_nodes: dict[str, str]) -> Iterator[None]:
    """The environment points to the two nodes; no job outlives the test, and no node stays down."""
    with two_nodes.environment(_nodes):
        yield
        two_nodes.clear()


@pytest.fixture
def checkout(slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory from which the job scripts are submitted, as users do from the checkout."""
    for name in ("train.py", "scripts", "deepspeed_configs"):
        (tmp_path / name).symlink_to(two_nodes.ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source, and what one process makes of it."""
    from shard_set_bytes import made_by_one_process, write_cohort

    folder = tmp_path_factory.mktemp("cohort")
    src = write_cohort(folder / "prep")
    return src, made_by_one_process(src, folder / "whole")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Add a row to the table of faults: what was done, what followed, what was lost."""
    rows = request.config.stash.setdefault(_faults, [])
    return lambda fault, followed, lost: rows.append((fault, followed, lost))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table, and never skip in silence."""
    if reason := config.stash.get(_skipped, None):
        terminalreporter.write_line(f"tests on a real Slurm were skipped: {reason}", yellow=True)
    rows = config.stash.get(_faults, [])
    if rows:
        table = [("fault", "what followed", "lost"), *rows]
        widths = [max(len(row[column]) for row in table) for column in range(3)]
        terminalreporter.section("faults tried on a real Slurm of two nodes")
        for row in table:
            terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
