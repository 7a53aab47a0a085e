"""`scripts/arrow_of_time.py`: windows are told from their reversal where, and only where, there is an order to tell."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.linalg import expm
from sklearn.metrics import roc_auc_score

from ingest.cli import main as ingest
from shards.reader import ShardSet

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("BOLDSTREAM_REAL_DATA", ROOT / "../shared/data")).resolve()
HAXBY = DATA / "haxby2001_sub001"
SMALL = "--latent 8 --channels 8 8 --width 16 --depth 1 --heads 2 --pca_frames 512 --steps 30 --val_runs 1"


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ARROW, PAINT = script("arrow_of_time"), script("paint_regions")


def train(folder: Path, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--preset", "tiny", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def arrow(**options: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Results of the script by run, model and what the probe sees."""
    config = ARROW.ArrowConfig(**({"resamples": 200} | options))
    assert ARROW.tell(config) == 0
    return read(config.out)


def read(out: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The same from its JSON."""
    table = json.loads(out.read_text())["results"]
    return {(Path(line["run"]).name, line["model"], line["sees"]): line for line in table}


def signals(
    angle_rad: float, num_voxels: int, *, subjects: int = 15, frames: int = 150, first_seed: int = 100
) -> dict[str, np.ndarray]:
    """Voxels that mix six sources, which turn plane by plane (irreversible) or, at angle 0, do not."""
    shared = np.random.default_rng(0)
    mixing = shared.standard_normal((6, num_voxels))
    turn = np.zeros((6, 6))
    for k in (0, 2, 4):
        turn[k, k + 1], turn[k + 1, k] = angle_rad, -angle_rad
    step = expm(turn)
    made = {}
    for k in range(subjects):
        rng = np.random.default_rng(first_seed + k)
        x, series = rng.standard_normal(6), []
        for _ in range(frames):
            x = 0.8 * x @ step + 0.6 * rng.standard_normal(6)
            series.append(x)
        noise = rng.standard_normal((frames, num_voxels))
        made[f"sub-{k:02d}_task-rest"] = (1000 + 10 * (np.array(series) @ mixing) + 10 * noise).astype("f4")
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this module's tests share is made once."""
    return tmp_path_factory.mktemp("arrow")


@pytest.fixture
def study(place: Path, mask: np.ndarray, make_shard_set: Callable[..., Any]) -> Path:
    """A set whose process has an order, and phases 1 and 2 trained on it."""
    if not (place / "p2").exists():
        make_shard_set(place / "turning", signals=signals(0.5, int(mask.sum())), runs_per_shard=15)
        fractions = ("--split_fractions", "0.5", "0.1", "0.4")
        train(place, *SMALL.split(), "--phase", "1", "--shards", "turning", "--out", "p1", *fractions)
        train(place, *SMALL.split(), "--phase", "2", "--shards", "turning", "--out", "p2", "--init", "p1")
    return place


@pytest.fixture
def told(study: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The script's results on the set with an order."""
    out = study / "turning.json"
    if not out.exists():
        arrow(run=(study / "p1", study / "p2"), shards=str(study / "turning"), out=out)
    return read(out)


def test_windows_of_unseen_subjects_are_told_by_their_order_alone(told):
    for run, model in (("p1", "phase 1"), ("p2", "phase 2")):
        seen = told[run, model, "order of tokens"]
        assert seen["auroc"]["value"] > 0.95 and seen["accuracy"]["value"] == 1.0
        assert seen["num_subjects"] == 6 and seen["num_train_subjects"] in (7, 8)
        assert seen["auroc"]["low"] <= seen["auroc"]["value"] <= seen["auroc"]["high"]
        assert 0.35 < told[run, model, "shuffled frames (control)"]["auroc"]["value"] < 0.65
    assert told["p1", "no model", "order of parcel means"]["auroc"]["value"] > 0.95


def test_what_is_static_is_exactly_at_chance(told):
    static = [line for (_, _, sees), line in told.items() if sees.startswith("static")]
    assert len(static) == 3
    for line in static:
        for key in ("auroc", "accuracy"):
            assert [line[key][part] for part in ("value", "low", "high")] == [0.5, 0.5, 0.5]


def test_runs_of_the_same_phase_are_folds_and_others_are_not(told):
    assert {run for run, _, _ in told} == {"p1", "p2"}


def test_folds_are_averaged_and_not_pooled():
    rng = np.random.default_rng(0)
    resampled = rng.random((2, 2, 500))
    details = {"features": "order", "dimensions": 4, "penalty": 1.0, "left_out_error": 0.5, "num_train_windows": 8}
    details |= {"num_train_subjects": 4, "num_windows": 4, "num_subjects": 2, "model": "phase 1", "sees": "order"}
    folds = [
        ARROW.Row(run=f"p{k}", auroc=0.6 + k / 5, accuracy=0.5, resampled_auroc=x, resampled_accuracy=y, **details)
        for k, (x, y) in enumerate(resampled)
    ]
    assert ARROW.groups_of(folds) == [folds]
    mean = ARROW.summary(folds, "mean of 2")
    assert mean["auroc"]["value"] == pytest.approx(0.7) and mean["accuracy"]["value"] == 0.5
    expected = np.percentile(resampled[:, 0].mean(0), [2.5, 97.5])
    assert [mean["auroc"]["low"], mean["auroc"]["high"]] == pytest.approx(expected)


def test_reversible_processes_of_the_same_covariance_are_at_chance(study, mask, make_shard_set, tmp_path):
    """On average over sets: six test subjects say little (one set: SD 0.1)."""
    found = []
    for first_seed in (200, 300, 400, 500):
        shards = tmp_path / str(first_seed)
        make_shard_set(shards, signals=signals(0.0, int(mask.sum()), first_seed=first_seed), runs_per_shard=15)
        found.append(arrow(run=(study / "p1", study / "p2"), shards=str(shards), out=tmp_path / "out.json"))
        (tmp_path / "out.json").unlink()
    for run, model in (("p1", "phase 1"), ("p2", "phase 2"), ("p1", "no model")):
        sees = "order of parcel means" if model == "no model" else "order of tokens"
        assert 0.35 < np.mean([told[run, model, sees]["auroc"]["value"] for told in found]) < 0.65


def test_auroc_and_accuracy_of_signed_scores_against_scikit_learn():
    rng = np.random.default_rng(0)
    score, unit = rng.standard_normal(40) + 0.5, np.repeat(np.arange(4), 10)
    counts = np.array([[1, 1, 1, 1], [2, 0, 1, 1]])
    auroc, accuracy = ARROW.direction_metrics(score, unit, counts)
    for b in range(2):
        weight = np.tile(counts[b, unit], 2)
        expected = roc_auc_score(np.repeat([1, 0], 40), np.r_[score, -score], sample_weight=weight)
        assert auroc[b] == pytest.approx(expected)
        right = [score[unit == k].mean() > 0 for k in range(4)]
        assert accuracy[b] == pytest.approx(np.average(right, weights=counts[b]))


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--run", "nowhere", "--shards", "turning"], 2, "no such folder"),
        (["--run", "p1", "--shards", "turning", "--window", "140"], 2, "lower --window"),
        (["--run", "p1", "--shards", "turning", "--skip_frames", "-1"], 2, "must be at least 0"),
        (["--run", "p1", "--shards", "turning", "--out", "turning/manifest.json"], 5, "already there"),
        (["--run", "p1", "--shards", "other"], 6, "give the shard set of the training"),
    ],
)
def test_what_does_not_fit_is_one_line_and_an_exit_code(study, make_shard_set, monkeypatch, capsys, flags, code, said):
    if not (study / "other").exists():
        mask = np.zeros((7, 8, 6), bool)
        mask[1:6, 1:6, 1:5] = True
        make_shard_set(study / "other", mask=mask)
    monkeypatch.chdir(study)
    monkeypatch.setattr(sys, "argv", ["arrow_of_time.py", *flags])
    assert ARROW.main() == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1


@pytest.mark.skipif(not HAXBY.is_dir(), reason=f"no {HAXBY}: name the folder that has it in BOLDSTREAM_REAL_DATA")
def test_windows_of_unseen_real_runs_are_told(tmp_path):
    """Haxby 2001, one subject: her runs are named as subjects, since the split is by subject."""
    rows = [f"sub001run{k:02d}\t{HAXBY}/run{k:02d}_bold_1slice.nii.gz\tobjects\t2.5" for k in range(1, 13)]
    (tmp_path / "runs.tsv").write_text("\n".join(["subject\tbold\ttask\ttr_s", *rows]) + "\n")
    assert ingest(["--src", str(tmp_path / "runs.tsv"), "--out", str(tmp_path / "set"), "--workers", "0"]) == 0
    fractions = ("--split_fractions", "0.6", "0.1", "0.3")
    train(tmp_path, *SMALL.split(), "--phase", "1", "--shards", "set", "--out", "p1", *fractions)
    found = arrow(run=(tmp_path / "p1",), shards=str(tmp_path / "set"), out=tmp_path / "out.json")
    assert found["p1", "phase 1", "order of tokens"]["auroc"]["value"] > 0.8
    assert found["p1", "phase 1", "static part of latents"]["auroc"]["value"] == 0.5
    assert found["p1", "no model", "static FC of parcels"]["auroc"]["value"] == 0.5


@pytest.fixture(scope="module")
def connattractor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real region series of 33 people (OpenNeuro ds000140), fetched for the test and not kept."""
    folder = tmp_path_factory.mktemp("connattractor")
    wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), "connattractor==0.1.0"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *wanted]
    if subprocess.run(command, capture_output=True, timeout=300).returncode:
        pytest.skip("connattractor 0.1.0 cannot be downloaded")
    import zipfile

    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    return folder / "resources"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_windows_of_unseen_people_are_told_on_painted_region_series(connattractor, tmp_path):
    atlas = connattractor / "MIST122_relabeled.nii.gz"
    series = tuple(connattractor.glob("ex_timeseries_task/sub-*_ts*.t*"))
    painted, shards = tmp_path / "painted", tmp_path / "set"
    config = {"series": series, "atlas": atlas, "out": painted, "tr_s": 2.0, "skip_columns": 1}
    assert PAINT.paint(PAINT.PaintConfig(**config, drop_regions=(4, 9, 11))) == 0
    src = ["--src", str(painted / "runs.tsv"), "--participants", str(painted / "participants.tsv")]
    assert ingest([*src, "--mask", str(painted / "mask.nii.gz"), "--out", str(shards), "--workers", "0"]) == 0
    fractions = ("--split_fractions", "0.6", "0.1", "0.3")
    train(tmp_path, "--phase", "1", "--shards", "set", "--out", "p1", *fractions)
    train(tmp_path, "--phase", "2", "--shards", "set", "--out", "p2", "--init", "p1")
    runs = (tmp_path / "p1", tmp_path / "p2")
    found = arrow(run=runs, shards=str(shards), out=tmp_path / "out.json", atlas=atlas)
    for name in ("1", "2"):
        seen = found[f"p{name}", f"phase {name}", "order of tokens"]
        assert seen["auroc"]["value"] > 0.95 and seen["accuracy"]["value"] > 0.95
        assert 0.4 < found[f"p{name}", f"phase {name}", "shuffled frames (control)"]["auroc"]["value"] < 0.6
    assert found["p1", "no model", "static FC of parcels"]["auroc"]["value"] == 0.5


def small_atlas(path: Path) -> np.ndarray:
    """Labels 1, 2, 3 in slabs of an 8 mm cube at 1 mm, stored left to right reversed."""
    import nibabel

    labels = np.repeat([1, 1, 1, 2, 2, 2, 3, 3], 64).reshape(8, 8, 8).astype(np.int16)
    affine = np.array([[-1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    nibabel.save(nibabel.Nifti1Image(labels[::-1].copy(), affine), path)
    return labels


def test_painted_voxels_hold_their_regions_series_after_ingest(tmp_path):
    labels = small_atlas(tmp_path / "atlas.nii.gz")
    rng = np.random.default_rng(0)
    tables = {"sub-01_ts.txt": rng.standard_normal((30, 4)), "sub-02_ts_run_03.tsv": rng.standard_normal((25, 4))}
    for name, values in tables.items():
        np.savetxt(tmp_path / name, values, delimiter="\t", header="all\ta\tb\tb", comments="")
    config = PAINT.PaintConfig(
        series=tuple(tmp_path / name for name in tables),
        atlas=tmp_path / "atlas.nii.gz",
        out=tmp_path / "painted",
        tr_s=2.0,
        voxel_mm=1.0,
        skip_columns=1,
        drop_regions=(2,),
    )
    assert PAINT.paint(config) == 0
    flags = ["--mask", str(tmp_path / "painted" / "mask.nii.gz"), "--dtype", "float32", "--workers", "0"]
    assert ingest(["--src", str(tmp_path / "painted" / "runs.tsv"), "--out", str(tmp_path / "set"), *flags]) == 0
    with ShardSet(tmp_path / "set") as shards:
        assert [(run.subject, run.run, run.tr_s) for run in shards.runs] == [("01", "01", 2.0), ("02", "03", 2.0)]
        assert np.array_equal(shards.mask, np.isin(labels, (1, 3)))
        column = labels[shards.mask]
        for number, values in enumerate(tables.values()):
            assert np.allclose(shards.read_run(number), values[:, column], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ts_01.tsv", {}, "no sub-LABEL"),
        ("sub-01.tsv", {"skip_columns": 2}, "labels up to 3"),
        ("sub-01.tsv", {"voxel_mm": 0.0}, "must be above 0"),
    ],
)
def test_what_cannot_be_painted_is_refused(tmp_path, name, options, said):
    small_atlas(tmp_path / "atlas.nii.gz")
    np.savetxt(tmp_path / name, np.ones((12, 4)), delimiter="\t", header="all\ta\tb\tc", comments="")
    given = {"series": (tmp_path / name,), "atlas": tmp_path / "atlas.nii.gz", "tr_s": 2.0, "out": tmp_path / "out"}
    with pytest.raises(PAINT.UsageError, match=said):
        PAINT.paint(PAINT.PaintConfig(**(given | {"voxel_mm": 1.0} | options)))
