"""simulate-fmri: files, bytes, tables, what it does with a folder that exists, and the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds_strategy

from ingest.simulate.cli import main
from ingest.simulate.cohort import make_cohort, participants_rows
from ingest.simulate.config import SimulateConfig
from ingest.simulate.confounds import draw_motion, framewise_displacement
from ingest.simulate.run import simulate
from shards.errors import ConfigDiffersError, OutputError, UsageError

SMALL = {"subjects": 2, "frames": 40, "voxel_mm": 10, "parcels": 20, "workers": 1}
SMALL_FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
BOLD = "sub-0001/func/sub-0001_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
GOLDEN_FILES = """\
atlas-boldstream_dseg.nii.gz
atlas-boldstream_dseg.tsv
dataset_description.json
participants.json
participants.tsv
simulation.json
sub-0001/func/sub-0001_task-rest_desc-confounds_timeseries.json
sub-0001/func/sub-0001_task-rest_desc-confounds_timeseries.tsv
sub-0001/func/sub-0001_task-rest_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz
sub-0001/func/sub-0001_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.json
sub-0001/func/sub-0001_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz
sub-0002/func/sub-0002_task-rest_desc-confounds_timeseries.json
sub-0002/func/sub-0002_task-rest_desc-confounds_timeseries.tsv
sub-0002/func/sub-0002_task-rest_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz
sub-0002/func/sub-0002_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.json
sub-0002/func/sub-0002_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz
"""


def small(out: Path, **flags: int | float) -> SimulateConfig:
    return SimulateConfig(out=out, **{**SMALL, **flags})


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    simulate(small(folder))
    return folder


def test_files_are_those_of_the_golden_list(cohort_folder):
    assert "".join(f"{name}\n" for name in sorted(content(cohort_folder))) == GOLDEN_FILES


def test_bold_and_mask_open_in_nibabel_on_the_grid_of_the_atlas(cohort_folder):
    bold = nibabel.load(cohort_folder / BOLD)
    mask = nibabel.load(cohort_folder / BOLD.replace("preproc_bold", "brain_mask"))
    atlas = nibabel.load(cohort_folder / "atlas-boldstream_dseg.nii.gz")
    assert bold.shape == (*mask.shape, 40)
    assert bold.get_data_dtype() == np.int16
    assert bold.header.get_zooms() == (10.0, 10.0, 10.0, 2.0)
    assert bold.header.get_xyzt_units() == ("mm", "sec")
    for image in (bold, mask, atlas):
        np.testing.assert_array_equal(image.affine, atlas.affine)
        assert image.header.get_sform(coded=True)[1] == image.header.get_qform(coded=True)[1] == 4
    inside = np.asarray(mask.dataobj) == 1
    data = np.asarray(bold.dataobj)
    assert (data[~inside] == 0).all()
    assert (data[inside] > 0).mean() > 0.999
    np.testing.assert_array_equal(np.asarray(atlas.dataobj) > 0, inside)


def test_atlas_has_mirrored_parcels_that_its_table_names(cohort_folder):
    atlas = np.asarray(nibabel.load(cohort_folder / "atlas-boldstream_dseg.nii.gz").dataobj)
    table = pd.read_csv(cohort_folder / "atlas-boldstream_dseg.tsv", sep="\t")
    assert table["index"].tolist() == sorted(set(np.unique(atlas)) - {0}) == list(range(1, 21))
    left, right = (table[table.hemisphere == side].reset_index() for side in "LR")
    assert (left.x_mm < 0).all() and (right.x_mm > 0).all()
    np.testing.assert_array_equal(left.network, right.network)
    np.testing.assert_allclose(left[["y_mm", "z_mm"]], right[["y_mm", "z_mm"]], atol=10)


def test_side_cars_say_what_a_reader_needs(cohort_folder):
    side_car = json.loads((cohort_folder / BOLD.replace(".nii.gz", ".json")).read_text())
    assert side_car["RepetitionTime"] == 2.0
    assert side_car["SkullStripped"] is True
    description = json.loads((cohort_folder / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "boldstream simulate-fmri"
    recorded = json.loads((cohort_folder / "simulation.json").read_text())
    assert recorded["config"] == small(cohort_folder).identity()


def test_participants_columns_are_described(cohort_folder):
    table = pd.read_csv(cohort_folder / "participants.tsv", sep="\t", dtype=str)
    described = json.loads((cohort_folder / "participants.json").read_text())
    assert table.columns.tolist() == ["participant_id", *described]
    assert table.participant_id.tolist() == ["sub-0001", "sub-0002"]
    assert set(table.group) == set(described["group"]["Levels"])


def test_confounds_serve_nilearn_strategies(cohort_folder):
    for strategy, num_columns in (("simple", 26 + 1), ("scrubbing", 32 + 1)):
        columns, _ = load_confounds_strategy(str(cohort_folder / BOLD), denoise_strategy=strategy)
        assert columns.shape == (40, num_columns)


def test_first_row_of_framewise_displacement_is_missing(cohort_folder):
    path = cohort_folder / "sub-0001/func/sub-0001_task-rest_desc-confounds_timeseries.tsv"
    header, first, *rest = (line.split("\t") for line in path.read_text().splitlines())
    assert first[header.index("framewise_displacement")] == "n/a"
    assert len(rest) == 39
    assert {"trans_x", "rot_z", "csf", "white_matter", "global_signal", "std_dvars"} <= set(header)


def test_global_signal_in_the_confounds_is_that_of_the_image(cohort_folder):
    data = np.asarray(nibabel.load(cohort_folder / BOLD).dataobj, dtype=np.float64)
    mask = np.asarray(nibabel.load(cohort_folder / BOLD.replace("preproc_bold", "brain_mask")).dataobj) > 0
    table = pd.read_csv(
        cohort_folder / "sub-0001/func/sub-0001_task-rest_desc-confounds_timeseries.tsv", sep="\t", na_values="n/a"
    )
    np.testing.assert_allclose(table.global_signal, data[mask].mean(axis=0), rtol=1e-5)


def test_bytes_do_not_depend_on_workers_or_day(cohort_folder, tmp_path):
    simulate(small(tmp_path / "two", workers=2))
    assert content(tmp_path / "two") == content(cohort_folder)


def test_another_seed_gives_other_subjects_on_the_same_atlas(cohort_folder, tmp_path):
    simulate(small(tmp_path / "other", seed=1))
    other, first = content(tmp_path / "other"), content(cohort_folder)
    assert other[BOLD] != first[BOLD]
    assert other["atlas-boldstream_dseg.nii.gz"] == first["atlas-boldstream_dseg.nii.gz"]


def test_second_call_does_nothing(cohort_folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in cohort_folder.rglob("*")}
    assert main(["--out", str(cohort_folder), *SMALL_FLAGS]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in cohort_folder.rglob("*")} == before


def test_interrupted_simulation_is_continued_to_the_same_bytes(cohort_folder, tmp_path):
    out = tmp_path / "cohort"
    simulate(small(out))
    (out / "simulation.json").rename(out / "simulation.partial.json")
    (out / BOLD).rename(out / BOLD.replace("sub-0001_", ".partial-77-sub-0001_"))
    assert simulate(small(out)) == 1
    assert content(out) == content(cohort_folder)


def test_killed_process_leaves_a_folder_that_can_be_continued(cohort_folder, tmp_path):
    out = tmp_path / "cohort"
    command = [sys.executable, "-m", "ingest.simulate.cli", "--out", str(out), *SMALL_FLAGS, "--workers", "2"]
    process = subprocess.Popen(command)
    while not (out / "sub-0001").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    simulate(small(out))
    assert content(out) == content(cohort_folder)


def test_interrupt_from_the_keyboard_exits_130_in_one_line(tmp_path):
    out = tmp_path / "cohort"
    flags = ["--out", str(out), *SMALL_FLAGS, "--workers", "2", "--subjects", "2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest.simulate.cli", *flags],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (out / "sub-0005").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted; the same command continues\n")
    assert not (out / "simulation.json").exists()


def test_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        simulate(small(tmp_path))
    assert content(tmp_path) == {"notes.txt": b"mine"}


def test_foreign_file_in_a_simulation_is_refused(tmp_path):
    simulate(small(tmp_path / "cohort"))
    (tmp_path / "cohort/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        simulate(small(tmp_path / "cohort"))


def test_another_configuration_is_refused_field_by_field(cohort_folder):
    with pytest.raises(ConfigDiffersError, match="frames: found 40, now 50; seed: found 0, now 3"):
        simulate(small(cohort_folder, frames=50, seed=3))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--subjects", "1"], "--subjects is 1"),
        (["--frames", "9"], "--frames is 9"),
        (["--parcels", "21"], "20 or 22"),
        (["--effect-fc", "nan"], "--effect-fc is nan"),
        (["--subjects", "abc"], "'abc'"),
        (["--bogus", "1"], "--bogus"),
        (["--voxel-mm", "12", "--parcels", "400"], "use fewer parcels"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(flags, said, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "x"), "--subjects", "4", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_output_and_configuration_errors_have_their_exit_codes(cohort_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file"), *SMALL_FLAGS]) == 5
    assert main(["--out", str(cohort_folder), *SMALL_FLAGS, "--seed", "9"]) == 6
    assert capsys.readouterr().err.count("error: ") == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom ingest.simulate.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'dask', 'nilearn', 'scipy', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--effect-dynamics" in done.stdout


@pytest.mark.parametrize("imbalance", [0.0, 0.5, 1.0])
def test_site_goes_with_group_as_far_as_asked(tmp_path, imbalance):
    cohort = make_cohort(small(tmp_path, subjects=200, site_imbalance=imbalance))
    for group, own in (("control", "site1"), ("patient", "site2")):
        sites = [subject.site for subject in cohort if subject.group == group]
        assert sites.count(own) / len(sites) == pytest.approx((1 + imbalance) / 2, abs=0.02)


def test_a_cohort_made_before_a_flag_was_there_is_still_the_same(cohort_folder, tmp_path):
    folder = shutil.copytree(cohort_folder, tmp_path / "old")
    record = folder / "simulation.json"
    content = json.loads(record.read_text())
    del content["config"]["site_imbalance"]
    record.write_text(json.dumps(content))
    simulate(small(folder))
    with pytest.raises(ConfigDiffersError, match=r"site_imbalance: found 0\.0, now 1"):
        simulate(small(folder, site_imbalance=1.0))


def test_groups_and_sites_are_balanced_and_siblings_stay_together(tmp_path):
    cohort = make_cohort(small(tmp_path, subjects=40, families=0.5, family_size=2))
    table = pd.DataFrame([(s.group, s.site, s.family) for s in cohort], columns=["group", "site", "family"])
    assert set(table.groupby(["group", "site"]).size()) == {10}
    assert table.family.value_counts().value_counts().to_dict() == {1: 20, 2: 10}
    assert (table.groupby("family")[["group", "site"]].nunique() == 1).all(axis=None)


def test_missing_fraction_is_exact_in_each_phenotype(tmp_path):
    config = small(tmp_path, subjects=50, missing=0.1)
    rows = pd.DataFrame(participants_rows(config, make_cohort(config)))
    assert (rows == "n/a").sum().to_dict() == {
        "participant_id": 0, "sex": 5, "age": 5, "group": 5, "site": 0, "family": 0,
    }  # fmt: skip


def test_missing_values_change_nothing_else(tmp_path):
    complete, partial = (small(tmp_path, subjects=50, missing=fraction) for fraction in (0.0, 0.2))
    assert make_cohort(complete) == make_cohort(partial)


def test_motion_flag_sets_the_rate_of_jerks(tmp_path):
    rates = []
    for motion in (0.0, 0.1):
        config = small(tmp_path, subjects=30, frames=200, motion=motion)
        fd = [framewise_displacement(draw_motion(config, s).parameters_T6)[1:] for s in make_cohort(config)]
        rates.append((np.concatenate(fd) > 0.5).mean())
    assert rates[0] == 0
    assert 0.12 < rates[1] < 0.22  # each jerk moves the head twice: away and back


def test_odd_parcels_are_refused_with_the_nearest_allowed():
    with pytest.raises(UsageError, match="take 60 or 62"):
        SimulateConfig(out=Path("x"), subjects=4, parcels=61)
