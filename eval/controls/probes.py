"""Controls: our model with something taken away, fitted and scored on the same subjects."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from eval.context import Context
from eval.controls.refit import Head, head_of, mean_features, refit, whitened_on
from eval.controls.table import read_outputs, write_outputs
from eval.controls.tokens import Arrays, Order, tokens_of, windows_of
from eval.prediction.windows import asked, predictions_by_part, run_parts, scored, subjects_of_parts
from eval.scoring.metrics import Floats
from eval.stages import Stage
from eval.subjects import Model, Scored
from shards.format import config_hash

if TYPE_CHECKING:
    from training.finetuning.features import Windows

log = logging.getLogger(__name__)

OUTPUTS = "predictions.tsv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """What is done to our model.

    Attributes
    ----------
    key, label, sees : str
        As in `eval.subjects.Model`.
    weights : {'ours', 'untrained'}
        Of encoder and transformer: as trained, or the same architecture before any training.
    order : {'kept', 'shuffled'}
        Of the frames of each run.
    refitted : bool
        Whether the head is fitted anew on the training subjects; else it is the trained one.
    """

    key: str
    label: str
    sees: str
    weights: str
    order: Order
    refitted: bool


CONTROLS = (
    Control(
        key="reprobed",
        label="Our frozen model, head refitted",
        sees="what our model sees",
        weights="ours",
        order="kept",
        refitted=True,
    ),
    Control(
        key="shuffled",
        label="Time shuffled, head refitted",
        sees="the same frames, those of each run in random order",
        weights="ours",
        order="shuffled",
        refitted=True,
    ),
    Control(
        key="shuffled_test",
        label="Time shuffled at test only",
        sees="the same frames, those of each scored run in random order",
        weights="ours",
        order="shuffled",
        refitted=False,
    ),
    Control(
        key="untrained",
        label="Random weights, head refitted",
        sees="what our model sees",
        weights="untrained",
        order="kept",
        refitted=True,
    ),
)


def probe_controls(context: Context) -> list[Scored]:
    """Fit and score the controls of `CONTROLS`.

    Stage `controls`: `predictions.tsv`, a line for each control and subject. The encoder runs once over the runs of
    all subjects for each set of weights; meanwhile the parts hold what the head reads of every frame, D numbers of
    4 bytes (three times: in order, shuffled, and of random weights).

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`; every rank calls this.

    Returns
    -------
    list of Scored
        Role 'control'. Heads are fitted on the training subjects; `held_out` are the validation subjects, None where
        these are the scored ones.

    Raises
    ------
    UsageError
        Nobody can be scored.
    ShardError
        A run's bytes are damaged.
    """
    subjects = subjects_of_parts(context)
    fitted_on = {subject: context.values[subject] for subject in context.subjects("train")}
    stage = context.stage("controls", seed=context.config.seed, fitted_on=config_hash(fitted_on), **asked(context))
    record = context.ranks.first(stage.record)
    if record is None:
        outputs, facts = _fit_all(context, stage, fitted_on, tuple(who for part in subjects.values() for who in part))
        record = stage.finish({OUTPUTS: write_outputs(outputs, context.target.output_names)}, {"fitted": facts})
    outputs, facts = read_outputs(stage.folder / OUTPUTS), record["facts"]["fitted"]
    return [_scored(context, control, outputs[control.key], facts, subjects) for control in CONTROLS]


def _fit_all(
    context: Context, stage: Stage, fitted_on: Mapping[str, float], kept: tuple[str, ...]
) -> tuple[dict[str, dict[str, Floats]], dict[str, Any]]:
    """Outputs of the subjects of `kept` by control and subject, and what was fitted."""
    training_runs = frozenset(context.runs(tuple(fitted_on)))
    class_weights = bool(context.run_config.get("class_weights")) and context.target.kind != "regression"
    parts = _Parts(context, stage, context.runs((*fitted_on, *kept)))
    outputs, facts = {}, {}
    for control in CONTROLS:
        log.info("control: %s", control.label)
        windows = partial(parts.windows, control)
        model = parts.model(control.weights)
        pool = whitened_on(model.pool, windows, training_runs) if control.refitted else model.pool
        features = mean_features(pool, windows, context.shard_set)

        def fit(pool: Any = pool, features: Mapping[str, Floats] = features) -> tuple[Head, dict[str, Any]]:
            seen = {subject: features[subject] for subject in fitted_on}
            return refit(pool, seen, fitted_on, context.target, class_weights)

        if control.refitted:
            head, facts[control.key] = context.ranks.first(fit)
        else:
            head = head_of(model.state_dict())
        outputs[control.key] = head.outputs({who: features[who] for who in kept}, context.target)
    return outputs, facts


class _Parts:
    """Tokens of all runs, computed part by part and read as often as needed."""

    def __init__(self, context: Context, stage: Stage, runs: list[int]) -> None:
        self.context, self.stage, self.runs = context, stage, run_parts(runs)
        self.model = cache(self._model)

    def windows(self, control: Control) -> Iterator[Windows]:
        """Windows as a control sees them, part by part."""
        names = [f"{control.weights}-{part}" for part in self.runs]
        for _, arrays in self.stage.parts(names, self._compute):
            yield windows_of(dict(arrays), control.order, self.context.ranks.device)

    def _compute(self, name: str) -> Arrays:
        weights, part = name.split("-", 1)
        orders = sorted({control.order for control in CONTROLS if control.weights == weights})
        return tokens_of(self.context, self.model(weights), self.runs[part], orders)

    def _model(self, weights: str) -> Any:
        return self.context.model if weights == "ours" else untrained(self.context)


def untrained(context: Context) -> Any:
    """A model of the same architecture as it is before any training, the same on every device."""
    import torch

    from training.networks.model import BoldModel

    ours: Any = context.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.config.seed)
        model = BoldModel(
            size=ours.size,
            mask_XYZ=context.shard_set.mask,
            phase=3,
            pool=ours.pool.pool,
            num_outputs=ours.head.out_features,
        )
    return model.eval().to(context.ranks.device)


def _scored(
    context: Context,
    control: Control,
    outputs: Mapping[str, Floats],
    fitted: Mapping[str, Any],
    subjects: Mapping[str, tuple[str, ...]],
) -> Scored:
    model = Model(
        key=control.key,
        label=control.label,
        role="control",
        sees=control.sees,
        note=_note(control, fitted.get(control.key), context.config.seed),
    )
    return scored(context, model, predictions_by_part(context, control.key, outputs, subjects))


def _note(control: Control, fitted: Mapping[str, Any] | None, seed: int) -> str:
    if fitted is None:
        return f"the trained head, nothing refitted; random order of seed {seed}"
    chosen = ", ".join(f"{name} {share:.2f}" for name, share in list(fitted["features"].items())[:3])
    drawn = {"shuffled": f"; random order of seed {seed}", "untrained": f"; random weights of seed {seed}"}
    return f"closed-form probe of {fitted['num_subjects']} training subjects ({chosen}){drawn.get(control.key, '')}"
