"""Neural and boosted baselines: their layers, what they are given, and that they find what was planted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from eval.baselines import network_inputs, network_training, restarts
from eval.baselines.boosting import boosting_baselines
from eval.baselines.brainnetcnn import BrainNetCNN, EdgeToEdge, EdgeToNode, NodeToGraph
from eval.baselines.network_inputs import ConnectivityInputs, SeriesInputs
from eval.baselines.networks import network_baselines
from eval.baselines.outcome import Outcome
from eval.baselines.protocol import Baseline, NotAvailable, Problem
from eval.baselines.restarts import Restart, held_out_means, plan_restarts
from eval.baselines.series_networks import FrameMLP, SeriesLSTM
from eval.cohort import Cohort
from eval.targets import Target

REGIONS = 6
KEYS = ("mlp", "lstm", "brainnetcnn", "xgboost")
TARGETS = {
    "binary": Target(column="group", kind="binary", levels=("a", "b"), mean=np.nan, std=np.nan),
    "multiclass": Target(column="group", kind="multiclass", levels=("a", "b", "c"), mean=np.nan, std=np.nan),
    "regression": Target(column="score", kind="regression", levels=(), mean=100.0, std=10.0),
}


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_training, "MOST_STEPS", 160)
    monkeypatch.setattr(network_training, "PATIENCE", 50)
    monkeypatch.setattr(restarts, "RESTARTS", 2)


@pytest.fixture
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what holds however long a fit is."""
    monkeypatch.setattr(network_training, "MOST_STEPS", 20)


def _baseline(key: str, kind: str = "binary") -> Baseline:
    if key == "xgboost":
        pytest.importorskip("xgboost")
    return next(found for found in (*network_baselines(kind), *boosting_baselines(kind)) if found.key == key)


def _problem(
    series: Sequence[Sequence[NDArray]],
    y: Sequence[float],
    *,
    kind: str = "binary",
    parts: tuple[int, int] = (40, 20),
    families: Sequence[str] | None = None,
    seed: int = 0,
) -> Problem:
    """Subjects 000, 001, ...: the first are training subjects, the next validation subjects."""
    names = [f"{row:03d}" for row in range(len(series))]
    runs = [run for own in series for run in own]
    ends = np.cumsum([len(own) for own in series])
    cohort = Cohort(
        shard_set=SimpleNamespace(runs=[SimpleNamespace(tr_s=2.0) for _ in runs]),  # type: ignore[arg-type]
        runs={who: tuple(range(end - len(own), end)) for who, own, end in zip(names, series, ends, strict=True)},
        columns={},
        values={} if families is None else {"family": dict(zip(names, families, strict=True))},
    )
    truth = dict(zip(names, map(float, y), strict=True))
    return Problem(
        cohort=cohort,
        target=TARGETS[kind],
        y_train={who: truth[who] for who in names[: parts[0]]},
        y_val={who: truth[who] for who in names[parts[0] : sum(parts)]},
        regions=SimpleNamespace(num_parcels=REGIONS, description="6 regions", of_run=lambda run: runs[run]),
        threads=1,
        seed=seed,
    )


def _coupled(y: Sequence[float], seed: int, frames: int = 80) -> list[list[NDArray]]:
    """Region 0 and 1 correlate by `y`, the others not at all; every region has variance 1."""
    rng = np.random.default_rng(seed)
    found = []
    for strength in y:
        series = rng.standard_normal((frames, REGIONS))
        series[:, 1] = strength * series[:, 0] + np.sqrt(1 - strength**2) * series[:, 1]
        found.append([series.astype(np.float32)])
    return found


def _test_subjects(problem: Problem) -> tuple[str, ...]:
    return tuple(who for who in sorted(problem.cohort.runs) if who not in problem.y_fit)


def test_an_edge_comes_from_the_edges_of_its_row_and_its_column() -> None:
    torch.manual_seed(0)
    layer, edges = EdgeToEdge(4, 2, 3), torch.randn(1, 2, 4, 4)
    row, column = layer.row.weight.detach(), layer.column.weight.detach()
    expected = np.zeros((3, 4, 4))
    for f, i, j in np.ndindex(3, 4, 4):
        expected[f, i, j] = layer.row.bias[f].item() + layer.column.bias[f].item()
        for c, k in np.ndindex(2, 4):
            expected[f, i, j] += row[f, c, 0, k].item() * edges[0, c, i, k].item()
            expected[f, i, j] += column[f, c, k, 0].item() * edges[0, c, k, j].item()
    np.testing.assert_allclose(layer(edges)[0].detach().numpy(), expected, atol=1e-5)


def test_a_node_comes_from_its_row_and_its_column_and_the_graph_from_all_nodes() -> None:
    torch.manual_seed(0)
    layer, edges = EdgeToNode(4, 2, 3), torch.randn(1, 2, 4, 4)
    nodes = layer(edges)
    row, column = layer.row.weight[:, :, 0].detach().numpy(), layer.column.weight[..., 0].detach().numpy()
    expected = np.einsum("fck,cik->fi", row, edges[0].numpy()) + np.einsum("fck,cki->fi", column, edges[0].numpy())
    bias = (layer.row.bias + layer.column.bias).detach().numpy()
    np.testing.assert_allclose(nodes[0].detach().numpy(), expected + bias[:, None], atol=1e-5)
    graph = NodeToGraph(4, 3, 5)
    flat = torch.nn.functional.linear(nodes.flatten(1), graph.nodes.weight.flatten(1), graph.nodes.bias)
    torch.testing.assert_close(graph(nodes), flat)


def test_brainnetcnn_standardises_edges_with_what_it_was_given() -> None:
    torch.manual_seed(0)
    matrix = np.random.default_rng(0).standard_normal((3, REGIONS, REGIONS)).astype(np.float32)
    mean, scale = (np.full((REGIONS, REGIONS), value, dtype=np.float32) for value in (0.3, 2.0))
    given = BrainNetCNN(REGIONS, 1, mean, scale).eval()
    plain = BrainNetCNN(REGIONS, 1, 0 * mean, scale / scale).eval()
    plain.layers.load_state_dict(given.layers.state_dict())
    ones = torch.ones(3)
    torch.testing.assert_close(given(torch.from_numpy(matrix), ones), plain(torch.from_numpy((matrix - 0.3) / 2), ones))


@pytest.mark.parametrize("network", [FrameMLP, SeriesLSTM])
def test_frames_that_are_not_real_change_nothing(network: Callable[..., torch.nn.Module]) -> None:
    torch.manual_seed(0)
    model, window = network(REGIONS, 2).eval(), torch.randn(1, 20, REGIONS)
    padded = torch.cat([window, torch.full((1, 9, REGIONS), 7.0)], dim=1)
    count = torch.tensor([20])
    torch.testing.assert_close(model(padded, count), model(window, count))


def test_the_lstm_sees_the_order_of_frames_and_the_perceptron_does_not() -> None:
    torch.manual_seed(0)
    window, count = torch.randn(1, 20, REGIONS), torch.tensor([20])
    frames, memory = FrameMLP(REGIONS, 1).eval(), SeriesLSTM(REGIONS, 1).eval()
    torch.testing.assert_close(frames(window.flip(1), count), frames(window, count))
    assert (memory(window.flip(1), count) - memory(window, count)).abs() > 1e-4


@pytest.mark.parametrize("levels", [2, 3])
def test_the_loss_of_classes_is_the_balanced_log_loss(levels: int) -> None:
    rng = np.random.default_rng(0)
    y = np.array([0.0] * 20 + [1.0] * 6 + [2.0] * (3 if levels == 3 else 0))
    outcome = Outcome.of(y, "binary" if levels == 2 else "multiclass", levels)
    logits = rng.standard_normal((y.size, outcome.num_outputs))
    both = np.hstack([np.zeros_like(logits), logits]) if levels == 2 else logits
    chances = np.exp(both) / np.exp(both).sum(axis=1, keepdims=True)
    expected = log_loss(y, chances, sample_weight=compute_sample_weight("balanced", y))
    found = outcome.loss(torch.tensor(logits, dtype=torch.float32), outcome.encode(y))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_level_that_nobody_was_fitted_on_is_the_last_choice() -> None:
    outcome = Outcome.of([0.0, 2.0, 2.0], "multiclass", 3)
    logits = np.array([[1.0, -4.0], [-2.0, 5.0]])
    decoded = outcome.decode(logits)
    np.testing.assert_array_equal(decoded[:, [0, 2]], logits)
    assert (decoded[:, 1] < logits.min(axis=1) - 20).all()
    unknown = outcome.loss(torch.tensor(logits).float(), torch.tensor([0, -1]))
    torch.testing.assert_close(unknown, outcome.loss(torch.tensor(logits[:1]).float(), torch.tensor([0])))


def test_values_come_back_in_their_own_unit() -> None:
    y = [90.0, 100.0, 125.0]
    outcome = Outcome.of(y, "regression", 0)
    code = outcome.encode(y)
    assert float(code.mean()) == pytest.approx(0, abs=1e-6) and float(code.std(correction=0)) == pytest.approx(1)
    np.testing.assert_allclose(outcome.decode(code.double().numpy()[:, None])[:, 0], y, rtol=1e-6)


def test_windows_tile_standardised_runs() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(3, 5, (frames, REGIONS)).astype(np.float32) for frames in (150, 64, 10)]
    runs[1][:, 2] = 4.0
    problem = _problem([runs[:2], runs[2:]], [0, 1], parts=(2, 0))
    batches = list(SeriesInputs(problem, problem.to_fit).whole(problem.to_fit))
    found = [
        values[:frames] for batch in batches for values, frames in zip(batch.values, batch.num_frames, strict=True)
    ]
    expected = np.concatenate([StandardScaler().fit_transform(run) for run in runs])
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    assert batches[0].subject.tolist() == [0, 0, 0, 0, 1] and batches[0].num_frames.max() <= network_inputs.WINDOW


def test_drawn_windows_are_pieces_of_the_subjects_own_runs() -> None:
    rng = np.random.default_rng(0)
    problem = _problem(
        [[rng.standard_normal((90, REGIONS))], [rng.standard_normal((30, REGIONS))]], [0, 1], parts=(2, 0)
    )
    inputs = SeriesInputs(problem, problem.to_fit)
    starts = set()
    for _ in range(20):
        batch = inputs.draw(problem.to_fit, rng)
        assert batch.num_frames.tolist() == [64, 30]
        for row, who in enumerate(problem.to_fit):
            own = StandardScaler().fit_transform(problem.series(who)[0][1])
            start = int(np.argmin(np.abs(own - batch.values[row, 0]).sum(axis=1)))
            frames = batch.num_frames[row]
            np.testing.assert_allclose(batch.values[row, :frames], own[start : start + frames], atol=2e-3)
            starts.add((who, start))
    assert len(starts) > 5


def test_series_that_do_not_fit_into_memory_are_thinned_to_windows_over_the_whole_run() -> None:
    frames = 20 * network_inputs.WINDOW
    run = np.tile(np.arange(frames, dtype=np.float32)[:, None], REGIONS)
    problem = _problem([[run], [run]], [0, 1], parts=(2, 0))
    budget = 2 * 2 * REGIONS * 5 * network_inputs.WINDOW
    inputs, rng = SeriesInputs(problem, problem.to_fit, budget), np.random.default_rng(0)
    kept = sum(piece.nbytes for pieces in inputs._kept.values() for piece in pieces)
    assert kept == budget
    first = {float(inputs.draw(("000",), rng).values[0, 0, 0]) for _ in range(100)}
    assert len(first) == 5 and min(first) < -1.5 and max(first) > 0.8


def test_matrices_are_fisher_z_of_correlations_averaged_over_runs_by_frames() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.standard_normal((frames, REGIONS)) for frames in (60, 20)]
    problem = _problem([runs, [rng.standard_normal((40, REGIONS))]], [0, 1], parts=(2, 0))
    inputs = ConnectivityInputs(problem, problem.to_fit)
    own = [np.arctanh(np.corrcoef(run.T) - np.eye(REGIONS)) for run in runs]
    expected = np.average(own, axis=0, weights=[60, 20])
    drawn = inputs.draw(("001", "000"), rng).values
    np.testing.assert_allclose(drawn[1], expected, atol=1e-5)
    np.testing.assert_allclose(next(inputs.whole(("000",))).values[0], expected, atol=1e-5)
    mean, spread = inputs.spread(problem.to_fit)
    upper = np.triu_indices(REGIONS, 1)
    np.testing.assert_allclose(mean[upper], drawn.mean(axis=0)[upper], atol=1e-6)
    np.testing.assert_allclose(spread.T[upper], drawn.std(axis=0)[upper], atol=1e-6)
    assert (np.diag(spread) == 1).all()


def test_restarts_learn_from_training_subjects_and_stop_on_validation_subjects() -> None:
    problem = _problem(_coupled([0.0] * 30, 0, frames=5), [0, 1] * 15, parts=(20, 10))
    plan = plan_restarts(problem)
    assert len(plan) == 2 and {(restart.learns, restart.stops) for restart in plan} == {
        (tuple(problem.y_train), tuple(problem.y_val))
    }


@pytest.mark.parametrize("val", [[], [1.0] * 6])
def test_without_validation_subjects_of_every_class_folds_of_families_take_their_place(val: list[float]) -> None:
    y = [0.0, 1.0] * 15 + val
    families = [f"f{row // 3}" for row in range(len(y))]
    problem = _problem(_coupled([0.0] * len(y), 0, frames=5), y, parts=(30, len(val)), families=families)
    plan = plan_restarts(problem)
    family = dict(zip(problem.to_fit, families, strict=True))
    assert sorted(who for restart in plan for who in restart.stops) == list(problem.to_fit)
    for restart in plan:
        assert sorted((*restart.learns, *restart.stops)) == list(problem.to_fit)
        assert not {family[who] for who in restart.learns} & {family[who] for who in restart.stops}


def test_held_out_outputs_are_means_over_the_fits_that_stopped_on_a_subject() -> None:
    fits = [
        Restart(learns=("c",), stops=("a", "b")),
        Restart(learns=("c",), stops=("b",)),
        Restart(learns=(), stops=()),
    ]
    found = held_out_means(fits, [np.array([[1.0], [2.0]]), np.array([[4.0]]), None])
    assert {who: float(value[0]) for who, value in found.items()} == {"a": 1.0, "b": 3.0}


@pytest.mark.parametrize("key", KEYS)
def test_a_planted_coupling_is_found(key: str) -> None:
    y = np.random.default_rng(1).permutation([0.0, 1.0] * 60)
    problem = _problem(_coupled(0.8 * y, seed=2), y, parts=(60, 20))
    fitted, who = _baseline(key).fit(problem), _test_subjects(problem)
    assert roc_auc_score(y[80:], fitted.predict(who)[:, 0]) > 0.9
    assert tuple(fitted.held_out) == tuple(problem.y_val)
    held_out = np.stack(list(fitted.held_out.values()))
    np.testing.assert_allclose(held_out, fitted.predict(tuple(problem.y_val)), atol=1e-5)
    assert roc_auc_score(y[60:80], held_out[:, 0]) > 0.9


@pytest.mark.parametrize("key", ["brainnetcnn", "xgboost"])
def test_three_classes_are_told_apart_though_nobody_is_there_to_stop_on(key: str) -> None:
    y = np.random.default_rng(1).permutation([0.0, 1.0, 2.0] * 30)
    problem = _problem(_coupled(0.85 * (y - 1), seed=2), y, kind="multiclass", parts=(60, 0))
    fitted = _baseline(key, "multiclass").fit(problem)
    output = fitted.predict(_test_subjects(problem))
    assert output.shape == (30, 3) and np.mean(output.argmax(axis=1) == y[60:]) > 0.7
    assert tuple(fitted.held_out) == problem.to_fit and "fold" in fitted.note


@pytest.mark.parametrize("key", ["brainnetcnn", "xgboost"])
def test_a_planted_number_is_found_in_its_own_unit(key: str) -> None:
    strength = np.random.default_rng(1).uniform(-0.9, 0.9, 110)
    y = 100 + 10 * strength
    problem = _problem(_coupled(strength, seed=2), y, kind="regression", parts=(60, 20))
    output = _baseline(key, "regression").fit(problem).predict(_test_subjects(problem))[:, 0]
    assert np.mean(np.abs(output - y[80:])) < 0.6 * np.mean(np.abs(y[80:] - y[:60].mean()))


def test_the_lstm_finds_who_leads_where_single_frames_tell_nothing() -> None:
    rng = np.random.default_rng(3)
    y = rng.permutation([0.0, 1.0] * 60)
    series = []
    for value in y:
        run = rng.standard_normal((81, REGIONS))
        run[1:, 1] = 0.9 * run[:-1, 0] + 0.4 * run[1:, 1]
        series.append([run[1:, [1, 0, *range(2, REGIONS)]] if value else run[1:]])
    problem = _problem(series, y, parts=(60, 20))
    who = _test_subjects(problem)
    found = {key: roc_auc_score(y[80:], _baseline(key).fit(problem).predict(who)[:, 0]) for key in ("lstm", "mlp")}
    assert found["lstm"] > 0.9 and found["mlp"] < 0.75


@pytest.mark.parametrize("key", KEYS)
def test_nothing_is_found_where_nothing_is(key: str) -> None:
    rng = np.random.default_rng(4)
    found = []
    for seed in range(3):
        y = rng.permutation([0.0, 1.0] * 50)
        problem = _problem(_coupled(np.zeros(100), seed=seed, frames=40), y, parts=(30, 10), seed=seed)
        output = _baseline(key).fit(problem).predict(_test_subjects(problem))[:, 0]
        found.append(roc_auc_score(y[40:], output))
    assert 0.35 < np.mean(found) < 0.65


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("key", KEYS)
def test_the_same_problem_gives_the_same_outputs_and_leaves_other_random_numbers_alone(key: str) -> None:
    y = [0.0, 1.0] * 20
    problem = _problem(_coupled(0.5 * np.array(y), seed=0, frames=30), y, parts=(20, 10))
    who = _test_subjects(problem)
    torch.manual_seed(11)
    expected_draw = torch.rand(3)
    torch.manual_seed(11)
    first = _baseline(key).fit(problem).predict(who)
    torch.testing.assert_close(torch.rand(3), expected_draw)
    np.testing.assert_array_equal(_baseline(key).fit(problem).predict(who), first)
    np.testing.assert_allclose(_baseline(key).fit(problem).predict(who[3:5]), first[3:5], atol=1e-5)


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("key", KEYS)
def test_subjects_to_score_do_not_reach_the_fit(key: str) -> None:
    y = [0.0, 1.0] * 20
    series = _coupled(0.5 * np.array(y), seed=0, frames=30)
    whole = _problem(series, y, parts=(20, 10))
    alone = _problem(series[:30], y[:30], parts=(20, 10))
    fitted = [_baseline(key).fit(problem).held_out for problem in (whole, alone)]
    for who in whole.y_val:
        np.testing.assert_array_equal(fitted[0][who], fitted[1][who])


def test_with_too_few_subjects_to_stop_on_fits_end_at_a_fixed_length() -> None:
    y = [0.0, 1.0, 1.0, 1.0]
    problem = _problem(_coupled(y, seed=0, frames=30), y, parts=(3, 0))
    fitted = _baseline("mlp").fit(problem)
    assert "100 to 100 steps" in fitted.note and fitted.held_out == {}
    assert np.isfinite(fitted.predict(("003",))).all()


def test_a_baseline_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    y: list[Any] = [0.0, 1.0] * 5
    problem = _problem(_coupled(y, seed=0, frames=10), y, parts=(6, 4))
    with pytest.raises(NotAvailable, match=r"boldstream\[xgboost\]"):
        boosting_baselines("binary")[0].fit(problem)
