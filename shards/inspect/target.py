"""What every subcommand is told: the shard set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class SetConfig:
    """Which shard set."""

    location: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]
    """Folder or URL of the shard set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneRunConfig(SetConfig):
    """Which run of it."""

    run_id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_ID")]
    """The run; a beginning or a part of its id is enough where only one run has it."""
