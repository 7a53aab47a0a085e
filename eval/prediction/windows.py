"""A network's outputs for the scored and the validation subjects: each frame of each run seen exactly once.

Runs are predicted in parts of fixed runs, so that ranks share the work, a killed call goes on where it stopped, and
neither changes a number; a part is one rank's whole work, with batches that no other part's runs enter.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.context import Context, subjects_to_score
from eval.scoring.metrics import probabilities
from eval.stages import Arrays, Stage
from eval.subjects import Model, Predictions, Scored, gather_subjects, predictions
from eval.targets import Target
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
"""Small cohorts are cut finer than `RUNS_PER_PART`, so that several ranks have something to do."""


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
    windows = _read(stage) if record is not None else _compute(context, stage, runs, window, load)
    outputs = gather_subjects(_rows(windows), context.shard_set.runs, runs, context.target.kind)
    by_part = {
        part: predictions(model.key, part, {who: outputs[who] for who in members}, context.values)
        for part, members in subjects.items()
    }
    if record is None:
        facts = {
            "model": asdict(model),
            "subjects": {part: len(found.subjects) for part, found in by_part.items()},
            "windows": len(windows["run"]),
            "frames": int(windows["num_frames"].sum()),
        }
        files: dict[str, bytes | str] = {}
        if context.ranks.is_first:
            files = {WINDOWS: _packed(windows), TABLE: _table(context, by_part)}
        stage.finish(files, facts)
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


def parts_of(runs: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name of each part to its runs: a function of the runs alone, whoever computes them."""
    size = min(RUNS_PER_PART, -(-len(runs) // LEAST_PARTS))
    starts = range(0, len(runs), max(1, size))
    return {f"runs-{number:05d}": tuple(runs[start : start + size]) for number, start in enumerate(starts)}


def _compute(
    context: Context, stage: Stage, runs: Sequence[int], window: int | str, load: Callable[[], BoldModel]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of `FIELDS` over all windows, by run and start; this rank computes its share of the parts."""
    from training.predict import predict_windows

    parts, config = parts_of(runs), context.config
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


def _read(stage: Stage) -> dict[str, npt.NDArray[Any]]:
    with np.load(stage.folder / WINDOWS, allow_pickle=False) as found:
        return dict(found)


def _packed(windows: Mapping[str, npt.NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **windows)
    return buffer.getvalue()


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
            true = _true_text(target, float(found.y_true[index]))
            lines.append("\t".join((subject, part, *seen, true, *(f"{value:.9g}" for value in told))))
    return "\n".join(lines) + "\n"


def _true_text(target: Target, value: float) -> str:
    return target.levels[int(value)] if target.levels else f"{value:.9g}"
