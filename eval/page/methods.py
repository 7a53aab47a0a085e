"""A methods paragraph to paste into a paper; every sentence in it is about what ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from eval.lineage import Ancestor
from eval.page.prose import counted, in_sentence, listed
from eval.page.verdict import OTHER_RUN
from eval.prediction.predict import window_in_words
from eval.scoring.bootstrap import INTERVALS
from eval.scoring.metrics import METRICS, headline
from eval.subjects import Model

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

PARTS = {"train": "training", "val": "validation", "test": "test"}


def methods(evaluation: Evaluation, behind: Sequence[Ancestor], software: Mapping[str, str]) -> str:
    """The paragraph.

    Parameters
    ----------
    evaluation : Evaluation
        What ran.
    behind : sequence of Ancestor
        The runs that the model's weights came from, the nearest first.
    software : mapping of str to str
        Package to version.
    """
    return " ".join(
        (
            *_model(evaluation, behind, software),
            *_split(evaluation),
            *_rivals(evaluation),
            *_scores(evaluation),
            *(section.methods for section in evaluation.sections if section.methods),
            _software(software),
        )
    )


def _model(evaluation: Evaluation, behind: Sequence[Ancestor], software: Mapping[str, str]) -> Iterator[str]:
    target, run = evaluation.target, evaluation.run_config
    preset = f", preset {run['preset']}" if run.get("preset") else ""
    yield (
        f"The target “{target.column}” ({target.kind}) was predicted for each subject with a 4D fMRI transformer "
        f"(boldstream {software['boldstream']}{preset})."
    )
    phases = [run.phase for run in behind if run.phase is not None]
    if behind and len(phases) == len(behind):
        named = {1: "as an autoencoder of frames", 2: "on sequences of frames"}
        yield f"Its weights were pre-trained {listed([named[phase] for phase in sorted(set(phases))])}."
    elif not behind:
        yield "It was trained from random weights, without pre-training."


def _split(evaluation: Evaluation) -> Iterator[str]:
    split, window = evaluation.split, evaluation.run_config["window"]
    count = {part.name: part.num_subjects for part in evaluation.parts}
    grouped = f", grouped by {split.rule['group']}" if split.rule.get("group") else ""
    stratified = f", stratified by {split.rule['stratify']}" if split.rule.get("stratify") else ""
    yield (
        f"Subjects were divided once into {count['train']} training, {count['val']} validation and {count['test']} "
        f"test subjects{grouped}{stratified} (seed {split.seed}, split hash {split.hash})."
    )
    averaged = "value" if evaluation.target.kind == "regression" else "logit"
    yield (
        f"Outputs for windows of {window_in_words(window)}, covering each frame once, were averaged to one {averaged} "
        f"per subject {'and class ' if evaluation.target.kind == 'multiclass' else ''}weighted by frames."
    )


def _rivals(evaluation: Evaluation) -> Iterator[str]:
    assessment, subset = evaluation.assessment, evaluation.config.subset
    simple = [row.model for row in assessment.baselines]
    if simple:
        named = "; ".join(f"{model.label} ({_sees(model)})" for model in simple)
        fitted = listed([PARTS[part] for part in evaluation.fitted_on])
        yield (
            f"{counted(len(simple), 'baseline')} {'was' if len(simple) == 1 else 'were'} made from the {fitted} "
            f"subjects and scored on the same {PARTS[subset]} subjects: {named}."
        )
    controls = [row.model for row in assessment.controls]
    own = [model.label for model in controls if not model.key.startswith(OTHER_RUN)]
    if own:
        yield f"Controls of our model were: {'; '.join(own)}."
    runs = [model.label for model in controls if model.key.startswith(OTHER_RUN)]
    if runs:
        yield f"It was also compared with {listed(runs)}."


def _sees(model: Model) -> str:
    return "uses no data" if model.sees == "nothing" else f"sees {model.sees}"


def _scores(evaluation: Evaluation) -> Iterator[str]:
    target, assessment, config = evaluation.target, evaluation.assessment, evaluation.config
    metric = headline(target.kind)
    others = listed([in_sentence(other.label) for other in METRICS[target.kind][1:]])
    yield f"{metric.label} is the headline metric; {others} were computed as well."
    if target.kind == "binary":
        yield _decision(evaluation)
    elif target.kind == "regression":
        yield "R² refers to the mean of the training subjects."
    families = ", with families drawn as blocks" if assessment.num_families is not None else ""
    strata = "" if target.kind == "regression" else ", stratified by class"
    yield f"Intervals are {INTERVALS} from {config.bootstrap} bootstrap resamples of subjects{strata}{families}."
    if len(assessment.rows) > 1:
        yield "Models were compared on the same resamples (paired)."
    if len(assessment.baselines) > 1:
        yield "p-values of the differences to the baselines were adjusted by Holm's method."
    yield f"p-values against chance come from {config.permutations} permutations of the labels."


def _decision(evaluation: Evaluation) -> str:
    rows = evaluation.assessment.rows
    chosen = [row for row in rows if row.num_held_out]
    rule = "the cut of the logit with the best balanced accuracy among held-out subjects who were not scored"
    if len(chosen) == len(rows):
        return f"Classes were decided by each model's own threshold: {rule}."
    if not chosen:
        return "Classes were decided at a predicted probability of 0.5."
    rest = listed([row.model.label for row in rows if not row.num_held_out])
    return f"Classes were decided by each model's own threshold, {rule}; for {rest} at a predicted probability of 0.5."


def _software(software: Mapping[str, str]) -> str:
    return f"Metrics were computed with scikit-learn {software['scikit-learn']} and scipy {software['scipy']}."
