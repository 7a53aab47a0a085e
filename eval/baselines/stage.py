"""The stage `baselines`: every rival fitted once on the same split, its outputs kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.arrays import packed, unpacked
from eval.baselines.catalogue import all_baselines, chosen
from eval.baselines.images import Amplitude
from eval.baselines.protocol import Baseline, NotAvailable, Problem
from eval.context import Context, subjects_to_score
from eval.page.section import Section, Table
from eval.parcels.parcels import Parcels, atlas_parcels, geometric_parcels
from eval.parcels.series import RegionSeries, amplitude_cache, parcels_hash
from eval.stages import RECORD, Arrays, Stage
from eval.subjects import Model, Predictions, Scored, predictions
from eval.targets import Target
from shards.errors import UsageError
from shards.format import config_hash

log = logging.getLogger(__name__)

FOLDER = "baselines"
OUTPUTS = "outputs.npz"
TABLE = "predictions.tsv"
HELD_OUT = "held_out"
"""Name of the part of `predictions.tsv` with outputs of subjects by models that were fitted without them."""


def fit_baselines(context: Context, atlas: Path | None, keys: tuple[str, ...]) -> list[Scored]:
    """Fit the baselines on the training and validation subjects, and predict those to score.

    Where the validation subjects are scored, only training subjects are fitted on. Stage `baselines`, a part a
    baseline: `outputs.npz` (for each key, `<key>` (N, K) and `<key>_held_out` (H, K), float64, with the labels of
    their subjects in `subjects` and `<key>_held_out_subjects`) and `predictions.tsv`, the same as text. A baseline
    that cannot be fitted here is left out, and named with its reason in the record's facts.

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`; every rank calls this.
    atlas : Path or None
        NIfTI of integer labels; geometric parcels by default.
    keys : tuple of str
        Baselines to fit; () for all.

    Returns
    -------
    list of Scored
        Role 'baseline', from the weakest to those to beat.

    Raises
    ------
    UsageError
        An unknown key, an atlas that cannot be used, nobody to score, or subjects to fit on of one class only.
    """
    subset = context.config.subset
    to_score = subjects_to_score(context, subset)
    regions = region_series(context, atlas)
    amplitude = amplitude_cache(context.shard_set, context.config.out)
    baselines = chosen(all_baselines(context.target.kind, amplitude), keys)
    problem = make_problem(context, regions)
    stage = context.stage(
        FOLDER,
        subset=subset,
        keys=[baseline.key for baseline in baselines],
        parcels=parcels_hash(regions.parcels),
        seed=context.config.seed,
        values=config_hash({who: context.values[who] for who in (*problem.to_fit, *to_score)}),
    )
    record = context.ranks.first(stage.record)
    if record is None:
        runs = context.runs((*problem.to_fit, *to_score))
        regions.cache.ensure(runs, context.ranks, context.config.threads)
        if any(isinstance(baseline, Amplitude) for baseline in baselines):
            amplitude.ensure(runs, context.ranks, context.config.threads)
        record = _fit(stage, context, problem, baselines, to_score)
    return _scored(stage, record, context, problem)


def region_series(context: Context, atlas: Path | None) -> RegionSeries:
    """Series of the atlas's regions, or of geometric parcels, kept beside the shards; every rank calls this.

    Raises
    ------
    UsageError
        The atlas cannot be used.
    """
    parcels = context.ranks.first(lambda: _parcels(context, atlas))
    return RegionSeries(context.shard_set, parcels, context.config.out)


def _parcels(context: Context, atlas: Path | None) -> Parcels:
    return geometric_parcels(context.shard_set) if atlas is None else atlas_parcels(context.shard_set, atlas)


def make_problem(context: Context, regions: RegionSeries) -> Problem:
    """Who is learnt from: training and validation subjects, or only the former where the latter are scored.

    Raises
    ------
    UsageError
        The subjects to fit on are all of one class.
    """
    y_train, y_val = ({who: context.values[who] for who in context.subjects(part)} for part in ("train", "val"))
    problem = Problem(
        cohort=context.cohort,
        target=context.target,
        y_train=y_train,
        y_val=y_val if context.config.subset != "val" else {},
        regions=regions,
        threads=context.config.threads,
        seed=context.config.seed,
        device=str(context.ranks.device),
    )
    if context.target.kind != "regression" and len(set(problem.y_train.values())) < 2:
        raise UsageError(
            f"the {len(problem.y_train)} training subjects to fit baselines on are all of one class; make another split"
        )
    return problem


def _fit(
    stage: Stage, context: Context, problem: Problem, baselines: tuple[Baseline, ...], to_score: tuple[str, ...]
) -> dict[str, Any]:
    """Fit each on one rank, put all together, and write the stage's files."""
    by_key = {baseline.key: baseline for baseline in baselines}
    found = dict(stage.parts(list(by_key), lambda key: _part(by_key[key], problem, to_score)))
    fitted = [key for key in by_key if "reason" not in found[key]]
    arrays: dict[str, npt.NDArray[Any]] = {"subjects": np.array(to_score)}
    for key in fitted:
        arrays |= {
            key: found[key]["output"],
            f"{key}_{HELD_OUT}": found[key][HELD_OUT],
            f"{key}_{HELD_OUT}_subjects": found[key]["held_out_subjects"],
        }
    models = [asdict(_model(by_key[key], str(found[key]["note"]))) for key in fitted]
    skipped = [
        {"key": key, "label": by_key[key].label, "reason": str(found[key]["reason"])}
        for key in by_key
        if key not in fitted
    ]
    facts = {
        "models": models,
        "skipped": skipped,
        "regions": problem.regions.description,
        "subjects": {"train": len(problem.y_train), "val": len(problem.y_val), "scored": len(to_score)},
    }
    rows = [_of_arrays(Model(**model), arrays, context, problem) for model in models]
    return stage.finish({OUTPUTS: packed(arrays), TABLE: _table(rows, context.target)}, facts)


def _part(baseline: Baseline, problem: Problem, to_score: tuple[str, ...]) -> Arrays:
    """What is kept of one baseline: outputs, held-out outputs, note; or the reason why there are none."""
    log.info("baseline: %s", baseline.label)
    try:
        fitted = baseline.fit(problem)
    except NotAvailable as reason:
        log.info("baseline: %s is left out: %s", baseline.label, reason)
        return {"reason": np.array(str(reason))}
    output = np.asarray(fitted.predict(to_score), dtype=np.float64)
    held_out = dict(sorted(fitted.held_out.items()))
    return {
        "output": output,
        HELD_OUT: np.array(list(held_out.values()), dtype=np.float64).reshape(len(held_out), output.shape[1]),
        "held_out_subjects": np.array(list(held_out), dtype=np.str_),
        "note": np.array(fitted.note),
    }


def _model(baseline: Baseline, note: str) -> Model:
    return Model(key=baseline.key, label=baseline.label, role="baseline", sees=baseline.sees, note=note)


def _scored(stage: Stage, record: Mapping[str, Any], context: Context, problem: Problem) -> list[Scored]:
    found = unpacked(stage.folder / OUTPUTS)
    return [_of_arrays(Model(**model), found, context, problem) for model in record["facts"]["models"]]


def _of_arrays(model: Model, arrays: Mapping[str, npt.NDArray[Any]], context: Context, problem: Problem) -> Scored:
    def rows(part: str, subjects: str, output: str, truth: Mapping[str, float]) -> Predictions:
        labels = (str(label) for label in arrays[subjects])
        return predictions(model.key, part, dict(zip(labels, arrays[output], strict=True)), truth)

    held_out = f"{model.key}_{HELD_OUT}"
    return Scored(
        model=model,
        predictions=rows(context.config.subset, "subjects", model.key, context.values),
        held_out=rows(HELD_OUT, f"{held_out}_subjects", held_out, problem.y_fit) if len(arrays[held_out]) else None,
    )


def _table(scored: list[Scored], target: Target) -> str:
    """A line a model and subject."""
    lines = ["\t".join(("model", "part", "subject", "y_true", *target.output_names))]
    for found in scored:
        for part in (found.predictions, found.held_out):
            if part is None:
                continue
            for subject, truth, output in zip(part.subjects, part.y_true, part.output, strict=True):
                numbers = (f"{value:.9g}" for value in (truth, *output))
                lines.append("\t".join((found.model.key, part.subset, subject, *numbers)))
    return "\n".join(lines) + "\n"


def section(context: Context) -> Section | None:
    """What `fit_baselines` left out, and why; None when nothing was, or it has not run."""
    path = context.config.out / FOLDER / RECORD
    skipped = json.loads(path.read_text())["facts"]["skipped"] if path.is_file() else []
    if not skipped:
        return None
    return Section(
        anchor="baselines-left-out",
        title="Baselines left out",
        paragraphs=("These could not be fitted here. The others were fitted on the same split.",),
        tables=(Table(columns=("Baseline", "Reason"), rows=tuple((row["label"], row["reason"]) for row in skipped)),),
    )
