"""Confounds of simulated runs: complete for nilearn's presets, and true to the images they come with."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy

from ingest.cleaning.clean import CleaningConfig, clean_run
from ingest.record import RunRecord
from ingest.simulate.config import SimulateConfig
from ingest.simulate.confounds import tissue_components
from ingest.simulate.run import simulate
from shards.errors import UsageError

FLAGS = {"subjects": 2, "frames": 160, "voxel_mm": 10, "parcels": 20, "motion": 0.06, "workers": 1}
NON_STEADY = 3


def simulated(folder: Path, **flags: int | float) -> Path:
    simulate(SimulateConfig(out=folder, **{**FLAGS, **flags}))
    return folder


def run_of(folder: Path, subject: str = "0001") -> tuple[RunRecord, pd.DataFrame, np.ndarray]:
    """The record, the confounds, and the (time, voxel) signal in the mask."""
    stem = folder / f"sub-{subject}/func/sub-{subject}_task-rest"
    images = f"{stem}_space-MNI152NLin2009cAsym_desc"
    bold, table = Path(f"{images}-preproc_bold.nii.gz"), Path(f"{stem}_desc-confounds_timeseries.tsv")
    mask = np.asarray(nibabel.load(f"{images}-brain_mask.nii.gz").dataobj) > 0
    signal = np.ascontiguousarray(np.asarray(nibabel.load(bold).dataobj, dtype=np.float32)[mask].T)
    return RunRecord(subject=subject, bold=bold, confounds=table), pd.read_csv(table, sep="\t"), signal


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("simulated") / "cohort")


@pytest.fixture(scope="module")
def unsteady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("simulated") / "unsteady", non_steady=NON_STEADY)


@pytest.mark.parametrize(("preset", "num_columns"), [("simple", 26 + 5), ("scrubbing", 32 + 5), ("compcor", 24 + 5)])
def test_every_preset_of_nilearn_finds_its_columns(cohort, preset, num_columns):
    record, frame, _ = run_of(cohort)
    columns, _ = load_confounds_strategy(str(record.bold), denoise_strategy=preset)
    num_components = sum(name.startswith("a_comp_cor") for name in frame)
    assert columns.shape == (160, num_columns + (num_components if preset == "compcor" else 0))


def test_the_side_car_has_the_metadata_of_each_component(cohort):
    record, frame, _ = run_of(cohort)
    about = json.loads(record.confounds.with_suffix(".json").read_text())
    components = [name for name in frame if name.startswith("a_comp_cor")]
    assert [name for name in about if "comp_cor" in name] == components
    assert {(about[name]["Mask"], about[name]["Method"], about[name]["Retained"]) for name in components} == {
        ("combined", "aCompCor", True)
    }
    cumulative = [about[name]["CumulativeVarianceExplained"] for name in components]
    assert cumulative == sorted(cumulative) and cumulative[-2] < 0.5 <= cumulative[-1]
    explained = [about[name]["VarianceExplained"] for name in components]
    assert explained == sorted(explained, reverse=True)


def test_components_are_the_principal_components_of_the_tissue():
    """One strong common series, two weak ones, noise, and a drift that must not come back."""
    rng = np.random.default_rng(0)
    drift = np.cos(np.pi * (np.arange(100) + 0.5) / 100)
    common = rng.standard_normal((100, 1))
    tissue = 10 * common @ np.ones((1, 50)) + 40 * drift[:, None] + rng.standard_normal((100, 50))
    found = tissue_components(tissue, {"cosine00": drift}, num_non_steady=0)
    assert len(found) == 1 and found[0].variance_explained > 0.9
    assert abs(np.corrcoef(found[0].series_T, common[:, 0])[0, 1]) > 0.98
    assert abs(found[0].series_T @ drift) < 1e-10


def test_motion_outliers_mark_the_frames_that_moved_or_jumped(cohort):
    _, frame, _ = run_of(cohort)
    columns = frame.filter(like="motion_outlier")
    over = np.flatnonzero((frame.framewise_displacement > 0.5) | (frame.std_dvars > 1.5))
    assert len(over) > 3
    np.testing.assert_array_equal(columns.to_numpy().argmax(axis=0), over)
    assert (columns.sum() == 1).all()


def test_no_frame_is_marked_as_non_steady_unless_asked_for(cohort):
    assert run_of(cohort)[1].filter(like="non_steady").empty


def test_non_steady_frames_are_bright_and_marked_and_nothing_else_changes(cohort, unsteady):
    _, frame, signal = run_of(unsteady)
    _, _, plain = run_of(cohort)
    np.testing.assert_array_equal(signal[NON_STEADY:], plain[NON_STEADY:])
    gain = signal[:NON_STEADY].mean(axis=1) / plain[:NON_STEADY].mean(axis=1)
    np.testing.assert_allclose(gain, [1.2, 1.1, 1.05], atol=0.01)
    np.testing.assert_array_equal(frame.filter(like="non_steady_state_outlier"), np.eye(160)[:, :NON_STEADY])
    quiet = frame.filter(regex="cosine|a_comp_cor").to_numpy()
    assert (quiet[:NON_STEADY] == 0).all() and (quiet[NON_STEADY:] != 0).any(axis=0).all()


def test_non_steady_frames_are_dropped_by_ingest(unsteady):
    record, _, signal = run_of(unsteady)
    result = clean_run(signal, 2.0, record, CleaningConfig(clean="simple", drop_non_steady=True))
    assert (result.notes["num_dropped"], len(result.signal_TV)) == (NON_STEADY, 160 - NON_STEADY)


def test_more_non_steady_frames_than_allowed_are_refused():
    with pytest.raises(UsageError, match="--non-steady is 6, allowed is 0 to 5"):
        SimulateConfig(out=Path("x"), subjects=2, non_steady=6)


@pytest.mark.parametrize("preset", ["simple", "compcor"])
def test_cleaning_takes_motion_out_of_the_global_signal(cohort, preset):
    before, after = [], []
    for subject in ("0001", "0002"):
        record, frame, signal = run_of(cohort, subject)
        fd_mm = frame.framewise_displacement[1:]
        before.append(abs(np.corrcoef(signal.mean(axis=1)[1:], fd_mm)[0, 1]))
        result = clean_run(signal, 2.0, record, CleaningConfig(clean=preset))
        after.append(abs(np.corrcoef(result.signal_TV.mean(axis=1)[1:], fd_mm)[0, 1]))
    assert np.mean(before) > 0.15
    assert np.mean(after) < 0.03
