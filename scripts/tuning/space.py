"""What is searched: `--search lr=1e-5:1e-2:log batch_size=4,8,16`, and the command that trains.

Both are checked against the real flags of `train.py`, by its own parser, before any trial starts.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.flags import read_flags
from training.config import FREE_ON_RESUME, TrainConfig

SCRIPT = "train.py"
OWN_FLAGS = ("out", "resume", "describe")
"""What the search sets itself, so that the command must not."""
NOT_SEARCHED = FREE_ON_RESUME | {"phase", "describe", "target", "target_kind", "seed", "val_every", "val_runs"}
"""Flags that do not change the training, that change what is measured, or that would choose luck."""
MEASURED_BY = {2: ("window", "mask_fraction", "mask_span")}
"""Flags that phase 2's validation error depends on: trials with different ones cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A flag and the values that trials take from it."""

    name: str
    kind: type
    """float and int are ranges, str is a choice."""
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: Any) -> str:
        """The value for a trial of optuna's, as text; the same again for a trial that has one."""
        if self.kind is str:
            return self.text(trial.suggest_categorical(self.name, self.choices))
        if self.kind is int:
            return self.text(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log))
        return self.text(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def text(self, value: Any) -> str:
        """A value as the command has it: six digits of a number."""
        return f"{value:.6g}" if self.kind is float else str(value)

    def edges(self) -> tuple[str, ...]:
        """The values that decide whether all are allowed."""
        return self.choices or tuple(self.text(self.kind(value)) for value in (self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class Command:
    """The command that trains, without the flags that are searched.

    Attributes
    ----------
    words
        As given behind `--`.
    config
        Its flags, with a run folder filled in.
    """

    words: tuple[str, ...]
    config: TrainConfig

    def with_flags(self, values: dict[str, str], out: Path) -> list[str]:
        """The command of a trial that writes to `out`."""
        return [*self.words, *flag_words(values), "--out", str(out)]


def flag_words(values: dict[str, str]) -> list[str]:
    """Flags of `train.py` as words; `+` divides what a flag takes several of, `true` switches one on."""
    words: list[str] = []
    for name, value in values.items():
        kind = flag_type(name)
        if kind is bool:
            words += [f"--{name}"] if value == "true" else []
        elif typing.get_origin(kind) is tuple:
            words += [f"--{name}", *value.split("+")]
        else:
            words += [f"--{name}", value]
    return words


def flag_type(name: str) -> Any:
    """Type of a flag of `train.py`; that of its values where it may also be left out."""
    hint = typing.get_type_hints(TrainConfig)[name]
    members = [member for member in typing.get_args(hint) if member is not types.NoneType]
    if isinstance(hint, types.UnionType):
        return str if members == [bool] else members[0]  # --intensity takes True or False
    return hint


def read_command(words: Sequence[str]) -> Command:
    """Understand the command behind `--`.

    Raises
    ------
    UsageError
        No `train.py` in it, flags that `train.py` refuses, or flags that the search sets itself.
    """
    places = [place for place, word in enumerate(words) if Path(word).name == SCRIPT]
    if not places:
        raise UsageError(
            f"no {SCRIPT} behind --; end with the command that trains, such as -- python train.py --phase 1 ..."
        )
    flags = words[places[-1] + 1 :]
    given = set(_names(flags))
    for name in OWN_FLAGS:
        if name in given:
            raise UsageError(f"--{name} behind --: each trial gets its own; leave it out")
    return Command(words=tuple(words), config=_parse([*flags, "--out", "trial"]))


def read_space(items: Sequence[str], command: Command) -> tuple[Dimension, ...]:
    """The dimensions that `--search` asks for.

    Raises
    ------
    UsageError
        A flag that `train.py` does not know or that cannot be searched, a range or value that it refuses.
    """
    dimensions = [_dimension(item, command.config.phase) for item in items]
    flags = command.words[[Path(word).name == SCRIPT for word in command.words].index(True) + 1 :]
    names = [dimension.name for dimension in dimensions]
    for name in names:
        if name in _names(flags):
            raise UsageError(f"--search {name}: the command behind -- gives --{name} already; leave one of them out")
        if names.count(name) > 1:
            raise UsageError(f"--search {name}: given twice; give it once")
    for dimension in dimensions:
        for value in dimension.edges():
            _parse([*flags, *flag_words({dimension.name: value}), "--out", "trial"])
    return tuple(dimensions)


def _dimension(item: str, phase: int) -> Dimension:
    name, equals, text = item.partition("=")
    if not equals or not text:
        raise UsageError(f"--search {item}: give flag=low:high, flag=low:high:log or flag=value,value")
    if name not in typing.get_type_hints(TrainConfig):
        raise UsageError(f"--search {name}: train.py has no flag --{name}; see train.py --help")
    if name in NOT_SEARCHED or name.startswith("split_"):
        raise UsageError(f"--search {name}: trials would not differ in training, or not be comparable; leave it out")
    if name in MEASURED_BY.get(phase, ()):
        raise UsageError(
            f"--search {name}: phase {phase}'s validation error depends on it, so trials would not be comparable"
        )
    return _range(name, text) if ":" in text else _choice(name, text)


def _range(name: str, text: str) -> Dimension:
    kind = flag_type(name)
    if kind not in (int, float):
        raise UsageError(f"--search {name}={text}: --{name} is not a number; give values such as {name}=value,value")
    bounds, log = text.removesuffix(":log").split(":"), text.endswith(":log")
    try:
        low, high = (kind(bound) for bound in bounds)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        raise UsageError(f"--search {name}={text}: give low:high or low:high:log, each {number}") from None
    if not low < high < float("inf") or (log and low <= 0):
        raise UsageError(f"--search {name}={text}: low must be below high, and above 0 for log")
    return Dimension(name=name, kind=kind, low=low, high=high, log=log)


def _choice(name: str, text: str) -> Dimension:
    choices = tuple(text.split(","))
    if len(set(choices)) < max(2, len(choices)):
        raise UsageError(f"--search {name}={text}: give at least two values, all different")
    if flag_type(name) is bool and set(choices) != {"true", "false"}:
        raise UsageError(f"--search {name}={text}: a switch; give {name}=true,false")
    return Dimension(name=name, kind=str, choices=choices)


def _names(flags: Sequence[str]) -> list[str]:
    return [word[2:].partition("=")[0].replace("-", "_") for word in flags if word.startswith("--")]


def _parse(flags: Sequence[str]) -> TrainConfig:
    import tyro

    only = (tyro.conf.FlagCreatePairsOff,)
    return read_flags(
        partial(tyro.cli, TrainConfig, args=list(flags), prog=SCRIPT, use_underscores=True, config=only), SCRIPT
    )
