"""What each command of `eval-fmri` does: join the other ranks, open the run, work, and say where the results lie."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eval.config import (
    AggregateConfig,
    BaselinesConfig,
    CommonConfig,
    EmbedConfig,
    ExplainConfig,
    PredictConfig,
    ReportConfig,
)
from eval.context import Context, open_context
from eval.guards import Check, refuse_leaks
from eval.ranks import join
from eval.stages import RECORD

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

LOG_WIDTH = 110
"""Columns of the table where it goes to a file."""


@contextmanager
def _opened(config: CommonConfig, command: str) -> Iterator[tuple[Context, tuple[Check, ...]]]:
    """The run with its ranks, and the checks for leaks, which are refused before anything is computed."""
    from shards.storage.local import raise_open_files_limit

    raise_open_files_limit()
    with open_context(config, join(), command) as context:
        yield context, refuse_leaks(context)


def _say(context: Context, *folders: str) -> None:
    """Name what was written, once for all ranks."""
    if context.ranks.is_first:
        for folder in folders:
            print(context.config.out / folder / RECORD)


def predict(config: PredictConfig, command: str) -> None:
    """Our model's outputs for validation and scored subjects."""
    from eval.prediction.predict import predict_ours

    with _opened(config, command) as (context, _):
        predict_ours(context)
        _say(context, "predictions")


def baselines(config: BaselinesConfig, command: str) -> None:
    """The baselines' outputs for the same subjects."""
    from eval.baselines.stage import fit_baselines

    with _opened(config, command) as (context, _):
        fit_baselines(context, config.atlas, config.models)
        _say(context, "baselines")


def embed(config: EmbedConfig, command: str) -> None:
    """Vectors of windows and subjects."""
    from eval.embedding.stage import embed as compute

    with _opened(config, command) as (context, _):
        compute(context, config.file_format)
        _say(context, "embeddings")


def explain(config: ExplainConfig, command: str) -> None:
    """Attribution maps, attention over time, reconstructions."""
    from eval.explain.stage import explain as compute
    from eval.reconstruction.stage import reconstruct

    with _opened(config, command) as (context, _):
        compute(context, config.subjects, config.windows, config.steps, config.noise_samples)
        found = reconstruct(context, config.pretrained)
        _say(context, "explain", *(() if found is None else ("reconstruction",)))


def report(config: ReportConfig, command: str) -> None:
    """Everything that is missing, and the page."""
    from eval.evaluation import evaluate
    from eval.page.report import check_out, write_report

    check_out(config.out)
    with _opened(config, command) as (context, checks):
        evaluation = evaluate(context, config, checks)
        if evaluation is not None:
            _print_scores(evaluation, write_report(evaluation, command))


def _print_scores(evaluation: Evaluation, paths: tuple[Path, ...]) -> None:
    """The table, the verdict and the files, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from eval.page.report import summary_rows
    from eval.page.verdict import verdict
    from eval.scoring.metrics import headline

    scored = len(evaluation.assessment.ours.predictions.subjects)
    title = f"{evaluation.target.column}: {scored} {evaluation.config.subset} subjects"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in (headline(evaluation.target.kind).label, "95 % interval", "advantage of ours"):
        table.add_column(name, no_wrap=True)
    for row in summary_rows(evaluation):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    console.print(table)
    console.print(f"[bold]{verdict(evaluation).title}.[/bold]")
    for path in paths:
        print(path)


def aggregate(config: AggregateConfig, command: str) -> None:
    """Several reports of one task, together."""
    from eval.scoring.aggregate import aggregate as together

    for path in together(config):
        print(path)
