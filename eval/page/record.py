"""The report for machines: `metrics.json` and `predictions.tsv`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from eval.page.verdict import verdict
from eval.provenance import GENERATOR, software_versions
from eval.scoring.assessment import Row
from eval.scoring.metrics import headline, probabilities
from shards.json_text import strict_json

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

FIRST_COLUMNS = ("model", "subject", "subset", "true")


def metrics_json(evaluation: Evaluation, command: str) -> str:
    """Every score of the report; `null` is undefined."""
    assessment = evaluation.assessment
    record = {
        "generator": GENERATOR,
        "version": 1,
        "command": command,
        "target": asdict(evaluation.target),
        "subset": evaluation.config.subset,
        "headline": headline(evaluation.target.kind).key,
        "verdict": asdict(verdict(evaluation)),
        "models": [_row_record(row) for row in assessment.rows],
        "checks": [asdict(check) for check in evaluation.checks],
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
    return strict_json(record) + "\n"


def _row_record(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.model),
        "num_subjects": len(row.predictions.subjects),
        "threshold": row.threshold,
        "num_held_out": row.num_held_out,
        "scores": {key: asdict(found) for key, found in row.scores.items()},
        "advantage_of_ours": None if row.advantage is None else asdict(row.advantage),
        "advantage_p": row.advantage_p,
        "adjusted_p": row.adjusted_p,
        "p_value": row.p_value,
    }


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
            true = target.text(float(predicted.y_true[index]))
            lines.append("\t".join((predicted.model, subject, predicted.subset, true, *outputs)))
    return "\n".join(lines) + "\n"
