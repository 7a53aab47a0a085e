"""Cleaning of a run: nilearn's numbers, the order of operations, what is refused, memory.

Oracle: `nilearn.signal.clean` on the whole array, with confounds and frames that nilearn itself found by file name.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from confounds_files import BOLD, TR_S, confounds_frame, random_signal, save_confounds
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.signal import clean
from scipy.interpolate import CubicSpline

from ingest.cleaning import clean as cleaning
from ingest.cleaning.clean import CleaningConfig, clean_run, methods_text
from ingest.cleaning.retiming import resample_time
from ingest.failures import RunError
from ingest.record import RunRecord
from shards.errors import UsageError

OUTLIERS = {20: 0.8, 21: 0.9, 22: 1.2, 40: 0.7, 44: 0.6}  # none as far from the other end as another
NO_FILES = RunRecord(subject="01", bold=Path("sub-01_bold.nii.gz"))


def cleaned(signal: np.ndarray, record: RunRecord, **flags) -> cleaning.Cleaned:
    return clean_run(signal.copy(), TR_S, record, CleaningConfig(**flags))


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float((np.abs(found - wanted).max(axis=0) / wanted.std(axis=0)).max())


def by_nilearn(signal: np.ndarray, record: RunRecord, preset: str, **filters) -> tuple[np.ndarray, np.ndarray]:
    """Kept frames with their means, and which they are."""
    columns, kept = load_confounds_strategy(str(record.bold), denoise_strategy=preset)
    kept = np.arange(len(signal)) if kept is None else kept
    signal = signal.astype(np.float64)
    result = clean(signal, confounds=columns, sample_mask=kept, standardize=None, t_r=TR_S, **filters)
    return result + (signal[kept].mean(axis=0) if filters["detrend"] else 0), kept


@pytest.mark.parametrize(
    ("preset", "filters"),
    [
        ("simple", {"detrend": False}),
        ("simple", {"detrend": True, "low_pass": 0.15}),
        ("compcor", {"detrend": True}),
        ("scrubbing", {"detrend": False}),
        ("scrubbing", {"detrend": True}),
        ("scrubbing", {"detrend": False, "low_pass": 0.24}),
        ("scrubbing", {"detrend": True, "low_pass": 0.24}),
    ],
)
def test_kept_frames_of_a_preset_are_those_of_nilearn(tmp_path, preset, filters):
    record = save_confounds(confounds_frame(outliers=OUTLIERS), tmp_path)
    signal = random_signal()
    wanted, kept = by_nilearn(signal, record, preset, **filters)
    flags = {"low_pass_hz": filters.get("low_pass"), "detrend": filters["detrend"]}
    result = cleaned(signal, record, clean=preset, **flags)
    assert result.notes["num_censored"] == len(signal) - len(kept)
    assert relative_error(result.signal_TV[kept], wanted) < 1e-5


@pytest.mark.parametrize("band", [(None, 0.1), (0.01, None), (0.01, 0.1), (None, None)])
def test_named_columns_and_filters_are_those_of_nilearn(tmp_path, band):
    frame = confounds_frame()
    signal = random_signal()
    result = cleaned(
        signal,
        save_confounds(frame, tmp_path),
        confounds=("trans_?", "csf"),
        detrend=True,
        high_pass_hz=band[0],
        low_pass_hz=band[1],
    )
    assert result.notes["regressors"] == ["trans_x", "trans_y", "trans_z", "csf"]
    wanted = clean(
        signal.astype(np.float64),
        confounds=frame[result.notes["regressors"]],
        detrend=True,
        standardize=None,
        high_pass=band[0],
        low_pass=band[1],
        t_r=TR_S,
    )
    assert relative_error(result.signal_TV - signal.mean(axis=0, dtype=np.float64), wanted) < 1e-5


def test_blocks_of_voxels_change_nothing(tmp_path, monkeypatch):
    record = save_confounds(confounds_frame(), tmp_path)
    signal = random_signal(num_voxels=300)
    whole = cleaned(signal, record, clean="simple", low_pass_hz=0.15)
    monkeypatch.setattr(cleaning, "_BLOCK_BYTES", 1)
    blocks = cleaned(signal, record, clean="simple", low_pass_hz=0.15)
    assert relative_error(blocks.signal_TV, whole.signal_TV) < 1e-6


def test_mirrored_and_outer_censored_frames_are_bridged_before_the_filter(tmp_path):
    """Where nilearn 0.14.1 mistakes frames, its documented steps, one by one."""
    frame = confounds_frame(outliers=dict.fromkeys((1, 2, 30, 89, 118, 119), 2.0))
    frame.loc[0, "framewise_displacement"] = 2.0
    signal = random_signal().astype(np.float64)
    kept = np.flatnonzero(frame.framewise_displacement <= 0.5)
    record = save_confounds(frame, tmp_path)
    flags = {"confounds": ("trans_*",), "low_pass_hz": 0.1, "detrend": True, "censor_fd_mm": 0.5}
    result = cleaned(signal.astype(np.float32), record, **flags)

    names = [name for name in frame if name.startswith("trans_")]
    columns = frame[names].bfill().to_numpy()
    between = np.arange(kept[0], kept[-1] + 1)
    both = np.hstack([signal, columns])
    filtered = clean(CubicSpline(kept, both[kept])(between), low_pass=0.1, t_r=TR_S, standardize=None)
    filtered = filtered[kept - kept[0]]
    wanted = clean(
        filtered[:, : signal.shape[1]], confounds=filtered[:, signal.shape[1] :], detrend=False, standardize=None
    )
    assert relative_error(result.signal_TV[kept] - signal[kept].mean(axis=0), wanted) < 1e-5


@pytest.mark.parametrize("outliers", [(20, 21, 50), (0, 1, 118, 119), (30, 89), (0, 30, 60, 89, 119)])
@pytest.mark.parametrize("low_pass_hz", [None, 0.1])
def test_kept_frames_do_not_depend_on_censored_ones(tmp_path, outliers, low_pass_hz):
    record = save_confounds(confounds_frame(outliers=dict.fromkeys(outliers, 2.0)), tmp_path)
    signal = random_signal()
    spoilt = signal.copy()
    spoilt[list(outliers)] += 1e4
    flags = {"confounds": ("trans_x",), "detrend": True, "low_pass_hz": low_pass_hz, "censor_fd_mm": 0.5}
    np.testing.assert_array_equal(
        cleaned(signal, record, **flags).signal_TV, cleaned(spoilt, record, **flags).signal_TV
    )


def test_regression_brings_nothing_back_that_the_filter_took_out(tmp_path):
    """Lindquist 2018: confounds go through the same filter."""
    record = save_confounds(confounds_frame(400), tmp_path)
    result = cleaned(random_signal(400), record, confounds=("trans_*", "rot_*"), high_pass_hz=0.01, low_pass_hz=0.1)
    inner = result.signal_TV[50:-50] - result.signal_TV[50:-50].mean(axis=0)
    power = (np.abs(np.fft.rfft(inner * np.hanning(300)[:, None], axis=0)) ** 2).mean(axis=1)
    hz = np.fft.rfftfreq(300, TR_S)
    assert power[hz > 0.13].max() < 1e-3 * power[(hz > 0.02) & (hz < 0.09)].mean()


def test_first_frames_are_dropped_before_everything_else(tmp_path):
    frame, signal = confounds_frame(), random_signal()
    signal[:4] += 5000
    result = cleaned(signal, save_confounds(frame, tmp_path), confounds=("trans_x",), detrend=True, drop_first=4)
    wanted = clean(signal[4:].astype(np.float64), confounds=frame[["trans_x"]][4:], detrend=True, standardize=None)
    assert relative_error(result.signal_TV - signal[4:].mean(axis=0, dtype=np.float64), wanted) < 1e-5


def test_mean_of_each_voxel_is_put_back(tmp_path):
    signal = random_signal()
    result = cleaned(signal, save_confounds(confounds_frame(), tmp_path), clean="simple", detrend=True)
    np.testing.assert_allclose(result.signal_TV.mean(axis=0), signal.mean(axis=0), rtol=1e-6)


def test_censored_frames_lie_between_their_neighbours_and_ends_are_the_nearest(tmp_path):
    record = save_confounds(confounds_frame(outliers=dict.fromkeys((0, 1, 50, 51, 52, 119), 2.0)), tmp_path)
    found = cleaned(random_signal(), record, confounds=("trans_x",), censor_fd_mm=0.5).signal_TV
    assert len(found) == 120
    np.testing.assert_array_equal(found[:2], found[[2, 2]])
    np.testing.assert_array_equal(found[119], found[118])
    low, high = np.minimum(found[49], found[53]), np.maximum(found[49], found[53])
    assert ((found[50:53] >= low) & (found[50:53] <= high)).all()


def test_a_censored_frame_of_a_smooth_series_is_nearly_recovered(tmp_path):
    record = save_confounds(confounds_frame(outliers={50: 2.0}), tmp_path)
    smooth = np.sin(2 * np.pi * 0.02 * TR_S * np.arange(120) + np.arange(8)[:, None]).T.astype(np.float32)
    found = cleaned(smooth, record, censor_fd_mm=0.5).signal_TV
    assert np.abs(found[50] - smooth[50]).max() < 0.01


def test_censored_frames_are_dropped_on_request(tmp_path):
    record = save_confounds(confounds_frame(outliers=OUTLIERS), tmp_path)
    signal = random_signal()
    kept, dropped = (cleaned(signal, record, clean="scrubbing", censored=how) for how in ("interpolate", "drop"))
    num_censored = dropped.notes["num_censored"]
    assert num_censored > len(OUTLIERS)  # short segments go too
    assert len(dropped.signal_TV) == dropped.notes["num_frames"] == 120 - num_censored
    assert np.isin(dropped.signal_TV[:, 0], kept.signal_TV[:, 0]).all()


def test_thresholds_of_scrubbing_are_replaced_by_ours(tmp_path):
    record = save_confounds(confounds_frame(outliers={30: 0.6, 60: 2.0}), tmp_path)
    counts = [
        cleaned(random_signal(), record, clean="scrubbing", censor_fd_mm=limit).notes["num_censored"]
        for limit in (None, 1.0)
    ]
    assert counts == [2, 1]


def test_thresholds_add_to_the_frames_that_other_presets_leave_out(tmp_path):
    frame = confounds_frame(outliers={30: 0.6})
    frame.loc[70, "std_dvars"] = 3.0
    frame["non_steady_state_outlier00"] = np.eye(120)[0]
    record = save_confounds(frame, tmp_path)
    flags = {"clean": "simple", "censor_fd_mm": 0.5, "censor_dvars": 1.5}
    assert cleaned(random_signal(), record, **flags).notes["num_censored"] == 3


def test_non_steady_frames_are_dropped_at_the_start(tmp_path):
    frame = confounds_frame()
    for k in range(3):
        frame[f"non_steady_state_outlier{k:02d}"] = np.eye(120)[k]
    result = cleaned(random_signal(), save_confounds(frame, tmp_path), clean="simple", drop_non_steady=True)
    assert (result.notes["num_dropped"], result.notes["num_censored"], len(result.signal_TV)) == (3, 0, 117)


def test_voxels_that_hold_nan_come_back_as_nan_and_constant_ones_unchanged(tmp_path):
    signal = random_signal()
    wanted = cleaned(signal, NO_FILES, detrend=True, low_pass_hz=0.1).signal_TV
    signal[7, 3] = np.nan
    signal[:, 5] = 1234.5
    found = cleaned(signal, NO_FILES, detrend=True, low_pass_hz=0.1).signal_TV
    assert np.isnan(found[:, 3]).all()
    np.testing.assert_array_equal(found[:, 5], np.full(120, 1234.5, np.float32))
    others = np.delete(np.arange(30), [3, 5])
    np.testing.assert_array_equal(found[:, others], wanted[:, others])


@pytest.mark.parametrize("new_tr_s", [3.0, 0.8])
def test_time_is_resampled_last(new_tr_s):
    signal = random_signal()
    before = cleaned(signal, NO_FILES, low_pass_hz=0.1, drop_first=5)
    after = cleaned(signal, NO_FILES, low_pass_hz=0.1, drop_first=5, resample_tr=new_tr_s)
    wanted = resample_time(before.signal_TV, TR_S, new_tr_s)
    assert after.tr_s == new_tr_s and after.notes["num_frames"] == len(wanted)
    assert relative_error(after.signal_TV, wanted) < 1e-4


def test_result_lies_in_the_signal_and_peak_memory_is_bounded(tmp_path, monkeypatch):
    """At 1/100 of an HCP run and of the block: less than 0.55 runs beside the run itself."""
    monkeypatch.setattr(cleaning, "_BLOCK_BYTES", (16 << 20) // 100)
    signal = random_signal(200, 14_000)
    record = save_confounds(confounds_frame(200, outliers=OUTLIERS), tmp_path)
    config = CleaningConfig(clean="scrubbing", low_pass_hz=0.2, detrend=True, resample_tr=2.5)
    clean_run(random_signal(200, 10), TR_S, record, config)  # imports and tables of the libraries
    tracemalloc.start()
    result = clean_run(signal, TR_S, record, config)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(result.signal_TV, signal)
    assert peak < 0.55 * signal.nbytes


def without(*names: str):
    return lambda frame: frame.drop(columns=[c for c in frame if c.startswith(names)])


def same(frame):
    return frame


def gap(frame):
    frame.loc[7, "trans_x"] = np.nan
    return frame


def all_moved(frame):
    return frame.assign(framewise_displacement=9.0)


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (without("rot_x"), {"clean": "simple"}, r"lacks: rot_x, rot_x_derivative1.*--confounds"),
        (without("csf_der"), {"clean": "scrubbing"}, r"lacks: csf_derivative1, csf_derivative1_power2"),
        (without("std_dvars"), {"clean": "scrubbing"}, r"lacks: std_dvars"),
        (without("cosine"), {"clean": "simple"}, r"lacks: cosine00"),
        (without("a_comp"), {"clean": "compcor"}, r"nilearn cannot take --clean compcor .*compcor"),
        (without("framewise", "trans"), {"censor_fd_mm": 0.5}, r"--censor-fd-mm needs framewise_displacement or six"),
        (without("std_dvars"), {"censor_dvars": 1.5}, r"--censor-dvars needs a column std_dvars"),
        (same, {"confounds": ("tran_x",)}, r"'tran_x' fits no column .*which has 46: trans_x"),
        (gap, {"confounds": ("trans_x",)}, r"column trans_x .* no number in row 8 \(of 120\)"),
        (same, {"low_pass_hz": 0.25}, r"--low-pass-hz 0.25 is not below 0.25 Hz, .* 2 s"),
        (same, {"high_pass_hz": 0.3}, r"--high-pass-hz 0.3 is not below 0.25 Hz"),
        (same, {"clean": "simple", "low_pass_hz": 0.05}, r"29 regressors leave 0 .* of 120 kept .* passes 24"),
        (same, {"censor_fd_mm": 0.05}, r"1 of 120 frames are left .*119 censored"),
        (all_moved, {"clean": "scrubbing"}, r"0 of 120 frames are left .*120 censored"),
        (same, {"drop_first": 115}, r"5 of 120 frames are left \(115 dropped"),
        (same, {"drop_first": 90, "low_pass_hz": 0.2}, r"30 frames are too few for a filter .* 34"),
        (same, {"clean": "ica_aroma"}, r"takes \*_desc-smoothAROMAnonaggr_bold files, found sub-01"),
    ],
)
def test_a_run_that_cannot_be_cleaned_is_refused_with_reason_and_remedy(tmp_path, change, flags, said):
    record = save_confounds(change(confounds_frame()), tmp_path)
    with pytest.raises(RunError, match=said) as refused:
        cleaned(random_signal(), record, **flags)
    assert refused.value.stage == "clean" and "\n" not in str(refused.value)


def test_a_preset_needs_a_table_and_compcor_its_json(tmp_path):
    with pytest.raises(RunError, match=r"--clean needs a confounds table, found none for sub-01_bold"):
        cleaned(random_signal(), NO_FILES, clean="simple")
    record = save_confounds(confounds_frame(), tmp_path, compcor_json=False)
    with pytest.raises(RunError, match=r"needs sub-01_task-rest_desc-confounds_timeseries.json beside"):
        cleaned(random_signal(), record, clean="compcor")


@pytest.fixture
def motion_of_hcp(tmp_path: Path) -> RunRecord:
    """HCP's file: mm, degrees, and their derivatives."""
    rng = np.random.default_rng(4)
    motion = np.cumsum(0.05 * rng.standard_normal((120, 6)), axis=0)
    motion[60] += 3
    np.savetxt(tmp_path / "Movement_Regressors.txt", np.hstack([motion, np.gradient(motion, axis=0)]))
    return RunRecord(subject="01", bold=tmp_path / "rfMRI.nii.gz", confounds=tmp_path / "Movement_Regressors.txt")


def test_motion_parameters_of_another_layout_are_regressed_by_name(motion_of_hcp):
    signal = random_signal()
    result = cleaned(signal, motion_of_hcp, confounds=("trans_*", "rot_*"), detrend=True)
    columns = np.loadtxt(motion_of_hcp.confounds)
    wanted = clean(signal.astype(np.float64), confounds=columns, detrend=True, standardize=None)
    assert result.notes["num_regressors"] == 12
    assert relative_error(result.signal_TV - signal.mean(axis=0, dtype=np.float64), wanted) < 1e-5


def test_frames_are_censored_by_motion_parameters_alone(motion_of_hcp):
    assert cleaned(random_signal(), motion_of_hcp, censor_fd_mm=2.0).notes["num_censored"] == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"clean": "simple"}, r"has only motion parameters; name columns with --confounds instead"),
        ({"drop_non_steady": True}, r"has only motion parameters; give the number of frames with --drop-first"),
        ({"censor_dvars": 1.5}, r"needs a column std_dvars, Movement_Regressors.txt has none"),
    ],
)
def test_what_motion_parameters_cannot_give_is_refused_with_the_way_out(motion_of_hcp, flags, said):
    with pytest.raises(RunError, match=said):
        cleaned(random_signal(), motion_of_hcp, **flags)


def test_a_run_that_was_denoised_before_is_refused(tmp_path):
    record = save_confounds(confounds_frame(), tmp_path, bold=BOLD.replace("preproc", "denoised"))
    with pytest.raises(RunError, match="is denoised already"):
        cleaned(random_signal(), record, clean="simple")


def test_aroma_takes_the_files_of_its_first_step(tmp_path):
    record = save_confounds(confounds_frame(), tmp_path, bold=BOLD.replace("preproc", "smoothAROMAnonaggr"))
    signal = random_signal()
    wanted, _ = by_nilearn(signal, record, "ica_aroma", detrend=False)
    assert relative_error(cleaned(signal, record, clean="ica_aroma").signal_TV, wanted) < 1e-5


@pytest.mark.parametrize(
    ("folder", "prefix", "bold"),
    [
        ("func", "sub-01_task-rest", "sub-01_task-rest_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"),
        ("func", "sub-01_task-rest", "sub-01_task-rest_space-MNIPediatricAsym_cohort-3_res-2_desc-preproc_bold.nii.gz"),
        ("func", "sub-01_ses-a_task-rest_run-2", "sub-01_ses-a_task-rest_run-2_echo-1_space-T1w_desc-preproc_bold.nii"),
        ("a.b tsv", "sub-01_task-rest_acq-x_dir-LR", "sub-01_task-rest_acq-x_dir-LR_desc-preproc_bold.nii.gz"),
        ("func", "anything", "rest1.nii.gz"),
    ],
)
@pytest.mark.parametrize("preset", ["simple", "compcor"])
def test_presets_work_whatever_the_files_are_called(tmp_path, folder, prefix, bold, preset):
    frame, signal = confounds_frame(), random_signal()
    record = save_confounds(frame, tmp_path / folder, prefix=prefix, bold=bold)
    save_confounds(confounds_frame(seed=9), tmp_path / folder, prefix="sub-01")  # nilearn would not know which
    wanted = cleaned(signal, save_confounds(frame, tmp_path / "plain"), clean=preset)
    np.testing.assert_array_equal(cleaned(signal, record, clean=preset).signal_TV, wanted.signal_TV)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"high_pass_hz": 0.01, "clean": "simple"}, "cosine columns are a high-pass already"),
        ({"high_pass_hz": 0.01, "confounds": ("cos*",)}, "two high-pass filters"),
        ({"high_pass_hz": 0.1, "low_pass_hz": 0.1}, "--high-pass-hz 0.1 is not below --low-pass-hz 0.1"),
        ({"low_pass_hz": 0.0}, "--low-pass-hz 0: allowed"),
        ({"censor_fd_mm": float("nan")}, "--censor-fd-mm nan"),
        ({"drop_first": -1}, "--drop-first -1"),
        ({"resample_tr": 200.0}, "--resample-tr 200"),
        ({"confounds": ("",)}, "--confounds has an empty name"),
        ({"censored": "drop", "resample_tr": 2.0}, "--censored drop leaves gaps"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, said):
    with pytest.raises(UsageError, match=said):
        CleaningConfig(**flags)


def test_only_flags_in_use_are_recorded():
    assert CleaningConfig().recorded() == CleaningConfig(censored="drop").recorded() == {}
    assert not CleaningConfig(censored="drop").active
    config = CleaningConfig(clean="scrubbing", confounds=("global_signal",), low_pass_hz=0.1)
    recorded = {"clean": "scrubbing", "confounds": ["global_signal"], "low_pass_hz": 0.1, "censored": "interpolate"}
    assert config.active and config.recorded() == json.loads(json.dumps(config.recorded())) == recorded
    assert CleaningConfig(detrend=True).recorded() == {"detrend": True}


def test_notes_are_json_and_count_everything(tmp_path):
    record = save_confounds(confounds_frame(outliers=OUTLIERS), tmp_path)
    notes = cleaned(random_signal(), record, clean="scrubbing", drop_first=2, resample_tr=4.0).notes
    assert json.loads(json.dumps(notes)) == notes
    assert (notes["num_frames_source"], notes["num_dropped"], notes["num_frames"]) == (120, 2, 59)
    assert notes["num_regressors"] == len(notes["regressors"]) == 35


def test_methods_name_the_steps_in_their_order_with_citations():
    text = methods_text(CleaningConfig(clean="scrubbing", drop_first=4, detrend=True, low_pass_hz=0.1, resample_tr=2.0))
    parts = (
        "first 4 frames", "0.5 mm (Power et al., 2012", "DVARS above 1.5", "cubic spline", "linear trend", "low-pass",
        "24 motion", "preset scrubbing", "Lindquist et al., 2018", "mean of each", "filled", "2 s", "signal.clean",
    )  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({}, ""),
        ({"drop_first": 1}, "Voxel time series were cleaned run by run, in this order: the first frame was removed."),
        ({"censor_dvars": 1.5, "censored": "drop"}, "above 1.5 were censored; censored frames were left out."),
        (
            {"confounds": ("csf",)},
            "columns csf were regressed out; the mean of each voxel was put back. For regression, nilearn",
        ),
        (
            {"high_pass_hz": 0.01},
            "a high-pass (0.01 Hz) Butterworth filter of order 5 was applied forward and backward",
        ),
    ],
)
def test_methods_say_nothing_that_was_not_done(flags, text):
    found = methods_text(CleaningConfig(**flags))
    assert text in found and bool(found) == bool(flags)
    assert "censored" not in found or "censor_dvars" in flags
