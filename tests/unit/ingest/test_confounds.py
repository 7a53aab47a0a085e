"""Confounds in all their forms; displacement against fMRIPrep's own and against the formula worked by hand."""

from __future__ import annotations

import os
from pathlib import Path

import nilearn
import numpy as np
import pandas as pd
import pytest

from ingest.confounds import (
    ROTATIONS,
    TRANSLATIONS,
    framewise_displacement_mm,
    power_displacement_mm,
    read_confounds,
)
from ingest.failures import RunError

FMRIPREP = Path(nilearn.__file__).parent / "interfaces/fmriprep/data"
"""Tables that fMRIPrep wrote, with nilearn's tests."""
TABLES = ("test-v21_desc-confounds_timeseries.tsv", "no_nonsteady_desc-confounds_regressors.tsv")

HAND_MM = [[0.0, 0.0, 0.0], [0.3, -0.1, 0.0], [0.3, 0.1, 0.2]]
HAND_RAD = [[0.0, 0.0, 0.0], [0.01, 0.0, 0.0], [0.0, 0.002, -0.001]]
HAND_FD_MM = [np.nan, 0.3 + 0.1 + 50 * 0.01, 0.2 + 0.2 + 50 * (0.01 + 0.002 + 0.001)]
"""0.9 and 1.05 mm."""


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def fd(path: Path, num_frames: int) -> np.ndarray:
    values = framewise_displacement_mm(read_confounds(path, num_frames).columns)
    assert values is not None
    return values


@pytest.mark.parametrize("name", TABLES)
def test_displacement_from_parameters_is_that_of_fmriprep(name):
    columns = read_confounds(FMRIPREP / name, 30).columns
    of_fmriprep = columns.pop("framewise_displacement")
    np.testing.assert_allclose(framewise_displacement_mm(columns), of_fmriprep, rtol=0, atol=1e-12)
    assert np.nanmax(of_fmriprep) > 0.1


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_pandas_reads_it(name):
    expected = pd.read_csv(FMRIPREP / name, sep="\t", na_values=["n/a"])
    confounds = read_confounds(FMRIPREP / name, 30)
    assert confounds.kind == "table" and list(confounds.columns) == list(expected.columns)
    for column, values in confounds.columns.items():
        np.testing.assert_array_equal(values, expected[column].to_numpy(np.float64))


def test_displacement_by_hand():
    np.testing.assert_allclose(power_displacement_mm(np.array(HAND_MM), np.array(HAND_RAD)), HAND_FD_MM)


@pytest.mark.parametrize("num_columns", [6, 12])
def test_rotations_of_hcp_are_degrees(tmp_path, num_columns):
    six = np.hstack([HAND_MM, np.rad2deg(HAND_RAD)])
    path = tmp_path / "Movement_Regressors.txt"
    np.savetxt(path, np.hstack([six, np.gradient(six, axis=0)])[:, :num_columns], fmt="%14.10f")
    confounds = read_confounds(path, 3)
    assert confounds.kind == "hcp" and len(confounds.columns) == num_columns
    np.testing.assert_allclose(np.stack([confounds.columns[name] for name in ROTATIONS], 1), HAND_RAD, atol=1e-9)
    np.testing.assert_allclose(np.stack([confounds.columns[name] for name in TRANSLATIONS], 1), HAND_MM, atol=1e-9)
    np.testing.assert_allclose(fd(path, 3), HAND_FD_MM, atol=1e-7)


def test_degrees_taken_for_radians_would_be_seen(tmp_path):
    path = tmp_path / "Movement_Regressors.txt"
    np.savetxt(path, [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    np.testing.assert_allclose(fd(path, 2)[1], 50 * np.pi / 180)


def test_derivatives_of_hcp_rotations_are_radians_too(tmp_path):
    path = tmp_path / "Movement_Regressors.txt"
    np.savetxt(path, [[0] * 9 + [180, 0, 0], [0] * 12])
    assert read_confounds(path, 2).columns["rot_x_derivative1"][0] == pytest.approx(np.pi)


def test_par_files_of_fsl_have_rotations_first_and_in_radians(tmp_path):
    path = tmp_path / "prefiltered_func_data_mcf.par"
    np.savetxt(path, np.hstack([HAND_RAD, HAND_MM]))
    assert read_confounds(path, 3).kind == "fsl"
    np.testing.assert_allclose(fd(path, 3), HAND_FD_MM)


def test_dcan_files_with_displacement_have_a_tabbed_header_above_spaced_numbers(tmp_path):
    axes = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    names = [f"{name}_{'mm' if name.startswith('trans') else 'degrees'}" for name in axes]
    header = [*names, *(f"{name}_dt" for name in names), "framewise_displacement"]
    rows = np.hstack([HAND_MM, np.rad2deg(HAND_RAD), np.zeros((3, 6)), [[0.0], [0.7], [0.8]]])
    lines = ["   ".join(f"{value:.9f}" for value in row) for row in rows]
    confounds = read_confounds(write(tmp_path / "a_desc-includingFD_motion.tsv", "\t".join(header), *lines), 3)
    assert confounds.kind == "dcan"
    assert list(confounds.columns)[:7] == [*TRANSLATIONS, *ROTATIONS, "trans_x_derivative1"]
    np.testing.assert_allclose(framewise_displacement_mm(confounds.columns), [0, 0.7, 0.8])
    np.testing.assert_allclose(np.stack([confounds.columns[name] for name in ROTATIONS], 1), HAND_RAD, atol=1e-8)


def test_dcan_files_without_displacement_have_several_tabs_between_numbers(tmp_path):
    header = "X\tY\tZ\tRotX\tRotY\tRotZ\tXDt\tYDt\tZDt\tRotXDt\tRotYDt\tRotZDt"
    rows = np.hstack([HAND_MM, np.rad2deg(HAND_RAD), np.zeros((3, 6))])
    lines = ["\t\t" + "\t\t".join(f"{value:.9f}" for value in row) + "\t" for row in rows]
    path = write(tmp_path / "sub-1_motion.tsv", header, *lines)
    assert read_confounds(path, 3).kind == "dcan"
    np.testing.assert_allclose(fd(path, 3), HAND_FD_MM, atol=1e-6)


def test_a_column_of_displacement_goes_before_the_parameters():
    columns = {name: np.zeros(2) for name in TRANSLATIONS + ROTATIONS}
    stated = np.array([np.nan, 0.4])
    assert framewise_displacement_mm(columns | {"framewise_displacement": stated}) is stated


def test_without_all_six_parameters_there_is_no_displacement():
    columns = {name: np.zeros(2) for name in TRANSLATIONS + ROTATIONS}
    for name in list(columns):
        assert framewise_displacement_mm({key: values for key, values in columns.items() if key != name}) is None


def test_what_is_no_number_is_nan(tmp_path):
    path = write(tmp_path / "c.tsv", "a\tb\tc", "n/a\t\tx", "1\t2\t3")
    columns = read_confounds(path, 2).columns
    np.testing.assert_array_equal(list(columns.values()), [[np.nan, 1], [np.nan, 2], [np.nan, 3]])


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_bytes(b"\xef\xbb\xbfcsf\tx\r\n1\t2\r\n")
    assert {name: list(values) for name, values in read_confounds(path, 1).columns.items()} == {"csf": [1], "x": [2]}


def test_rows_of_censored_frames_are_left_out_as_xcp_d_marks_them(tmp_path):
    path = write(tmp_path / "sub-1_motion.tsv", "framewise_displacement\ttrans_x", "0.1\t1", "0.9\t2", "0.2\t3")
    write(tmp_path / "sub-1_outliers.tsv", "framewise_displacement", "0", "1", "0")
    assert list(read_confounds(path, 2).columns["trans_x"]) == [1, 3]
    assert list(read_confounds(path, 3).columns["trans_x"]) == [1, 2, 3]
    older = path.rename(tmp_path / "sub-1_desc-filtered_motion.tsv")
    assert list(fd(older, 2)) == [0.1, 0.2]


@pytest.mark.parametrize("marks", [["0", "0", "0"], ["0", "1", "1"], ["0", "1"]])
def test_outliers_that_do_not_explain_the_length_leave_it_an_error(tmp_path, marks):
    path = write(tmp_path / "sub-1_motion.tsv", "trans_x", "1", "2", "3")
    write(tmp_path / "sub-1_outliers.tsv", "framewise_displacement", *marks)
    with pytest.raises(RunError, match="has 3 rows, the run 2 frames"):
        read_confounds(path, 2)


@pytest.mark.parametrize("num_frames", [2, 4])
@pytest.mark.parametrize("name", ["a.tsv", "Movement_Regressors.txt", "a.par"])
def test_another_number_of_rows_than_frames_fails_the_run(tmp_path, name, num_frames):
    header = ["a\tb\tc\td\te\tf"] if name == "a.tsv" else []
    path = write(tmp_path / name, *header, *["\t".join("123456")] * 3)
    with pytest.raises(RunError, match=f"has 3 rows, the run {num_frames} frames") as caught:
        read_confounds(path, num_frames)
    assert (caught.value.stage, caught.value.kind) == ("confounds", "other-length")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("Movement_Regressors.txt", b"1 2 3\n", "3 columns in its first line, wanted 6 or 12"),
        ("Movement_Regressors.txt", b"1 2 3 4 5 x\n", "could not convert string.*wanted 6 or 12"),
        ("a.par", b"1 2 3 4 5 6\n1 2 3\n", "wanted 6 numbers in every line"),
        ("a.par", b"", "0 columns in its first line"),
        ("a.tsv", b"a\tb\n1\n", "row 2 has 1 cells, its header 2"),
        ("a.tsv", b"a\ta\n1\t2\n", "a column is there twice"),
        ("a.tsv", b"", "has 0 rows, the run 1 frames"),
        ("a.tsv", b"\xff\xfe\x00", "cannot be read"),
        ("gone.tsv", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_fails_the_run_by_name(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=words) as caught:
        read_confounds(tmp_path / name, 1)
    assert caught.value.stage == "confounds" and name in caught.value.reason


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "."])
def test_what_is_no_regular_file_is_not_opened(tmp_path, target):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.tsv").symlink_to(target)
    with pytest.raises(RunError, match=r"a\.tsv cannot be read \(not a regular file\)"):
        read_confounds(tmp_path / "a.tsv", 1)
