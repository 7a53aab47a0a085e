"""Which runs stand out, which are shown, and what their pictures show."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import median_abs_deviation

from ingest.report.groups import find_duplicates
from ingest.report.measures import measure_runs, pictured, standouts
from ingest.report.pictures import MOST_COLUMNS, carpet_voxels, draw_mask, draw_run
from shards.format import Grid, RunEntry
from shards.reader import ShardSet

BOX = np.ones((6, 8, 7), bool)
BOX_GRID = Grid(
    shape=(6, 8, 7),
    affine=((3.0, 0.0, 0.0, -8.0), (0.0, 3.0, 0.0, -10.0), (0.0, 0.0, 3.0, -9.0), (0.0, 0.0, 0.0, 1.0)),
)


def pixels(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


@pytest.fixture
def rows(make_shard_set, tmp_path) -> list[RunEntry]:
    make_shard_set(tmp_path / "set", frames=[20] * 40)
    rng = np.random.default_rng(1)
    runs = ShardSet(tmp_path / "set").runs
    return [replace(row, tsnr_median=float(rng.normal(50, 8)), mean_fd_mm=float(rng.gamma(2, 0.1))) for row in runs]


def test_the_distance_is_the_robust_z_of_scipy(rows):
    found = measure_runs(rows, {}, 100)["tsnr"]
    values = np.array([row.tsnr_median for row in rows])
    expected = (values - np.median(values)) / median_abs_deviation(values, scale="normal")
    np.testing.assert_allclose(found.z, expected, rtol=1e-4)


def test_intensity_is_compared_by_ratio(rows):
    qc = {row.run_id: {"intensity_median": 1000.0 * 1.3 ** (k % 9)} for k, row in enumerate(rows)}
    logs = np.log([own["intensity_median"] for own in qc.values()])
    expected = (logs - np.median(logs)) / median_abs_deviation(logs, scale="normal")
    np.testing.assert_allclose(measure_runs(rows, qc, 100)["intensity"].z, expected, rtol=1e-4)


def test_only_the_worse_side_stands_out(rows):
    rows[3], rows[5] = replace(rows[3], tsnr_median=500.0), replace(rows[5], tsnr_median=1.0)
    assert [one.index for one in standouts(measure_runs(rows, {}, 100)) if "tsnr" in one.measures] == [5]


def test_differences_below_what_counts_do_not_stand_out(rows):
    even = [replace(row, tsnr_median=50.0, mean_fd_mm=0.1, error_rms_rel=0.018) for row in rows]
    even[7] = replace(even[7], tsnr_median=49.0, mean_fd_mm=0.11, error_rms_rel=0.0181)
    assert standouts(measure_runs(even, {}, 100)) == []


def test_runs_stored_without_loss_do_not_make_the_others_stand_out(rows):
    exact = [replace(row, lossless=True, error_rms_rel=0.0) for row in rows[:30]]
    found = measure_runs([*exact, *rows[30:]], {}, 100)["error"]
    assert not found.known[:30].any() and found.known[30:].all() and not found.far.any()


def test_fewer_than_eight_runs_say_nothing(rows):
    few = [*rows[:6], replace(rows[6], tsnr_median=0.1)]
    assert standouts(measure_runs(few, {}, 100)) == []


def test_ordinary_runs_are_spread_over_tsnr_and_none_of_them_stands_out(rows):
    for k in range(8):
        rows[k] = replace(rows[k], mean_fd_mm=30.0 + k)
    measured = measure_runs(rows, {}, 100)
    worst, typical = pictured(measured, 6, 6)
    assert worst == [7, 6, 5, 4, 3, 2] and len(typical) == 6
    assert not {0, 1, *worst} & set(typical)
    chosen = [rows[k].tsnr_median for k in typical]
    rest = [row.tsnr_median for row in rows[8:]]
    assert chosen == sorted(chosen) and chosen[0] == min(rest) and chosen[-1] == max(rest)


def test_runs_of_one_subject_that_are_alike_come_after_those_of_two(rows):
    rows[1], rows[2] = (replace(row, source_xxh3="a", subject="x") for row in rows[1:3])
    rows[5], rows[6] = (replace(row, source_xxh3="b") for row in rows[5:7])
    found = find_duplicates(rows)
    assert [twins.across_subjects for twins in found] == [True, False]
    assert [row.run_id for row in found[1].rows] == [rows[1].run_id, rows[2].run_id]


def test_left_is_left_and_up_is_up(make_shard_set, tmp_path):
    folder, rng = tmp_path / "box", np.random.default_rng(0)
    mean = np.full(BOX.shape, 100.0)
    mean[4:, 5:, :] = mean[4:, :, 5:] = mean[:, 5:, 5:] = 1000.0  # the right, the front and the top meet in a corner
    signal = (mean[BOX] + rng.standard_normal((20, BOX.sum()))).astype("f4")
    make_shard_set(folder, signals={"sub-1": signal}, mask=BOX, grid=BOX_GRID)
    image = pixels(draw_run(ShardSet(folder), 0).slices)
    ends = [
        round(image.shape[1] * width / 20) for width in (0, 8, 14, 20)
    ]  # sagittal 8, coronal 6, axial 6 voxels wide
    for start, stop in itertools.pairwise(ends):
        panel = image[8:-8, start:stop]
        bright = np.argwhere(panel > 200)
        assert bright[:, 0].mean() < 0.4 * panel.shape[0] and bright[:, 1].mean() > 0.6 * panel.shape[1]


def test_a_carpet_is_the_residual_from_the_top_down(make_shard_set, tmp_path):
    folder, rng = tmp_path / "carpet", np.random.default_rng(0)
    signal = (1000 + 20 * rng.standard_normal((90, BOX.sum()))).astype("f4")
    top = np.broadcast_to(np.arange(7) >= 4, BOX.shape)[BOX]
    signal[40, top] += 120
    make_shard_set(folder, signals={"sub-1": signal}, mask=BOX, grid=BOX_GRID)
    shard_set = ShardSet(folder)
    picture = draw_run(shard_set, 0)
    grey = pixels(picture.carpet).astype(float)
    shown = carpet_voxels(BOX)
    z = (signal - signal.mean(0)) / signal.std(0)
    expected = 255 * (np.clip(z[:, shown].T, -2, 2) + 2) / 4
    assert grey.shape == (len(shown), 90) and picture.num_voxels == len(shown)
    assert np.abs(grey - expected).max() < 255 / 15 / 2 + 3  # 16 greys, and the quantisation of int8
    assert (grey[: len(shown) // 3, 40] > 200).mean() > 0.9 and (grey[-len(shown) // 3 :, 40] > 200).mean() < 0.2


def test_the_trace_is_the_mean_of_the_carpet(make_shard_set, tmp_path):
    folder, rng = tmp_path / "trace", np.random.default_rng(0)
    common = np.sin(np.arange(80) / 5)[:, None]
    signal = (1000 + 20 * common + 5 * rng.standard_normal((80, BOX.sum()))).astype("f4")
    make_shard_set(folder, signals={"sub-1": signal}, mask=BOX, grid=BOX_GRID)
    picture = draw_run(ShardSet(folder), 0)
    y = np.array([float(point.split(",")[1]) for point in picture.trace.split()])
    z = ((signal - signal.mean(0)) / signal.std(0)).mean(1)
    np.testing.assert_allclose((50 - y) / 46 * picture.trace_sd, z, atol=0.05)


def test_a_long_run_is_averaged_to_the_width_of_the_page(make_shard_set, tmp_path):
    make_shard_set(tmp_path / "long", frames=[2 * MOST_COLUMNS + 7])
    picture = draw_run(ShardSet(tmp_path / "long"), 0)
    assert picture.frames_per_column == 3 and pixels(picture.carpet).shape[1] == 403


def test_a_mask_of_one_slice_has_a_picture(make_shard_set, tmp_path):
    flat = np.zeros(BOX.shape, bool)
    flat[1:, :, 3] = True
    make_shard_set(tmp_path / "flat", mask=flat, grid=BOX_GRID)
    shard_set = ShardSet(tmp_path / "flat")
    assert pixels(draw_run(shard_set, 0).slices).max() > 200
    assert len(draw_mask(shard_set, [0, 1, 2]).images) == 1


def test_voxels_without_signal_are_counted_and_orange(make_shard_set, tmp_path):
    rng = np.random.default_rng(0)
    signals = {}
    for k in range(3):
        signal = (1000 + 20 * rng.standard_normal((20, BOX.sum()))).astype("f4")
        signal[:, :5] = 1000  # constant in every run
        signal[:, 5:7] = 20 + rng.standard_normal((20, 2))  # dark
        if k == 0:
            signal[:, 7] = 1000  # constant in one of three
        signals[f"sub-{k}"] = signal
    make_shard_set(tmp_path / "dark", signals=signals, mask=BOX, grid=BOX_GRID)
    picture = draw_mask(ShardSet(tmp_path / "dark"), [0, 1, 2])
    assert picture.num_silent == 7 and picture.num_runs == 3
    colours = np.concatenate([pixels(image).reshape(-1, 3) for image in picture.images])
    assert (colours == (230, 159, 0)).all(1).any() and (colours == (86, 180, 233)).all(1).any()


def test_a_picture_does_not_depend_on_what_was_drawn_before(make_shard_set, tmp_path):
    make_shard_set(tmp_path / "set")
    shard_set = ShardSet(tmp_path / "set")
    first = draw_run(shard_set, 1)
    draw_run(shard_set, 0)
    assert draw_run(shard_set, 1) == first
