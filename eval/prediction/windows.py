"""A network's outputs for the scored and the validation subjects: each frame of each run seen exactly once.

Runs are predicted in parts of fixed runs, so that ranks share the work, a killed call goes on where it stopped, and
neither changes a number; a part is one rank's whole work, with batches that no other part's runs enter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.arrays import packed, unpacked
from eval.context import Context, subjects_to_score
from eval.scoring.metrics import Floats, probabilities
from eval.stages import Arrays, Stage, parts_of
from eval.subjects import Model, Predictions, Scored, gather_subjects, predictions
from shards.format import config_hash

if TYPE_CHECKING:
    from training.networks.model import BoldModel

log = logging.getLogger(__name__)

WINDOWS = "windows.npz"
TABLE = "predictions.tsv"
FIELDS = ("run", "start", "num_frames", "output")
RUNS_PER_PART = 64
SAY_EVERY_S = 20.0
LEAST_PARTS = 16


def predict(context: Context, model: Model, stage: Stage, window: int | str, load: Callable[[], BoldModel]) -> Scored:
    """Predict the same subjects with any phase-3 model, or read what was predicted.

    Parameters
    ----------
    context : Context
        Whose subjects, shard set and ranks.
    model : Model
        The model in words.
    stage : Stage
        Its folder; `asked` has to be among its options.
    window : int or str
        Window length in frames (20) or seconds ('16s').
    load : callable
        Gives the network, on this rank's device; called only if something is missing.
    """
    subjects = subjects_of_parts(context)
    runs = context.runs(tuple(who for part in subjects.values() for who in part))
    record = context.ranks.first(stage.record)
    windows = unpacked(stage.folder / WINDOWS) if record is not None else _compute(context, stage, runs, window, load)
    outputs = gather_subjects(_rows(windows), context.shard_set.runs, runs, context.target.kind)
    by_part = predictions_by_part(context, model.key, outputs, subjects)
    if record is None:
        facts = {
            "model": asdict(model),
            "subjects": {part: len(found.subjects) for part, found in by_part.items()},
            "windows": len(windows["run"]),
            "frames": int(windows["num_frames"].sum()),
        }
        files: dict[str, bytes | str] = {}
        if context.ranks.is_first:
            files = {WINDOWS: packed(windows), TABLE: _table(context, by_part)}
        stage.finish(files, facts)
    return scored(context, model, by_part)


def predictions_by_part(
    context: Context, key: str, outputs: Mapping[str, Floats], subjects: Mapping[str, tuple[str, ...]]
) -> dict[str, Predictions]:
    """What a model says of the subjects of each part."""
    return {
        part: predictions(key, part, {who: outputs[who] for who in members}, context.values)
        for part, members in subjects.items()
    }


def scored(context: Context, model: Model, by_part: Mapping[str, Predictions]) -> Scored:
    """A model with what it says; the validation subjects, unless they are the scored ones, choose its threshold."""
    subset = context.config.subset
    return Scored(model=model, predictions=by_part[subset], held_out=by_part.get("val") if subset != "val" else None)


def asked(context: Context) -> dict[str, Any]:
    """Options of a stage of predictions: whose, and what is said to be true of them."""
    values = {who: context.values[who] for part in subjects_of_parts(context).values() for who in part}
    return {"subset": context.config.subset, "values": config_hash(values)}


def subjects_of_parts(context: Context) -> dict[str, tuple[str, ...]]:
    """Part to the subjects to predict: those that are scored, and the validation subjects if there are any.

    Raises
    ------
    UsageError
        Nobody can be scored.
    """
    found: dict[str, tuple[str, ...]] = {context.config.subset: subjects_to_score(context, context.config.subset)}
    held_out = context.subjects("val")
    return found | ({"val": held_out} if held_out else {})


def run_parts(runs: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """`eval.stages.parts_of`, of the size of predictions."""
    return parts_of(runs, most=RUNS_PER_PART, least=LEAST_PARTS)


def _compute(
    context: Context, stage: Stage, runs: Sequence[int], window: int | str, load: Callable[[], BoldModel]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of `FIELDS` over all windows, by run and start; this rank computes its share of the parts."""
    from training.predict import predict_windows

    parts, config = run_parts(runs), context.config
    log.info("%s: %d runs in %d parts", stage.folder.name, len(runs), len(parts))
    said = time.monotonic()

    def compute(name: str) -> Arrays:
        nonlocal said
        if time.monotonic() - said > SAY_EVERY_S:
            log.info("%s: at %s of %d", stage.folder.name, name, len(parts))
            said = time.monotonic()
        rows = predict_windows(load(), context.shard_set, parts[name], window, config.batch_size, config.threads)
        rows.sort(key=lambda row: (row["run"], row["start"]))
        return {field: np.array([row[field] for row in rows]) for field in FIELDS}

    found = [arrays for _, arrays in stage.parts(list(parts), compute)]
    return {field: np.concatenate([arrays[field] for arrays in found]) for field in FIELDS}


def _rows(windows: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, Any]]:
    """Window by window, as `gather_subjects` takes them."""
    for values in zip(*(windows[field] for field in FIELDS), strict=True):
        yield dict(zip(FIELDS, values, strict=True))


def _table(context: Context, by_part: Mapping[str, Predictions]) -> str:
    """A line a subject: part, runs, frames, true value, outputs, and the probability for a binary target."""
    target, cohort = context.target, context.cohort
    extra = (f"probability_{target.levels[1]}",) if target.kind == "binary" else ()
    lines = ["\t".join(("subject", "part", "runs", "frames", "y_true", *target.output_names, *extra))]
    for part, found in by_part.items():
        for index, subject in enumerate(found.subjects):
            output = found.output[index : index + 1]
            told = [*output[0], *(probabilities(output, target.kind)[0, 1:] if extra else ())]
            seen = (str(len(cohort.runs[subject])), str(cohort.num_frames(subject)))
            true = target.text(float(found.y_true[index]))
            lines.append("\t".join((subject, part, *seen, true, *(f"{value:.9g}" for value in told))))
    return "\n".join(lines) + "\n"
