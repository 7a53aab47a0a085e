"""One evaluation from start to end: the stages that are missing, the assessment, and what the page shows of them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eval.config import NOISE_SAMPLES, PATH_STEPS, ReportConfig
from eval.context import Context, subjects_to_score
from eval.guards import Check
from eval.page.section import Section
from eval.scoring.assessment import Assessment, assess
from eval.subjects import Scored
from eval.targets import Target
from shards.splits import PARTS, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SplitPart:
    """Who is in a part of the split: subjects with a target, by class, site; families; those without."""

    name: str
    num_subjects: int
    num_without_target: int
    by_class: Mapping[str, int]
    by_site: Mapping[str, int]
    num_families: int | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that a report tells."""

    config: ReportConfig
    target: Target
    split: Split
    parts: tuple[SplitPart, ...]
    fitted_on: tuple[str, ...]
    set_hash: str
    set_name: str
    run_config: Mapping[str, Any]
    num_runs: int
    num_frames: int
    columns: Mapping[str, str]
    assessment: Assessment
    seconds: float
    sections: tuple[Section, ...] = ()
    """What the stages have to show, in the order of the page."""
    checks: tuple[Check, ...] = ()
    """Of leakage, passed ones too."""


def evaluate(context: Context, config: ReportConfig, checks: tuple[Check, ...]) -> Evaluation | None:
    """Run the stages that are missing, and put their results together.

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`; every rank calls this.
    config : ReportConfig
        What to score, and where.
    checks : tuple of Check
        From `eval.guards.refuse_leaks`.

    Returns
    -------
    Evaluation or None
        On rank 0; None elsewhere, where nothing is left to do.

    Raises
    ------
    UsageError
        The atlas cannot be used, or nobody can be scored.
    MismatchError
        A run to compare with does not belong to the same split and target.
    """
    began = time.monotonic()
    subjects = subjects_to_score(context, config.subset)
    scored = _all_models(context, config)
    shown = _stages_to_show(context, config, scored)
    if not context.ranks.is_first:
        return None
    log.info("intervals from %d resamples of %d subjects", config.bootstrap, len(subjects))
    assessment = assess(
        scored,
        context.target,
        families=context.cohort.family_names(subjects),
        num_resamples=config.bootstrap,
        num_permutations=config.permutations,
        seed=config.seed,
    )
    runs = context.runs(subjects)
    return Evaluation(
        config=config,
        target=context.target,
        split=context.split,
        parts=tuple(describe_part(context, part) for part in PARTS),
        fitted_on=("train", "val") if config.subset == "test" else ("train",),
        set_hash=context.shard_set.manifest.set_hash,
        set_name=context.shard_set.manifest.name,
        run_config=context.run_config,
        num_runs=len(runs),
        num_frames=sum(context.shard_set.runs[run].num_frames for run in runs),
        columns=dict(context.cohort.columns),
        assessment=assessment,
        seconds=time.monotonic() - began,
        sections=tuple(_sections(context, assessment, shown)),
        checks=checks,
    )


def _all_models(context: Context, config: ReportConfig) -> list[Scored]:
    """Baselines, controls, runs to compare with, and ours, the last."""
    from eval.prediction.predict import predict_ours, predict_runs

    ours = predict_ours(context)
    scored: list[Scored] = []
    if "baselines" not in config.skip:
        from eval.baselines.stage import fit_baselines

        scored += fit_baselines(context, config.atlas, config.models)
    if "controls" not in config.skip:
        from eval.controls.probes import probe_controls

        scored += probe_controls(context)
    return [*scored, *predict_runs(context, config.compare), ours]


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Results of the stages that only the page tells of; None where a stage was skipped or had nothing to do."""

    confounding: Any = None
    fingerprint: Any = None
    embeddings: Any = None
    reconstruction: Any = None
    explanation: Any = None


def _stages_to_show(context: Context, config: ReportConfig, scored: list[Scored]) -> _Shown:
    found: dict[str, Any] = {}
    if "controls" not in config.skip:
        from eval.baselines.stage import region_series
        from eval.controls.confounding import confounding
        from eval.controls.fingerprint import fingerprint

        regions = None if "baselines" in config.skip else region_series(context, config.atlas)
        found["confounding"] = confounding(context, scored)
        found["fingerprint"] = fingerprint(context, regions)
    if "embed" not in config.skip:
        from eval.embedding.stage import embed

        found["embeddings"] = embed(context, config.file_format)
    if "explain" not in config.skip:
        from eval.explain.stage import explain
        from eval.reconstruction.stage import reconstruct

        found["reconstruction"] = reconstruct(context, config.pretrained)
        found["explanation"] = explain(
            context, config.explain_subjects, config.explain_windows, PATH_STEPS, NOISE_SAMPLES
        )
    return _Shown(**found)


def _sections(context: Context, assessment: Assessment, shown: _Shown) -> Iterator[Section]:
    """What there is to show, in the order of the page."""
    from eval.baselines import stage as baselines
    from eval.controls.section import confounding_section, controls_section, fingerprint_section
    from eval.embedding import section as embedding
    from eval.explain import section as explain
    from eval.reconstruction import section as reconstruction

    found = [
        baselines.section(context),
        controls_section(assessment, context.target),
        None if shown.confounding is None else confounding_section(shown.confounding, context.target),
        None if shown.fingerprint is None else fingerprint_section(shown.fingerprint),
        None if shown.embeddings is None else embedding.section(context, shown.embeddings),
        reconstruction.section(context, shown.reconstruction),
        None if shown.explanation is None else explain.section(shown.explanation),
    ]
    yield from (section for section in found if section is not None)


def describe_part(context: Context, part: str) -> SplitPart:
    """Counts of a part of the split."""
    everyone, subjects, target = context.split.subjects(part), context.subjects(part), context.target
    classes = Counter(target.levels[int(context.values[subject])] for subject in subjects if target.levels)
    sites = context.cohort.values.get("site", {})
    families = context.cohort.family_names(subjects)
    return SplitPart(
        name=part,
        num_subjects=len(subjects),
        num_without_target=len(everyone) - len(subjects),
        by_class={level: classes[level] for level in target.levels},
        by_site=dict(sorted(Counter(sites.get(subject, "unknown") for subject in subjects).items())) if sites else {},
        num_families=None if families is None else len({name for name in families if name}),
    )
