"""The parts of embeddings: directions, files, projections, and what explains them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from eval.embedding.basis import MOST_DIMENSIONS, Basis, fit_basis, fitted_subjects
from eval.embedding.embeddings import Embeddings, WindowTable
from eval.embedding.features import FeatureBatch, run_means
from eval.embedding.files import check_format, read_subjects, read_windows, subjects_bytes, windows_bytes
from eval.embedding.projection import explained, neighbour_map
from eval.embedding.rows import subject_vectors
from eval.embedding.section import OTHERS, level_colours
from shards.errors import CorruptShardError, UsageError


def _basis(subjects: int = 12, features: int = 40, outputs: int = 2, seed: int = 0) -> tuple[Basis, np.ndarray, tuple]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((subjects, features)) * np.linspace(3, 0.1, features) + 5
    head = rng.standard_normal((outputs, features)), rng.standard_normal(outputs)
    return fit_basis(x, *head, seed=0), x, head


def test_leading_directions_are_the_principal_components() -> None:
    basis, x, _ = _basis()
    other = np.linalg.svd(x - x.mean(0), full_matrices=False)
    ours = basis.project(x)[:, :11]
    np.testing.assert_allclose(np.abs(ours), np.abs(other[0] * other[1])[:, :11], atol=1e-8)
    np.testing.assert_allclose(basis.share, (other[1] ** 2 / (other[1] ** 2).sum())[:11], atol=1e-10)


def test_directions_are_orthonormal() -> None:
    components = _basis()[0].components
    np.testing.assert_allclose(components @ components.T, np.eye(13), atol=1e-10)


def test_the_head_reads_an_embedding_as_it_reads_the_features_of_anyone() -> None:
    basis, x, (weight, bias) = _basis()
    others = np.random.default_rng(9).standard_normal((7, x.shape[1])) * 10
    np.testing.assert_allclose(
        basis.project(others) @ basis.readout + basis.offset, others @ weight.T + bias, atol=1e-8
    )


def test_a_head_inside_the_components_adds_no_direction() -> None:
    _, x, _ = _basis()
    inside = PCA(11).fit(x).components_[:1] * 3
    assert fit_basis(x, inside, np.zeros(1), seed=0).components.shape == (11, 40)


def test_there_are_never_more_dimensions_than_promised() -> None:
    basis, *_ = _basis(subjects=200, features=300, outputs=5)
    assert basis.components.shape == (MOST_DIMENSIONS, 300)


def test_components_are_fitted_on_a_bounded_number_of_subjects() -> None:
    few, many = [f"{k:02d}" for k in range(30)], [f"{k:05d}" for k in range(7001)]
    assert fitted_subjects(few) == tuple(few)
    chosen = fitted_subjects(many)
    assert len(set(chosen)) == 2000
    assert (chosen[0], chosen[-1]) == (many[0], many[-1])


def test_run_means_weigh_windows_by_their_frames() -> None:
    features = np.array([[1.0, 0.0], [4.0, 3.0], [7.0, 7.0]], np.float32)
    whole = FeatureBatch(
        run=np.array([5, 5]), start=np.array([0, 20]), num_frames=np.array([20, 10]), features=features[:2]
    )
    other = FeatureBatch(run=np.array([2]), start=np.array([0]), num_frames=np.array([20]), features=features[2:])
    runs, means = run_means(iter([whole, other]))
    assert runs.tolist() == [2, 5]
    np.testing.assert_allclose(means, [[7, 7], [2, 1]])


def _table(rows: int = 5, dimensions: int = 3) -> WindowTable:
    rng = np.random.default_rng(1)
    return WindowTable(
        run_id=tuple(f"sub-0{k // 2}_task-rest" for k in range(rows)),
        subject=tuple(f"0{k // 2}" for k in range(rows)),
        session=("",) * rows,
        run=("1",) * rows,
        part=("train", "train", "val", "val", "test")[:rows],
        clip_start=np.arange(rows) % 2 * 20,
        num_frames=np.array([20, 7, 20, 7, 20]),
        tr_s=np.full(rows, 0.72),
        vectors=rng.standard_normal((rows, dimensions)).astype(np.float32),
    )


@pytest.mark.parametrize("file_format", ["npz", "parquet"])
def test_windows_come_back_as_they_were_written(tmp_path: Path, file_format: str) -> None:
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    table = _table()
    (tmp_path / f"windows.{file_format}").write_bytes(windows_bytes(table, file_format))
    found = read_windows(tmp_path, file_format)
    for name in WindowTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))
    assert found.vectors.dtype == np.float32


@pytest.mark.parametrize("file_format", ["npz", "parquet"])
def test_subjects_come_back_with_their_leading_zeros(tmp_path: Path, file_format: str) -> None:
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = subjects_bytes(("007", "08"), ("train", "test"), vectors, file_format)
    (tmp_path / f"subjects.{file_format}").write_bytes(data)
    subjects, part, found = read_subjects(tmp_path, file_format)
    assert (subjects, part) == (("007", "08"), ("train", "test"))
    np.testing.assert_array_equal(found, vectors)


def test_pandas_reads_the_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas

    path = tmp_path / "windows.parquet"
    path.write_bytes(windows_bytes(_table(), "parquet"))
    frame = pandas.read_parquet(path)
    assert frame.loc[4, "part"] == "test"
    np.testing.assert_array_equal(np.stack(frame["embedding"]), _table().vectors)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PK\3\4 no")])
def test_a_damaged_file_is_named(tmp_path: Path, damage) -> None:
    path = tmp_path / "windows.npz"
    path.write_bytes(windows_bytes(_table(), "npz"))
    damage(path)
    with pytest.raises(CorruptShardError, match=r"windows\.npz"):
        read_windows(tmp_path, "npz")


def test_parquet_without_pyarrow_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'boldstream\\[parquet\\]'"):
        check_format("parquet")
    check_format("npz")


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        WindowTable(**{name: getattr(_table(), name) for name in WindowTable.__dataclass_fields__} | {"run": ("1",)})


def test_a_subject_is_the_mean_of_its_windows_by_frames() -> None:
    table = _table()
    found = subject_vectors(table, ("00", "01", "02"))
    wanted = [np.average(table.vectors[rows], axis=0, weights=table.num_frames[rows]) for rows in ([0, 1], [2, 3], [4])]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_subjects_of_a_part() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = Embeddings(
        subjects=("a", "b", "c"),
        part=("test", "train", "test"),
        vectors=vectors,
        projection=vectors.astype(float),
        neighbours=None,
        facts={},
        folder=Path(),
    ).of_part("test")
    assert found[0] == ("a", "c")
    np.testing.assert_array_equal(found[1], vectors[[0, 2]])


def test_neighbours_are_laid_out_without_the_training_subjects() -> None:
    rng = np.random.default_rng(0)
    part = ["train"] * 10 + ["val"] * 10 + ["test"] * 30
    found = neighbour_map(rng.standard_normal((50, 4)), part, seed=0)
    assert found is not None
    assert np.isnan(found[:10]).all()
    assert np.isfinite(found[10:]).all()
    assert neighbour_map(rng.standard_normal((50, 4)), ["train"] * 25 + ["test"] * 25, seed=0) is None


def _spread(effect: float, subjects: int = 40) -> tuple[list[str], np.ndarray, dict[str, str]]:
    rng = np.random.default_rng(3)
    names = [f"{k:02d}" for k in range(subjects)]
    levels = {who: ("york", "leeds", "hull")[k % 3] for k, who in enumerate(names)}
    shift = effect * np.array([[k % 3 == 0, k % 3 == 1, 0] for k in range(subjects)])
    return names, rng.standard_normal((subjects, 3)) + shift, levels


def test_share_explained_is_the_adjusted_r_squared_of_a_regression() -> None:
    names, vectors, levels = _spread(2.0)
    design = np.array([[levels[who] == "york", levels[who] == "leeds"] for who in names], float)
    fitted = LinearRegression().fit(design, vectors).predict(design)
    plain = r2_score(vectors, fitted, multioutput="variance_weighted")
    found = explained("site", levels, names, vectors, seed=0)
    assert found is not None
    assert found.share == pytest.approx(1 - (1 - plain) * 39 / 37)
    assert found.p_value == 0.001


def test_noise_is_explained_by_nothing() -> None:
    names, vectors, levels = _spread(0.0)
    found = explained("site", levels, names, vectors, seed=0)
    assert found is not None
    assert abs(found.share) < 0.1
    assert found.p_value > 0.05


def test_a_number_is_regressed_as_a_number_and_unknown_subjects_are_left_out() -> None:
    names, vectors, _ = _spread(0.0)
    ages = {who: float(vectors[row, 0]) for row, who in enumerate(names[:30])}
    found = explained("age", ages, names, vectors, seed=0)
    assert found is not None
    assert found.num_subjects == 30
    assert found.p_value == 0.001


@pytest.mark.parametrize("levels", [lambda k: "same", lambda k: str(k)], ids=["constant", "one_each"])
def test_properties_that_cannot_be_regressed_are_left_out(levels) -> None:
    names, vectors, _ = _spread(0.0)
    assert explained("x", {who: levels(k) for k, who in enumerate(names)}, names, vectors, seed=0) is None


def test_rare_levels_share_a_colour() -> None:
    many = [f"s{k}" for k in range(9) for _ in range(9 - k)]
    found = level_colours(many)
    assert list(found) == ["s0", "s1", "s2", "s3", "s4", OTHERS]
    assert len(set(found.values())) == 6
    assert list(level_colours(["b", "a", "b"])) == ["a", "b"]
