"""The parts of reconstruction: agreement of frames, spectra, methods, linear model."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finished_run import random_model
from sklearn.decomposition import TruncatedSVD

from eval.parcels.parcels import Parcels, parcel_series
from eval.reconstruction.agreement import Agreement, band_power, bin_centres_hz, connectivity_agreement
from eval.reconstruction.frames import components_of, sample_frames
from eval.reconstruction.methods import methods_of, predictions_of
from eval.reconstruction.runs import _Parcels, by_subject, carpet_voxels
from shards.reader import ShardSet

CPU = torch.device("cpu")
RunLength = namedtuple("RunLength", ["subject", "num_frames"])


def _pair(frames: int = 30, voxels: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((frames, voxels))
    return truth, 0.5 * truth + rng.standard_normal((frames, voxels)) + 3


def _agreement(truth: np.ndarray, own: np.ndarray, cuts: tuple[int, ...] = ()) -> Agreement:
    found = Agreement(truth.shape[1], CPU)
    for part in np.split(np.arange(len(truth)), cuts):
        found.add(torch.from_numpy(truth[part]).float(), torch.from_numpy(own[part]).float())
    return found


@pytest.mark.parametrize("cuts", [(), (7, 20, 21)], ids=["at_once", "in_pieces"])
def test_agreement_is_that_of_numpy(cuts: tuple[int, ...]) -> None:
    truth, own = _pair()
    found = _agreement(truth, own, cuts)
    assert found.mse == pytest.approx(np.mean((truth - own) ** 2), rel=1e-5)
    assert found.spatial == pytest.approx(np.mean([np.corrcoef(t, o)[0, 1] for t, o in zip(truth, own, strict=True)]))
    wanted = [np.corrcoef(t, o)[0, 1] for t, o in zip(truth.T, own.T, strict=True)]
    np.testing.assert_allclose(found.temporal(), wanted, atol=1e-5)


def test_a_constant_voxel_has_no_correlation() -> None:
    truth, own = _pair()
    own[:, 4] = 2.0
    found = _agreement(truth, own).temporal()
    assert np.flatnonzero(np.isnan(found)).tolist() == [4]


def test_the_mean_image_has_an_error_of_one_and_no_correlation() -> None:
    truth = _pair()[0]
    truth = (truth - truth.mean(0)) / truth.std(0)
    found = _agreement(truth, np.zeros_like(truth))
    assert found.mse == pytest.approx(1)
    assert np.isnan(found.spatial)
    assert np.isnan(found.temporal()).all()


def test_nothing_is_claimed_without_frames() -> None:
    found = Agreement(3, CPU)
    assert np.isnan([found.mse, found.spatial, *found.temporal()]).all()


def test_connectivity_agreement_is_the_correlation_of_fisher_z_edges() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((80, 6)) @ rng.standard_normal((6, 6))
    own = truth + rng.standard_normal((80, 6))
    edges = [np.arctanh(np.corrcoef(x.T)[np.triu_indices(6, 1)]) for x in (truth, own)]
    assert connectivity_agreement(truth, own) == pytest.approx(np.corrcoef(*edges)[0, 1])


@pytest.mark.parametrize("own", [lambda x: np.zeros_like(x), lambda x: x[:, :2]], ids=["constant", "one_edge"])
def test_connectivity_that_is_undefined_is_not_a_number(own: Callable[..., np.ndarray]) -> None:
    truth = np.random.default_rng(0).standard_normal((50, 5))
    mine = own(truth)
    assert np.isnan(connectivity_agreement(truth[:, : mine.shape[1]], mine))


def test_white_noise_has_a_flat_spectrum_of_known_height() -> None:
    series = 3 * np.random.default_rng(0).standard_normal((2000, 30))
    found = band_power(series, tr_s=2.0)[1:24]  # the outer bins are cut by detrending and Nyquist
    np.testing.assert_allclose(found, 2 * 9 * 2.0, rtol=0.1)


def test_an_oscillation_lies_in_its_bin() -> None:
    seconds = np.arange(400) * 0.8
    found = band_power(np.sin(2 * np.pi * 0.075 * seconds)[:, None], tr_s=0.8)
    assert bin_centres_hz()[np.nanargmax(found)] == pytest.approx(0.075)


def test_frequencies_above_nyquist_are_unknown() -> None:
    found = band_power(np.random.default_rng(0).standard_normal((300, 2)), tr_s=4.0)
    known = bin_centres_hz()[np.isfinite(found)]
    assert known.max() == pytest.approx(0.125)
    assert np.isnan(band_power(np.zeros((5, 2)), tr_s=2.0)).all()


@pytest.fixture
def shard_set(make_shard_set: Any, tmp_path: Path) -> ShardSet:
    make_shard_set(tmp_path / "set", frames=(40, 60, 50))
    return ShardSet(tmp_path / "set")


def _inputs(shard_set: ShardSet, windows: int = 2, frames: int = 12) -> dict[str, Any]:
    q = [shard_set.read_window(k, 3, frames) for k in range(windows)]
    gain = [shard_set.residual_affine(k)[0] for k in range(windows)]
    return {
        "q": torch.from_numpy(np.stack(q)),
        "gain": torch.from_numpy(np.stack(gain)),
        "shift": None,
        "num_valid": torch.tensor([frames, frames - 4][:windows]),
        "tr_s": torch.full((windows,), 2.0),
    }


def _predictions(shard_set: ShardSet, phase: int, inputs: dict[str, Any], hidden: Any = None) -> dict[str, Any]:
    model = random_model(shard_set, phase=phase)
    pca = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((shard_set.num_voxels, 4)))[0].T)
    with torch.no_grad():
        found = predictions_of(model, inputs, hidden, pca.float())
        return {key: (truth, own, counted) for key, truth, own, counted in found} | {"pca": pca.float()}


@pytest.mark.parametrize("phase", [1, 2])
def test_every_named_method_predicts_and_no_other(shard_set: ShardSet, phase: int) -> None:
    hidden = torch.zeros(2, 12, dtype=torch.bool) if phase == 2 else None
    found = _predictions(shard_set, phase, _inputs(shard_set), hidden)
    named = [method.key for method in methods_of(phase, causal=True, latent=6)]
    assert [key for key in found if key != "pca"] == named


def test_the_truth_is_the_residual_and_padding_does_not_count(shard_set: ShardSet) -> None:
    truth, _, counted = _predictions(shard_set, 1, _inputs(shard_set))["itself_ours"]
    np.testing.assert_allclose(truth[0], shard_set.residual(0, 3, 12), atol=1e-5)
    assert counted.sum(1).tolist() == [12, 8]


def test_pca_is_the_projection_on_its_components(shard_set: ShardSet) -> None:
    found = _predictions(shard_set, 1, _inputs(shard_set))
    truth, own, _ = found["itself_pca"]
    wanted = truth[0].numpy() @ found["pca"].numpy().T @ found["pca"].numpy()
    np.testing.assert_allclose(own[0], wanted, atol=1e-4)


def test_hidden_frames_are_predicted_without_being_looked_at(shard_set: ShardSet) -> None:
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[:, 4:7] = True
    inputs = _inputs(shard_set)
    other = {**inputs, "q": inputs["q"].clone()}
    other["q"][:, 4:7] = 99
    first, second = (_predictions(shard_set, 2, given, hidden) for given in (inputs, other))
    for method in methods_of(2, causal=True, latent=6):
        if method.task == "hidden":
            assert torch.equal(first[method.key][2], hidden)
            torch.testing.assert_close(first[method.key][1][hidden], second[method.key][1][hidden])
    assert not torch.allclose(first["itself_ours"][1][hidden], second["itself_ours"][1][hidden])


def test_the_next_frame_is_predicted_from_earlier_ones_alone(shard_set: ShardSet) -> None:
    nothing = torch.zeros(2, 12, dtype=torch.bool)
    inputs = _inputs(shard_set)
    other = {**inputs, "q": inputs["q"].clone()}
    other["q"][:, 6:] = -50
    first, second = (_predictions(shard_set, 2, given, nothing) for given in (inputs, other))
    torch.testing.assert_close(first["ahead_ours"][1][:, :7], second["ahead_ours"][1][:, :7])
    truth, previous, counted = first["ahead_previous"]
    torch.testing.assert_close(previous[:, 1:], truth[:, :-1])
    assert not counted[:, 0].any()


def test_sampled_frames_are_residuals_of_the_runs_asked_for(shard_set: ShardSet) -> None:
    found = sample_frames(shard_set, [0, 2])
    assert found.shape == (90, shard_set.num_voxels)
    np.testing.assert_array_equal(found[:40], shard_set.residual(0, 0, 40))


def test_sampled_frames_are_bounded_and_spread(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.reconstruction.frames.MOST_VALUES", 64 * shard_set.num_voxels)
    found = sample_frames(shard_set, [0, 1, 2])
    assert len(found) <= 64
    np.testing.assert_array_equal(found[-1], shard_set.residual(2, 49, 1)[0])


def test_components_are_those_of_scikit_learn(shard_set: ShardSet) -> None:
    frames = sample_frames(shard_set, [0, 1, 2])
    wanted = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(frames).components_
    found = components_of(frames, 5)
    np.testing.assert_allclose(np.abs(found @ wanted.T), np.eye(5), atol=1e-3)


def test_parcel_means_are_those_of_the_parcels(shard_set: ShardSet) -> None:
    labels = np.random.default_rng(0).integers(-1, 5, shard_set.num_voxels)
    parcels = Parcels(labels=labels, num_parcels=5, description="random")
    values = torch.from_numpy(shard_set.residual(1, 0, 60))
    np.testing.assert_allclose(_Parcels(labels, CPU)(values), parcel_series(shard_set, 1, parcels), atol=1e-5)


def test_carpet_voxels_follow_the_parcels() -> None:
    labels = np.random.default_rng(0).integers(0, 9, 3000)
    chosen = carpet_voxels(labels)
    assert len(set(chosen.tolist())) == 400
    assert (np.diff(labels[chosen]) >= 0).all()


def test_runs_of_a_subject_are_averaged_by_frames_without_the_undefined() -> None:
    entries = [RunLength("a", 20), RunLength("a", 60), RunLength("b", 10)]
    values = {0: np.array([1.0, np.nan, np.nan]), 1: np.array([5.0, 2.0, np.nan]), 2: np.zeros(3)}
    found = by_subject(values, SimpleNamespace(runs=entries))
    np.testing.assert_allclose(found["a"], [4.0, 2.0, np.nan])
    np.testing.assert_allclose(found["b"], 0)
