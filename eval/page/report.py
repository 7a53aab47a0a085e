"""The report folder: `report.html`, `metrics.json`, `predictions.tsv`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from eval.guards import FOR_INFORMATION, UNKNOWN
from eval.lineage import ancestors
from eval.page import prose
from eval.page.curves import training_section
from eval.page.figures import draw_all
from eval.page.forest import forest, grouped
from eval.page.limits import limits
from eval.page.methods import methods
from eval.page.origins import hashes, stages
from eval.page.record import FIRST_COLUMNS, metrics_json, predictions_tsv
from eval.page.verdict import verdict
from eval.provenance import GENERATOR, refuse_foreign_files, software_versions, write_files
from eval.scoring.bootstrap import Estimate
from eval.scoring.metrics import METRICS, headline, probabilities
from eval.scoring.repeats import METRICS_FILE

if TYPE_CHECKING:
    import jinja2

    from eval.evaluation import Evaluation
    from eval.guards import Check

REPORT, PREDICTIONS = "report.html", "predictions.tsv"


def check_out(out: Path) -> None:
    """Refuse a folder that the report cannot be written to, before anything is computed.

    Raises
    ------
    OutputError
        `out` is a file, or holds a file of one of our names that this command did not write.
    """
    marks = {
        REPORT: f'content="{GENERATOR}"',
        METRICS_FILE: f'"generator": "{GENERATOR}"',
        PREDICTIONS: "\t".join(FIRST_COLUMNS),
    }
    refuse_foreign_files(out, marks, "eval-fmri report")


def write_report(evaluation: Evaluation, command: str) -> tuple[Path, ...]:
    """Write the three files, each complete or not at all.

    Parameters
    ----------
    evaluation : Evaluation
        What to tell.
    command : str
        The command as it was typed.

    Returns
    -------
    tuple of Path
        The files: the page first.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    out = evaluation.config.out
    texts = {
        METRICS_FILE: metrics_json(evaluation, command),
        PREDICTIONS: predictions_tsv(evaluation),
        REPORT: report_html(evaluation, command),
    }
    check_out(out)
    write_files(out, texts)
    return tuple(out / name for name in (REPORT, METRICS_FILE, PREDICTIONS))


def report_html(evaluation: Evaluation, command: str) -> str:
    """The page; it needs nothing but itself."""
    target, software, config = evaluation.target, software_versions(), evaluation.config
    metric = headline(target.kind)
    behind = ancestors(config.checkpoint, evaluation.run_config)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            generator=GENERATOR,
            evaluation=evaluation,
            assessment=evaluation.assessment,
            target=target,
            metrics=METRICS[target.kind],
            headline=metric,
            verdict=verdict(evaluation),
            forest=forest(evaluation.assessment, metric),
            groups=grouped(evaluation.assessment),
            limits=limits(evaluation),
            methods=methods(evaluation, behind, software),
            drawings=draw_all(evaluation.assessment, target),
            sections=(*evaluation.sections, training_section(config.checkpoint, behind)),
            checks=[(check.name, *_told(check)) for check in evaluation.checks],
            sites=sorted({site for part in evaluation.parts for site in part.by_site}),
            subjects=_subject_lines(evaluation),
            run_config=json.dumps(evaluation.run_config, indent=1, default=str),
            rule=json.dumps(evaluation.split.rule),
            hashes=hashes(evaluation, behind),
            stages=stages(evaluation, software),
            software=software,
            command=command,
            files=(METRICS_FILE, PREDICTIONS),
        )
    )


def _told(check: Check) -> tuple[str, str, str]:
    """Style, result and detail of a check."""
    if check.passed is not None:
        return ("passed", "passed", check.detail) if check.passed else ("failed", "FAILED", check.detail)
    for prefix in (UNKNOWN, FOR_INFORMATION):
        if check.detail.startswith(prefix):
            return "unknown", prefix.rstrip(": "), check.detail.removeprefix(prefix)
    return "unknown", "unknown", check.detail


def page_environment() -> jinja2.Environment:
    """Where the package's pages come from: everything is escaped, and a name that is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": prose.number, "interval": prose.interval, "p": prose.p_number}
    return environment


def _template(name: str) -> str:
    return resources.files("eval").joinpath("templates", name).read_text(encoding="utf-8")


def _subject_lines(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Subject, true value, and what our model says, for the page."""
    target, predicted = evaluation.target, evaluation.assessment.ours.predictions
    if target.kind == "regression":
        said = [prose.number(float(value)) for value in predicted.output[:, 0]]
    else:
        shares = probabilities(predicted.output, target.kind)
        said = [
            ", ".join(f"{level} {share:.2f}" for level, share in zip(target.levels, row, strict=True)) for row in shares
        ]
    truths = [target.text(float(value)) for value in predicted.y_true]
    return list(zip(predicted.subjects, truths, said, strict=True))


def summary_rows(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """Model, headline metric, its interval and our advantage, for the terminal."""
    key = headline(evaluation.target.kind).key

    def told(found: Estimate | None) -> str:
        return "" if found is None else f"{prose.number(found.value)} ({prose.interval(found)})"

    return [
        (row.model.label, prose.number(row.scores[key].value), prose.interval(row.scores[key]), told(row.advantage))
        for row in evaluation.assessment.rows
    ]
