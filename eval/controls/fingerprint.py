"""Does our model know who somebody is? Then it may be right about people for reasons that are not its task.

Each scored subject has a gallery vector and a probe vector, from different sessions, runs or halves of a run. A probe
is told as the subject whose gallery vector has the largest cosine with it.

Our model's vectors are what its head sees, averaged over windows, without the mean over time: residuals are centred
over a run, so that the means of its halves are opposite and say nothing about a person.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.arrays import packed, unpacked
from eval.context import Context
from eval.controls.retrieval import chance, mean_average_precision, rank_1, ranks, similarities
from eval.controls.sides import LEAST_SUBJECTS, Sides, Span, compared
from eval.controls.tokens import tokens_of, windows_of
from eval.parcels.parcels import connectivity
from eval.parcels.series import RegionSeries, parcels_hash
from eval.prediction.windows import run_parts
from eval.scoring.metrics import Floats
from eval.stages import Arrays, Stage
from eval.subjects import evenly_spaced

if TYPE_CHECKING:
    import torch

    from shards.reader import ShardSet

log = logging.getLogger(__name__)

RESULT, SIMILARITIES = "fingerprint.json", "similarities.npz"
EDGES = np.linspace(-1.0, 1.0, 161)
LEAST_FRAMES = 10
"""A correlation of fewer frames is noise."""

MOST_SUBJECTS = 500
"""Size of the gallery: it bounds the cost, and galleries of equal size can be compared."""

Vector = Callable[[Span], "npt.NDArray | None"]
"""Vector (E,) of some frames of a run; None where there are too few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identification:
    """How well one kind of vector tells people apart in one comparison.

    Attributes
    ----------
    source : {'ours', 'fc'}
        What the head of our model sees, or static connectivity of parcels.
    comparison : str
        Key of `eval.controls.sides.COMPARISONS`.
    num_subjects : int
        N, the size of the gallery; every subject is asked for once.
    rank_1, low, high : float
        Share of subjects found first, and its 95 % Wilson interval.
    mean_average_precision : float
        Mean of 1 / rank.
    chance_rank_1, chance_map : float
        Of vectors that say nothing.
    """

    source: str
    comparison: str
    num_subjects: int
    rank_1: float
    low: float
    high: float
    mean_average_precision: float
    chance_rank_1: float
    chance_map: float

    @property
    def key(self) -> str:
        """Of source and comparison."""
        return f"{self.source}_{self.comparison}"


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Identification of the scored subjects.

    Attributes
    ----------
    rows : tuple of Identification
        Hardest comparison first; none where no comparison has subjects enough.
    own, others : mapping of str to numpy.ndarray, shape (160,)
        Key of a row to the number of similarities of a probe with its own subject, and with others, in the bins of
        `EDGES`.
    parcels : str
        What connectivity was computed of; '' where it was not.
    """

    rows: tuple[Identification, ...]
    own: Mapping[str, Floats]
    others: Mapping[str, Floats]
    parcels: str


def fingerprint(context: Context, regions: RegionSeries | None = None) -> Fingerprint:
    """Tell the scored subjects apart, at most `MOST_SUBJECTS` of them.

    Stage `fingerprint`: `fingerprint.json` (the rows) and `similarities.npz` (what is drawn).

    Parameters
    ----------
    context : Context
        From `eval.context.open_context`; every rank calls this.
    regions : eval.parcels.series.RegionSeries, optional
        Tell them apart by static connectivity of these, too.

    Raises
    ------
    ShardError
        A run's bytes are damaged.
    """
    stage = context.stage(
        "fingerprint",
        subset=context.config.subset,
        most_subjects=MOST_SUBJECTS,
        bins=len(EDGES) - 1,
        regions="" if regions is None else parcels_hash(regions.parcels),
    )
    if context.ranks.first(stage.record) is None:
        comparisons = compared(context.cohort, _spread(context.split.subjects(context.config.subset)))
        spans = sorted({span for sides in comparisons.values() for each in sides.values() for span in each.spans})
        sources: dict[str, Vector] = {"ours": _our_vectors(context, stage, spans)}
        if regions is not None:
            regions.cache.ensure(sorted({span.run for span in spans}), context.ranks, context.config.threads)
            sources["fc"] = _connectivity(regions)
        description = "" if regions is None else regions.description
        stage.finish(context.ranks.first(lambda: _files(sources, comparisons, description)))
    return _read(stage)


def _spread(subjects: Iterable[str]) -> list[str]:
    """At most `MOST_SUBJECTS`, evenly spread over their labels."""
    return evenly_spaced(sorted(subjects), MOST_SUBJECTS)


def _files(
    sources: Mapping[str, Vector], comparisons: Mapping[str, Mapping[str, Sides]], description: str
) -> dict[str, bytes | str]:
    rows, drawn = [], {}
    for comparison, sides in comparisons.items():
        for source, vector in sources.items():
            pairs = _pairs(sides, vector)
            if pairs is None:
                continue
            similarity = similarities(*pairs)
            row = _identification(source, comparison, similarity)
            rows.append(row)
            log.info("fingerprint, %s: Rank-1 %.2f of %d subjects", row.key, row.rank_1, row.num_subjects)
            own = np.eye(len(similarity), dtype=bool)
            drawn[f"own_{row.key}"] = np.histogram(similarity[own], EDGES)[0]
            drawn[f"others_{row.key}"] = np.histogram(similarity[~own], EDGES)[0]
    text = json.dumps({"parcels": description, "rows": [asdict(row) for row in rows]}, indent=1)
    return {RESULT: text + "\n", SIMILARITIES: packed(drawn)}


def _our_vectors(context: Context, stage: Stage, spans: Sequence[Span]) -> Vector:
    """Standardised features of the windows inside a span, weighted by frames; the ranks share the runs."""
    by_run: dict[int, list[Span]] = {}
    for span in spans:
        by_run.setdefault(span.run, []).append(span)
    parts = run_parts(sorted(by_run))

    def compute(name: str) -> Arrays:
        tokens = tokens_of(context, context.model, parts[name], ("kept",))
        found = {}
        for span in (span for run in parts[name] for span in by_run[run]):
            features = span_features(context.model, context.shard_set, tokens, span, context.ranks.device)
            if features is not None:
                found[span.name] = features
        return found

    known = {name: features for _, part in stage.parts(list(parts), compute) for name, features in part.items()}
    return lambda span: known.get(span.name)


def span_features(
    model: Any, shard_set: ShardSet, tokens: Arrays, span: Span, device: torch.device
) -> npt.NDArray[np.float32] | None:
    """What the head sees of a span, shape (E,): standardised, without the mean over time.

    Parameters
    ----------
    tokens : mapping
        From `eval.controls.tokens.run_tokens`.

    Returns
    -------
    numpy.ndarray or None
        None where no window lies in the span, or the head sees nothing but the mean.
    """
    from training.finetuning.features import feature_sums

    inside = (tokens["start"] >= span.start) & (tokens["start"] + tokens["num_frames"] <= span.stop)
    rows = np.flatnonzero((tokens["run"] == span.run) & inside)
    kept = [np.arange(group.start, group.stop) for group in model.pool.groups if group.name != "mean"]
    if not rows.size or not kept:
        return None
    sums, frames = feature_sums(model.pool, windows_of(tokens, "kept", device, rows), shard_set)
    subject = shard_set.runs[span.run].subject
    mean, scale = (each.double().cpu().numpy() for each in (model.pool.feature_mean, model.pool.feature_scale))
    standardised = (sums[subject] / frames[subject] - mean) * scale
    return np.asarray(standardised[np.concatenate(kept)], dtype=np.float32)


def _connectivity(regions: RegionSeries) -> Vector:
    """Fisher z of the correlations of region series in a span."""

    def vector(span: Span) -> npt.NDArray | None:
        if span.num_frames < LEAST_FRAMES:
            return None
        return connectivity(regions.of_run(span.run)[span.start : span.stop])

    return vector


def _pairs(sides: Mapping[str, Sides], vector: Vector) -> tuple[Floats, Floats] | None:
    """Gallery and probe vectors (N, E) of the subjects that have both; None where too few have."""
    found = [(_mean(each.gallery, vector), _mean(each.probe, vector)) for each in sides.values()]
    whole = [(gallery, probe) for gallery, probe in found if gallery is not None and probe is not None]
    if len(whole) < LEAST_SUBJECTS:
        return None
    return np.stack([gallery for gallery, _ in whole]), np.stack([probe for _, probe in whole])


def _mean(spans: tuple[Span, ...], vector: Vector) -> Floats | None:
    """Of the spans that have a vector, weighted by frames."""
    found = [(x, span.num_frames) for span in spans if (x := vector(span)) is not None]
    if not found:
        return None
    return np.asarray(np.average([x for x, _ in found], axis=0, weights=[frames for _, frames in found]))


def _identification(source: str, comparison: str, similarity: Floats) -> Identification:
    rank = ranks(similarity)
    value, low, high = rank_1(rank)
    by_chance = chance(rank.size)
    return Identification(
        source=source,
        comparison=comparison,
        num_subjects=rank.size,
        rank_1=value,
        low=low,
        high=high,
        mean_average_precision=mean_average_precision(rank),
        chance_rank_1=by_chance[0],
        chance_map=by_chance[1],
    )


def _read(stage: Stage) -> Fingerprint:
    found = json.loads((stage.folder / RESULT).read_text())
    rows = tuple(Identification(**row) for row in found["rows"])
    arrays = unpacked(stage.folder / SIMILARITIES)
    own, others = ({row.key: arrays[f"{name}_{row.key}"] for row in rows} for name in ("own", "others"))
    return Fingerprint(rows=rows, own=own, others=others, parcels=found["parcels"])
