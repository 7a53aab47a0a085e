"""Every example of shards/README.md, run in order on a cohort simulated as it says."""

from __future__ import annotations

import contextlib
import doctest
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import ingest.cli
import ingest.simulate.cli
import shards.inspect.cli

GUIDE = Path(shards.inspect.cli.__file__).parents[1] / "README.md"
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "simulate-fmri": (ingest.simulate.cli.main, []),
    "ingest-fmri": (ingest.cli.main, ["--workers", "0"]),
    "inspect-fmri": (shards.inspect.cli.main, []),
}


def test_the_examples_of_the_guide_give_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    wrong: list[str] = []
    blocks = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.S)
    assert {kind for kind, _ in blocks} == {"console", "python"}
    with contextlib.chdir(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for kind, body in blocks:
            if kind == "console":
                for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n|\n)*)", body, re.M):
                    wrong += run_command(command, shown, capsys)
            else:
                wrong += run_python(body, names)
    assert not wrong, "\n".join(wrong)


def run_command(line: str, shown: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run a command of ours; sizes, times and versions differ, so lines are compared by their first words."""
    program, *arguments = shlex.split(line)
    main, more = COMMANDS[program]
    code = main([*arguments, *more])
    out = capsys.readouterr().out
    found, expected = ([text.split()[0] for text in block.splitlines() if text.strip()] for block in (out, shown))
    return [] if code == 0 and found == expected else [f"$ {line}\nexit code {code}, lines {found}, shown {expected}"]


def run_python(body: str, names: dict[str, object]) -> list[str]:
    """Run a block as doctest does, in the names of the blocks before it."""
    test = doctest.DocTestParser().get_doctest(body, names, "shards/README.md", str(GUIDE), 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    return said
