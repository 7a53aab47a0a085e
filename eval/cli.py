"""`eval-fmri`: score what was trained, sceptically.

Exit codes: 0 done; 1 internal error; 2 usage (no such folder, not a phase-3 run, no such column, nobody to score);
5 the output folder is not ours or not writable; 6 checkpoint, split and shard set do not belong together, or
test subjects were trained on; 7 the shard set is damaged; 130 interrupted.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from eval.config import (
    AggregateConfig,
    BaselinesConfig,
    EmbedConfig,
    ExplainConfig,
    PredictConfig,
    ReportConfig,
)
from shards.errors import EXIT_INTERRUPTED, EXIT_OK, BoldstreamError
from shards.flags import read_flags

_DESCRIPTION = """Score a trained model per subject, beside simple baselines and controls.

examples:
  eval-fmri report --checkpoint runs/p3 --shards shards/ --out report/      all of it, and one page
  eval-fmri predict --checkpoint runs/p3 --shards shards/ --out report/     a stage alone; report goes on from it
  torchrun --nproc_per_node 4 -m eval.cli predict ...                       the same on several GPUs (or srun)
  eval-fmri aggregate seed-1/ seed-2/ seed-3/ --out all/                    several reports of one task

A stage that is done is not repeated; a call that was killed goes on where it stopped.

exit codes: 0 done, 1 internal error, 2 usage, 5 output unusable, 6 checkpoint, split and shard set do not belong
together or test subjects were trained on, 7 shard set damaged, 130 interrupted
"""


_COMMANDS: dict[str, type] = {
    "report": ReportConfig,
    "predict": PredictConfig,
    "baselines": BaselinesConfig,
    "embed": EmbedConfig,
    "explain": ExplainConfig,
    "aggregate": AggregateConfig,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `eval-fmri`; returns the exit code (see the module's first lines)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = _parse(arguments)
        _run(config, shlex.join(["eval-fmri", *arguments]))
    except BoldstreamError as error:
        _tell(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was half-written, run the same command again", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _parse(arguments: list[str]) -> Any:
    import tyro

    parse = partial(
        tyro.extras.subcommand_cli_from_dict,
        _COMMANDS,
        prog="eval-fmri",
        description=_DESCRIPTION,
        args=arguments,
    )
    command = arguments[0] if arguments and arguments[0] in _COMMANDS else ""
    return read_flags(parse, f"eval-fmri {command}".rstrip())


def _run(config: Any, command: str) -> None:
    """Import what a command needs, and run it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)

    from eval import commands
    from training.engine.environment import raise_if_peer_lost

    name = next(name for name, kind in _COMMANDS.items() if kind is type(config))
    try:
        getattr(commands, name)(config, command)
    except RuntimeError as error:
        raise_if_peer_lost(error)
        raise


def _tell(error: BoldstreamError) -> None:
    """Print an error as one line, once for all ranks."""
    from training.engine.environment import tell

    tell(error)


if __name__ == "__main__":
    sys.exit(main())
