"""The predictions of the run that is evaluated, and of other runs that it is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.checkpoint import check_shard_set, read_run_config
from eval.context import Context
from eval.guards import pretraining
from eval.lineage import FROM_NOTHING
from eval.prediction.windows import asked, predict
from eval.subjects import OURS, Model, Scored
from eval.targets import Target
from shards.errors import MismatchError, UsageError
from shards.splits import load_split


def predict_ours(context: Context) -> Scored:
    """Predict every subject of the scored part and of the validation part with the run that is evaluated.

    Stage `predictions`: `windows.npz` (run (W,), start (W,), num_frames (W,) int64; output (W, K) float64, logits or
    the value in original units) and `predictions.tsv`, a line a subject.

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`; every rank calls this.

    Returns
    -------
    Scored
        Role 'ours'. `held_out` are the validation subjects; None where these are the scored ones.

    Raises
    ------
    UsageError
        Nobody can be scored, or the model's output is not finite.
    ShardError
        A run's bytes are damaged.
    """
    model = Model(
        key=OURS,
        label="Our model",
        role="ours",
        sees=f"the 4-D signal in windows of {window_in_words(context.window)}",
        note=describe_run(context.run_config),
    )
    return predict(
        context, model, context.stage("predictions", **asked(context)), context.window, lambda: context.model
    )


def predict_runs(context: Context, folders: Sequence[Path]) -> list[Scored]:
    """`predict_run` for each folder, under names that tell them apart.

    Raises
    ------
    UsageError
        A folder stands twice, or is the run that is evaluated.
    """
    names = run_names(folders)
    return [predict_run(context, folder, names[folder]) for folder in folders]


def predict_run(context: Context, other_checkpoint: Path, name: str | None = None) -> Scored:
    """Predict the same subjects with another phase-3 run of the same split and target.

    Stage `predictions_<name>`, with the files of `predict_ours`.

    Parameters
    ----------
    context : Context
        Of the run that is evaluated; every rank calls this.
    other_checkpoint : Path
        The other run's folder.
    name : str, optional
        Letters, digits and '_'; the folder's own name by default.

    Returns
    -------
    Scored
        Role 'control', key `run_<name>`.

    Raises
    ------
    UsageError
        No finished phase-3 run, or the run that is evaluated.
    MismatchError
        Another split, target or shard set, or weights that were pre-trained on test subjects.
    """
    name = name or run_names([other_checkpoint])[other_checkpoint]
    other = context.ranks.first(lambda: _open(context, other_checkpoint))
    window = other.run_config["window"]
    model = Model(
        key=f"run_{name}",
        label=f"Run {name}",
        role="control",
        sees=f"the 4-D signal in windows of {window_in_words(window)}",
        note=describe_run(other.run_config),
    )
    options = asked(context) | {"weights": other.weights_hash, "window": str(window)}

    @cache
    def load() -> Any:
        from training.checkpoints.export import load_model

        return load_model(other_checkpoint, context.ranks.device).model

    return predict(context, model, context.stage(f"predictions_{name}", **options), window, load)


def run_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Short names that tell run folders apart: as many of their last parts as it takes, joined by '_'.

    Raises
    ------
    UsageError
        A folder stands twice.
    """
    places = [folder.resolve() for folder in folders]
    for depth in range(1, max((len(place.parts) for place in places), default=0) + 1):
        names = [re.sub(r"\W+", "_", "_".join(place.parts[-depth:]), flags=re.ASCII).strip("_") for place in places]
        if len(set(names)) == len(names):
            return dict(zip(folders, names, strict=True))
    if not folders:
        return {}
    twice = next(folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1)
    raise UsageError(f"--compare {twice}: stands twice; name each run once")


def window_in_words(window: int | str) -> str:
    """'20' or 20 as '20 frames', '16s' as '16 s'."""
    text = str(window)
    return f"{text[:-1]} s" if text.endswith("s") else f"{text} frames"


def describe_run(run_config: Mapping[str, Any]) -> str:
    """What a reader has to know of a phase-3 run: size, start, seed, how its checkpoint was chosen."""
    init = run_config.get("init")
    start = "without pre-training" if init in FROM_NOTHING else f"pre-trained in {Path(str(init)).name}"
    preset, seed = run_config.get("preset", "unknown"), run_config.get("seed", "unknown")
    return f"preset {preset}, {start}, seed {seed}; checkpoint chosen on the validation subjects"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Other:
    """A run that may be compared."""

    run_config: Mapping[str, Any]
    weights_hash: str


def _open(context: Context, folder: Path) -> _Other:
    """Check that a run answers the same question about the same subjects."""
    from training.checkpoints.export import SPLIT, read_description

    if folder.resolve() == context.config.checkpoint.resolve():
        raise UsageError(f"--compare {folder}: is the run that is evaluated; name another one")
    try:
        run_config = read_run_config(folder)
    except UsageError as error:
        raise UsageError(str(error).replace("--checkpoint", "--compare", 1)) from None
    check_shard_set(run_config, context.shard_set, folder)
    description = read_description(folder)
    for hash_, where in ((description.get("split_hash"), "model.json"), (load_split(folder / SPLIT).hash, SPLIT)):
        if hash_ != context.split.hash:
            raise MismatchError(
                f"--compare {folder}: the split of its {where} is {hash_}, that of {context.config.checkpoint} is "
                f"{context.split.hash}: it may have been trained on the subjects that are scored; train it with "
                f"--split {context.config.checkpoint / SPLIT}"
            )
    target = Target.from_json(description.get("target"))
    if _question(target) != _question(context.target):
        raise MismatchError(
            f"--compare {folder}: predicts {_question(target)}, {context.config.checkpoint} predicts "
            f"{_question(context.target)}; compare runs of the same target"
        )
    seen = pretraining(folder, run_config, context.split)
    if seen.passed is False:
        raise MismatchError(f"--compare {folder}: {seen.detail}; {seen.remedy}")
    return _Other(run_config=run_config, weights_hash=str(description["weights_xxh3"]))


def _question(target: Target) -> str:
    return f"{target.column} ({target.kind}{': ' + ', '.join(target.levels) if target.levels else ''})"
