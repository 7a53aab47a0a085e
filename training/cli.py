"""The command line of `train.py`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from shards.errors import BoldstreamError
from shards.flags import read_flags
from training.config import TrainConfig


def main(argv: Sequence[str] | None = None, *, validate: Callable[..., float]) -> int:
    """Parse flags and train.

    Parameters
    ----------
    argv
        Arguments; default: those of the process.
    validate
        Phase 3's score of the validation subjects, see `training.run.train`.

    Returns
    -------
    int
        Exit code, see `training.config`.
    """
    from training.engine.environment import rank_of_launcher, tell

    first = rank_of_launcher() == 0
    try:
        config = parse(argv)
        _log_to_stderr(first)
        return _train(config, validate)
    except BoldstreamError as error:
        tell(error)
        return error.exit_code


def parse(argv: Sequence[str] | None) -> TrainConfig:
    """The configuration that flags ask for.

    Raises
    ------
    UsageError
        They cannot be read, or contradict each other.
    """
    import tyro

    flags_only = (tyro.conf.FlagCreatePairsOff,)
    reader = partial(tyro.cli, TrainConfig, args=argv, prog="train.py", use_underscores=True, config=flags_only)
    return read_flags(reader, "train.py")


def _train(config: TrainConfig, validate: Callable[..., float]) -> int:
    from shards.storage.local import raise_open_files_limit
    from training.engine.environment import raise_if_peer_lost
    from training.run import train

    raise_open_files_limit()
    try:
        return train(config, validate)
    except RuntimeError as error:
        raise_if_peer_lost(error)
        raise


def _log_to_stderr(first: bool) -> None:
    """Rank 0 tells how it goes; the others only what is wrong."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("training", "shards"):
        root: Any = logging.getLogger(name)
        root.handlers = [handler]
        root.propagate = False
        root.setLevel(logging.INFO if first else logging.ERROR)
