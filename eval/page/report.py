"""The report folder: `report.html`, `metrics.json`, `predictions.tsv`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from eval.evaluation import Evaluation
from eval.page import prose
from eval.page.figures import draw_all
from eval.provenance import GENERATOR, software_versions
from eval.scoring.assessment import Row
from eval.scoring.bootstrap import Estimate
from eval.scoring.metrics import METRICS, headline, probabilities
from eval.targets import Target
from shards.errors import OutputError
from shards.writer import write_atomic

REPORT, METRICS_FILE, PREDICTIONS = "report.html", "metrics.json", "predictions.tsv"
FIRST_COLUMNS = ("model", "subject", "subset", "true")


def check_out(out: Path) -> None:
    """Refuse a folder that the report cannot be written to, before anything is computed.

    Raises
    ------
    OutputError
        `out` is a file, or holds a file of one of our names that this command did not write.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}: a file, a folder is needed; choose another name")
    marks = {
        REPORT: f'content="{GENERATOR}"',
        METRICS_FILE: f'"generator": "{GENERATOR}"',
        PREDICTIONS: "\t".join(FIRST_COLUMNS),
    }
    for name, mark in marks.items():
        path = out / name
        if not path.exists():
            continue
        try:
            head = path.read_bytes()[:400].decode("utf-8", errors="replace")
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror}); choose another --out") from error
        if mark not in head:
            raise OutputError(f"{path} was not written by eval-fmri report and is kept; choose another --out")


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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be made ({error.strerror}); choose another folder") from error
    check_out(out)
    for name, text in texts.items():
        write_atomic(out / name, text)
    return tuple(out / name for name in (REPORT, METRICS_FILE, PREDICTIONS))


def metrics_json(evaluation: Evaluation, command: str) -> str:
    """Every number of the report for machines; `null` is undefined."""
    assessment = evaluation.assessment
    record = {
        "generator": GENERATOR,
        "version": 1,
        "command": command,
        "target": asdict(evaluation.target),
        "subset": evaluation.config.subset,
        "headline": headline(evaluation.target.kind).key,
        "verdict": asdict(prose.verdict(evaluation)),
        "models": [_row_record(row) for row in assessment.rows],
        "groups": [asdict(group) for group in assessment.groups],
        "motion_correlation": evaluation.motion_correlation,
        "split": {
            "hash": evaluation.split.hash,
            "seed": evaluation.split.seed,
            "rule": evaluation.split.rule,
            "parts": [asdict(part) for part in evaluation.parts],
        },
        "fitted_on": evaluation.fitted_on,
        "set_hash": evaluation.set_hash,
        "resamples": assessment.num_resamples,
        "permutations": int(assessment.null.size),
        "seed": evaluation.config.seed,
        "software": software_versions(),
    }
    return json.dumps(_finite(record), indent=1, allow_nan=False) + "\n"


def _row_record(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.model),
        "num_subjects": len(row.predictions.subjects),
        "scores": {key: asdict(found) for key, found in row.scores.items()},
        "advantage_of_ours": None if row.advantage is None else asdict(row.advantage),
        "p_value": row.p_value,
    }


def _finite(value: Any) -> Any:
    """The same value with `None` for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def predictions_tsv(evaluation: Evaluation) -> str:
    """One line per model and subject: true value, outputs, and the probability for a binary target."""
    target = evaluation.target
    extra = (f"probability_{target.levels[1]}",) if target.kind == "binary" else ()
    lines = ["\t".join((*FIRST_COLUMNS, *target.output_names, *extra))]
    for row in evaluation.assessment.rows:
        predicted = row.predictions
        for index, subject in enumerate(predicted.subjects):
            outputs = [f"{value:.9g}" for value in predicted.output[index]]
            if extra:
                outputs.append(f"{probabilities(predicted.output[index : index + 1], 'binary')[0, 1]:.9g}")
            true = true_text(target, float(predicted.y_true[index]))
            lines.append("\t".join((predicted.model, subject, predicted.subset, true, *outputs)))
    return "\n".join(lines) + "\n"


def true_text(target: Target, value: float) -> str:
    """A true value as participants.tsv has it."""
    return f"{value:.9g}" if target.kind == "regression" else target.levels[int(value)]


def report_html(evaluation: Evaluation, command: str) -> str:
    """The page; it needs nothing but itself."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": prose.number, "interval": prose.interval, "p": prose.p_text}
    template = environment.from_string(
        resources.files("eval").joinpath("templates", "report.html.j2").read_text(encoding="utf-8")
    )
    target, software = evaluation.target, software_versions()
    return template.render(
        generator=GENERATOR,
        evaluation=evaluation,
        assessment=evaluation.assessment,
        target=target,
        metrics=METRICS[target.kind],
        headline=headline(target.kind),
        verdict=prose.verdict(evaluation),
        limits=prose.limits(evaluation),
        methods=prose.methods(evaluation, software),
        note=prose.table_note,
        drawings=draw_all(evaluation.assessment, target),
        sites=sorted({site for part in evaluation.parts for site in part.by_site}),
        subjects=_subject_lines(evaluation),
        run_config=json.dumps(evaluation.run_config, indent=1, default=str),
        rule=json.dumps(evaluation.split.rule),
        software=software,
        command=command,
        files=(METRICS_FILE, PREDICTIONS),
    )


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
    truths = [true_text(target, float(value)) for value in predicted.y_true]
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
