"""`eval-fmri`: score what was trained, sceptically.

Exit codes: 0 done; 1 internal error; 2 usage (no such folder, not a phase-3 run, no such column, nobody to score);
5 the output folder is not ours or not writable; 6 checkpoint, split and shard set do not belong together;
7 the shard set is damaged; 130 interrupted.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from eval.config import ReportConfig
from shards.errors import EXIT_INTERRUPTED, EXIT_OK, BoldstreamError
from shards.flags import read_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run `eval-fmri`; returns the exit code (see the module's first lines)."""
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parse = partial(
            tyro.extras.subcommand_cli_from_dict,
            {"report": ReportConfig},
            prog="eval-fmri",
            description="Score a trained model per subject, beside simple baselines.",
            args=arguments,
        )
        config = read_flags(parse, "eval-fmri report")
        report(config, shlex.join(["eval-fmri", *arguments]))
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was half-written, run the same command again", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def report(config: ReportConfig, command: str) -> None:
    """Evaluate, write the report folder, and say on the terminal what came out."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)

    from eval.evaluation import evaluate
    from eval.page.report import check_out, write_report
    from shards.storage.local import raise_open_files_limit

    raise_open_files_limit()
    check_out(config.out)
    evaluation = evaluate(config)
    paths = write_report(evaluation, command)

    from rich.console import Console
    from rich.table import Table

    from eval.page.prose import verdict
    from eval.page.report import summary_rows
    from eval.scoring.metrics import headline

    said = verdict(evaluation)
    scored = len(evaluation.assessment.ours.predictions.subjects)
    table = Table(title=f"{evaluation.target.column}: {scored} {config.subset} subjects", title_justify="left")
    for name in ("model", headline(evaluation.target.kind).label, "95 % interval", "advantage of ours"):
        table.add_column(name, no_wrap=True)
    for row in summary_rows(evaluation):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"[bold]{said.title}.[/bold]")
    for path in paths:
        print(path)


if __name__ == "__main__":
    sys.exit(main())
