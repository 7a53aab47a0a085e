"""`eval-fmri aggregate`: several reports of one task, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.config import AggregateConfig
from eval.provenance import GENERATOR, refuse_foreign_files, software_versions, write_files
from eval.scoring.metrics import headline
from eval.scoring.repeats import ModelSummary, Repeat, check_same_task, read_repeat, summarise
from shards.json_text import strict_json

RECORD, PAGE = "aggregate.json", "aggregate.html"
VERSION = 1


def aggregate(config: AggregateConfig) -> tuple[Path, Path]:
    """Read the reports, compare models over them, and write a page and its numbers.

    Parameters
    ----------
    config : AggregateConfig
        Folders of reports, and where to write.

    Returns
    -------
    page, record : Path
        What was written.

    Raises
    ------
    UsageError
        A folder holds no report, one is given twice, or there is one only.
    MismatchError
        The reports are about different tasks.
    OutputError
        --out cannot be written, or holds files of others.
    """
    from eval.page.repeats import aggregate_html

    repeats = [read_repeat(folder) for folder in config.reports]
    check_same_task(repeats)
    refuse_foreign_files(config.out, {RECORD: GENERATOR, PAGE: GENERATOR}, "eval-fmri aggregate")
    models = summarise(repeats)
    write_files(config.out, {RECORD: aggregate_json(repeats, models), PAGE: aggregate_html(repeats, models)})
    return config.out / PAGE, config.out / RECORD


def aggregate_json(repeats: Sequence[Repeat], models: Sequence[ModelSummary]) -> str:
    """Every number for machines; `null` is undefined, or not in that report."""
    record = {
        "generator": GENERATOR,
        "version": VERSION,
        "task": dict(repeats[0].task),
        "headline": headline(repeats[0].kind).key,
        "reports": [
            {
                "folder": str(repeat.folder),
                "metrics_xxh3": repeat.digest,
                "split": repeat.split_hash,
                "test_share": repeat.test_share,
            }
            for repeat in repeats
        ],
        "models": [asdict(model) for model in models],
        "software": software_versions(),
    }
    return strict_json(record) + "\n"
