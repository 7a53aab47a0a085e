"""`inspect-fmri`: look into a shard set, verify it, and take runs out of it as NIfTI.

Exit codes: 0 done; 1 internal error; 2 usage (no such set, run or column); 5 the output exists or cannot be written;
7 the set is damaged or cannot be read; 130 interrupted; 141 whoever read the output stopped (as `| head` does).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from shards.errors import EXIT_INTERRUPTED, EXIT_OUTPUT, EXIT_PIPE, BoldstreamError
from shards.flags import read_flags
from shards.inspect.export import ExportConfig, export
from shards.inspect.run import RunConfig, show_run
from shards.inspect.runs import RunsConfig, list_runs
from shards.inspect.summary import SummaryConfig, summarise
from shards.inspect.terminal import printable
from shards.inspect.verify import VerifyConfig, verify

_COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "summary": (SummaryConfig, summarise),
    "runs": (RunsConfig, list_runs),
    "run": (RunConfig, show_run),
    "verify": (VerifyConfig, verify),
    "export": (ExportConfig, export),
}
_DESCRIPTION = """Look into a shard set, verify it, and take runs out of it as NIfTI.

SET is the folder that ingest-fmri wrote, or its URL (https://..., s3://...).

examples:
  inspect-fmri summary shards/
  inspect-fmri runs shards/ --task rest --sort tsnr_median
  inspect-fmri run shards/ sub-0001 --out sub-0001.png
  inspect-fmri verify shards/
  inspect-fmri export shards/ sub-0001 --out sub-0001.nii.gz

exit codes: 0 done, 1 internal error, 2 usage, 5 the output exists or cannot be written, 7 the set is damaged or
cannot be read, 130 interrupted, 141 the reader of the output stopped
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (see the module's first lines)."""
    try:
        config = _parse(list(sys.argv[1:] if argv is None else argv))
        command = next(run for kind, run in _COMMANDS.values() if kind is type(config))
        code = command(config)
        sys.stdout.flush()
    except BoldstreamError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _drop_output()
        return EXIT_PIPE
    except OSError as error:
        _drop_output()
        print(f"error: {printable(str(error.filename or 'the output'))}: {error.strerror}", file=sys.stderr)
        return EXIT_OUTPUT
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def _drop_output() -> None:
    """What is still to be flushed at the exit goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(arguments: list[str]) -> Any:
    import tyro

    parse = partial(
        tyro.extras.subcommand_cli_from_dict,
        {name: kind for name, (kind, _) in _COMMANDS.items()},
        prog="inspect-fmri",
        description=_DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    named = f" {arguments[0]}" if arguments and arguments[0] in _COMMANDS else ""
    return read_flags(parse, f"inspect-fmri{named}")


if __name__ == "__main__":
    sys.exit(main())
