"""Complaints about flags are one line that names the flag and where help is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

import pytest
import tyro

from shards.errors import UsageError
from shards.flags import read_flags


@dataclass
class Wanted:
    src: str
    """Where from, in words so many that the parser has to break the line somewhere in the middle of them."""
    frames: int = 3
    """How many."""
    dtype: Literal["int8", "int16"] = "int8"
    """Stored values."""


def complaint(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_flags(lambda: tyro.cli(Wanted, args=list(argv), prog="wish"), "wish")
    text = str(caught.value)
    assert "\n" not in text and text.endswith("; see wish --help")
    assert not set("─│╭╮╰╯") & set(text)
    return text.removesuffix("; see wish --help")


def test_good_flags_pass():
    assert read_flags(lambda: tyro.cli(Wanted, args=["--src", "a"]), "wish") == Wanted(src="a")


@pytest.mark.parametrize(
    "argv, wanted",
    [
        ((), "missing from wish: --src STR"),
        (("--src", "a", "--colour", "red"), "unrecognized options: --colour, red"),
        (("--src", "a", "--frame", "4"), "unrecognized options: --frame, 4; perhaps you meant: --frames INT"),
        (("--src", "a", "--frames", "x"), "error parsing --frames: invalid literal for int() with base 10: 'x'"),
        (
            ("--src", "a", "--dtype", "x"),
            "invalid choice 'x' for argument '--dtype'. Expected one of ('int8', 'int16')",
        ),
        (("--src",), "missing value for argument '--src'. Expected 1 values"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(argv, wanted):
    assert complaint(*argv) == wanted


def test_ascii_frames_are_left_out_too():
    def parse() -> Wanted:
        rule = "+" + "-" * 40 + "+"
        print(f"{rule}\n| unrecognized: --colour |\n{rule}", file=sys.stderr)
        raise SystemExit(2)

    with pytest.raises(UsageError, match=r"^unrecognized: --colour; see wish --help$"):
        read_flags(parse, "wish")


def test_help_is_no_complaint(capsys):
    with pytest.raises(SystemExit) as stop:
        read_flags(lambda: tyro.cli(Wanted, args=["--help"]), "wish")
    assert stop.value.code == 0 and "--frames" in capsys.readouterr().out


def test_a_missing_positional_is_named_in_ascii_too():
    import os
    import subprocess

    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for environment in (os.environ, ascii_only):
        command = [sys.executable, "-m", "shards.inspect.cli", "runs"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert done.stderr == "error: missing from inspect-fmri runs: SET; see inspect-fmri runs --help\n"
