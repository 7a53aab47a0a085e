"""Telling people apart, and which recordings it is done with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import write_run
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from eval.config import PredictConfig
from eval.context import Context, open_context
from eval.controls import fingerprint as stage_of_fingerprints
from eval.controls.fingerprint import fingerprint, span_features
from eval.controls.retrieval import chance, mean_average_precision, rank_1, ranks, similarities
from eval.controls.section import fingerprint_section
from eval.controls.sides import Span, compared
from eval.controls.tokens import tokens_of
from eval.parcels.parcels import geometric_parcels
from eval.parcels.series import RegionSeries
from eval.ranks import Ranks
from shards.splits import make_split

NUM_SUBJECTS, NUM_FRAMES = 24, 120
SUBJECTS = [f"{k:02d}" for k in range(NUM_SUBJECTS)]


def test_similarity_is_the_cosine_about_the_gallerys_mean() -> None:
    rng = np.random.default_rng(0)
    gallery, probe = rng.standard_normal((2, 9, 5)) + 3
    expected = cosine_similarity(probe - gallery.mean(0), gallery - gallery.mean(0))
    np.testing.assert_allclose(similarities(gallery, probe), expected, atol=1e-12)


def test_ranks_of_ties_are_shared() -> None:
    similarity = np.array([[0.5, 0.5, 0.1], [0.9, 0.2, 0.3], [0.0, 0.0, 0.0]])
    expected = [rankdata(-row)[k] for k, row in enumerate(similarity)]
    assert ranks(similarity).tolist() == expected == [1.5, 3.0, 2.0]


def test_rank_1_and_map_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    similarity = rng.standard_normal((30, 30)) + np.eye(30)
    rank = ranks(similarity)
    assert mean_average_precision(rank) == pytest.approx(label_ranking_average_precision_score(np.eye(30), similarity))
    value, low, high = rank_1(rank)
    assert value == np.mean(similarity.argmax(1) == np.arange(30))
    # Wilson (1927), written out
    z, n = 1.959964, 30
    middle, half = (value + z**2 / 2 / n, z * np.sqrt(value * (1 - value) / n + z**2 / 4 / n**2))
    assert (low, high) == pytest.approx(((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)), abs=1e-5)


def test_vectors_that_say_nothing_are_at_the_printed_chance() -> None:
    rng = np.random.default_rng(2)
    found = [ranks(similarities(*rng.standard_normal((2, 12, 40)))) for _ in range(400)]
    expected_rank_1, expected_map = chance(12)
    assert np.mean([rank_1(rank)[0] for rank in found]) == pytest.approx(expected_rank_1, abs=0.015)
    assert np.mean([mean_average_precision(rank) for rank in found]) == pytest.approx(expected_map, abs=0.015)


def recordings(*entries: tuple[str, str, str]) -> Any:
    """A cohort of runs (subject, session, run) of 100 frames each."""
    runs = [
        SimpleNamespace(run_id=f"sub-{who}_ses-{session}_run-{run}", session=session, num_frames=100)
        for who, session, run in entries
    ]
    numbers: dict[str, tuple[int, ...]] = {}
    for number, (who, _, _) in enumerate(entries):
        numbers[who] = (*numbers.get(who, ()), number)
    return SimpleNamespace(runs=numbers, shard_set=SimpleNamespace(runs=runs))


def test_sessions_are_compared_before_runs_before_halves() -> None:
    several = [(f"{k}", session, run) for k in range(5) for session in ("a", "b") for run in ("1", "2")]
    cohort = recordings(*several, ("z", "a", "1"))
    found = compared(cohort, [*"01234", "z"])
    assert list(found) == ["sessions", "runs", "halves"]
    assert set(found["sessions"]) == set(found["runs"]) == set("01234")
    assert [span.run for span in found["sessions"]["0"].gallery] == [0, 1]
    assert [span.run for span in found["sessions"]["0"].probe] == [2, 3]
    assert [span.run for span in found["runs"]["0"].spans] == [0, 1]
    assert found["halves"]["z"].spans == (Span(run=20, start=0, stop=50), Span(run=20, start=50, stop=100))


def test_a_comparison_of_few_subjects_is_left_out() -> None:
    cohort = recordings(*[(f"{k}", session, "1") for k in range(4) for session in "ab"], ("z", "a", "1"))
    assert list(compared(cohort, ["0", "1", "2", "3", "z"])) == ["halves"]


@pytest.fixture
def opened(make_shard_set: Callable[..., Any], mask: NDArray[np.bool_], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a run on people who each have an own mixture of five courses, or none."""
    contexts = []

    def make(*, own: float, runs: int = 1, frames: int = NUM_FRAMES) -> Context:
        rng = np.random.default_rng(8)
        signals, voxels = {}, int(mask.sum())
        for who in SUBJECTS:
            mixture = own * rng.standard_normal((5, voxels))
            for run in range(runs):
                signal = rng.standard_normal((frames, 5)) @ mixture + rng.standard_normal((frames, voxels))
                signals[f"sub-{who}_task-rest_run-{run}"] = (1000 + 20 * signal).astype("f4")
        table = "participant_id\tgroup\n" + "".join(f"sub-{who}\t{'ab'[k % 2]}\n" for k, who in enumerate(SUBJECTS))
        make_shard_set(tmp_path / "set", signals=signals, participants=table, runs_per_shard=50)
        split = make_split(SUBJECTS, fractions=(0.4, 0.1, 0.5), seed=1)
        write_run(tmp_path / "run", tmp_path / "set", split)
        config = PredictConfig(checkpoint=tmp_path / "run", shards=str(tmp_path / "set"), out=tmp_path / "out")
        contexts.append(open_context(config, Ranks()))
        return contexts[-1].__enter__()

    yield make
    for context in contexts:
        context.__exit__(None, None, None)


def test_people_with_their_own_connectivity_are_told_apart(opened: Callable[..., Context]) -> None:
    context = opened(own=1.0)
    regions = RegionSeries(context.shard_set, geometric_parcels(context.shard_set), context.config.out)
    found = {row.source: row for row in fingerprint(context, regions).rows}
    assert {row.num_subjects for row in found.values()} == {12}
    assert found["ours"].rank_1 > 0.5 > 5 * found["ours"].chance_rank_1
    assert found["fc"].rank_1 > 0.5


def test_people_who_are_alike_are_not(opened: Callable[..., Context]) -> None:
    (row,) = fingerprint(opened(own=0.0)).rows
    assert row.comparison == "halves"
    assert row.low < row.chance_rank_1 < row.high


def test_features_of_a_span_are_the_pools_without_the_mean(opened: Callable[..., Context]) -> None:
    context = opened(own=1.0)
    model: Any = context.model
    model.pool.feature_scale.fill_(2.0)
    model.pool.feature_mean.fill_(0.1)
    tokens = tokens_of(context, model, [0, 1], ["kept"])
    found = span_features(model, context.shard_set, tokens, Span(run=1, start=30, stop=120), torch.device("cpu"))
    inputs = torch.from_numpy(context.shard_set.residual(1, 40, 80)).unflatten(0, (4, 20))
    with torch.no_grad():
        read = model.read_tokens(model.encode(inputs), torch.ones(4, 20, dtype=bool), torch.full((4,), 2.0))
        pooled = model.pool(*read, torch.full((4,), 20))
    np.testing.assert_allclose(found, pooled.mean(0)[model.size.latent :].numpy(), rtol=1e-3, atol=1e-4)


def test_a_finished_fingerprint_is_read(opened: Callable[..., Context], monkeypatch: pytest.MonkeyPatch) -> None:
    context = opened(own=1.0, runs=2)
    first = fingerprint(context)
    assert [row.comparison for row in first.rows] == ["runs", "halves"]
    monkeypatch.setattr(stage_of_fingerprints, "tokens_of", lambda *_: pytest.fail("computed again"))
    again = fingerprint(context)
    assert again.rows == first.rows
    assert again.own["ours_runs"].sum() == 12
    assert again.others["ours_runs"].sum() == 12 * 11


def test_runs_of_one_window_have_no_halves_and_no_section(opened: Callable[..., Context]) -> None:
    found = fingerprint(opened(own=1.0, frames=20))
    assert found.rows == ()
    assert fingerprint_section(found) is None
