"""A run back to NIfTI: nibabel's reading of the file against our reader, and against the source of an ingest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from shards import export
from shards.errors import CorruptShardError, OutputError, UsageError
from shards.export import export_run
from shards.format import Grid
from shards.publish import publish_set, run_entry
from shards.reader import ShardSet
from shards.values import encode
from shards.writer import EncodedRun, write_shard

DTYPES = ["int8", "int16", "float16", "float32"]
GRID = Grid(
    shape=(5, 6, 4),
    affine=((-3.0, 0.0, 0.0, 9.0), (0.0, 2.0, 0.5, -14.0), (0.0, 0.0, 4.0, -10.0), (0.0, 0.0, 0.0, 1.0)),
)

PublishIntegers = Callable[..., NDArray]


@pytest.fixture
def publish_integers(tmp_path: Path) -> PublishIntegers:
    """Return a function that stores integers of small SD, which are kept lossless, and returns them."""

    def publish(
        slope: float, inter: float, *, base: int = 500, raw_dtype: str = "i2", dtype: str = "int8"
    ) -> NDArray[np.integer]:
        rng = np.random.default_rng(5)
        mask = rng.random(GRID.shape) > 0.3
        raw = (base + rng.integers(-9, 10, (40, int(mask.sum())))).astype(raw_dtype)
        meta = {"subject": "a", "session": "", "task": "", "run": "", "tr_s": 1.5, "source": "x"}
        run = EncodedRun(run_id="sub-a", meta=meta, encoded=encode(raw, dtype, slope=slope, inter=inter))
        assert run.encoded.lossless
        written = write_shard(tmp_path / "one-000000.tar", [run])
        entry = run_entry(run, "one-000000.tar", written.places["sub-a"], source_bytes=1)
        publish_set(tmp_path, name="one", dtype=dtype, mask=mask, grid=GRID, entries=[entry], shards=[written.info])
        return raw

    return publish


def exported(folder: Path, run: int, name: str = "out.nii.gz", **asked: object) -> nibabel.Nifti1Image:
    with ShardSet(folder) as shard_set:
        export_run(shard_set, run, folder / name, **asked)  # type: ignore[arg-type]
    return nibabel.load(folder / name)


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nibabel_reads_the_signal_of_our_reader(tmp_path: Path, make_shard_set, dtype: str, name: str) -> None:
    make_shard_set(tmp_path, dtype=dtype, tr_s=0.72)
    image = exported(tmp_path, 1, name)
    found = np.asanyarray(image.dataobj)
    with ShardSet(tmp_path) as opened:
        np.testing.assert_array_equal(found[opened.mask].T, opened.read_run(1))
        assert not found[~opened.mask].any()
        np.testing.assert_array_equal(image.affine, opened.grid.affine)
    assert found.dtype == np.float32 and found.shape[3] == 150


def test_the_header_says_time_space_and_units(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, tr_s=0.72)
    header = exported(tmp_path, 1, start=50, num_frames=20).header
    assert header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(header.get_zooms(), (4, 4, 4, 0.72), rtol=1e-6)
    assert float(header["toffset"]) == pytest.approx(50 * 0.72)
    assert int(header["sform_code"]) > 0


@pytest.mark.parametrize("block_bytes", [1, 4000, 16_000_000])
@pytest.mark.parametrize("asked", [{"start": 50}, {"num_frames": 1}, {"start": 149}, {"start": 17, "num_frames": 90}])
def test_frames_are_those_asked_for_whatever_the_blocks(
    tmp_path: Path, make_shard_set, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], block_bytes: int
) -> None:
    monkeypatch.setattr(export, "_BLOCK_BYTES", block_bytes)
    make_shard_set(tmp_path)
    found = np.asanyarray(exported(tmp_path, 1, **asked).dataobj)
    start = asked.get("start", 0)
    with ShardSet(tmp_path) as opened:
        expected = opened.read_run(1)[start : start + asked.get("num_frames", 150)]
        np.testing.assert_array_equal(found[opened.mask].T, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_residuals(tmp_path: Path, make_shard_set, dtype: str) -> None:
    make_shard_set(tmp_path, dtype=dtype)
    found = np.asanyarray(exported(tmp_path, 0, what="residual").dataobj)
    with ShardSet(tmp_path) as opened:
        np.testing.assert_array_equal(found[opened.mask].T, opened.residual(0, 0, 37))


@pytest.mark.parametrize("what", ["mean", "std", "tsnr"])
def test_images_of_the_whole_run(tmp_path: Path, make_shard_set, what: str) -> None:
    voxels = make_shard_set(tmp_path / "any")["sub-00_task-rest"].shape[1]
    signal = (1000 + 20 * np.random.default_rng(3).standard_normal((60, voxels))).astype("f4")
    signal[:, 0] = 77  # constant
    make_shard_set(tmp_path, signals={"sub-1": signal})
    image = exported(tmp_path, 0, what=what)
    mean, std = signal.mean(0, dtype="f8"), signal.std(0, dtype="f8")
    expected = {"mean": mean, "std": std, "tsnr": np.where(std > 0, mean / np.where(std > 0, std, 1), 0)}[what]
    with ShardSet(tmp_path) as opened:
        np.testing.assert_allclose(np.asanyarray(image.dataobj)[opened.mask], expected, rtol=1e-5)
    assert image.header.get_xyzt_units() == ("mm", "sec") and image.ndim == 3


# --- integers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "inter"), [(1.0, 0.0), (0.5, 0.0), (0.25, -50.0), (4.0, 12.0)])
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_lossless_runs_come_back_as_the_sources_integers(
    tmp_path: Path, publish_integers: PublishIntegers, slope: float, inter: float, dtype: str
) -> None:
    raw = publish_integers(slope, inter, dtype=dtype)
    image = exported(tmp_path, 0)
    with ShardSet(tmp_path) as opened:
        assert image.get_data_dtype() == np.int16
        integers = image.dataobj.get_unscaled()
        np.testing.assert_array_equal(integers[opened.mask].T, raw)
        np.testing.assert_array_equal(np.asarray(image.dataobj)[opened.mask].T, opened.read_run(0))
        assert not np.asarray(image.dataobj)[~opened.mask].any()


@pytest.mark.parametrize(
    ("slope", "inter", "base"),
    [
        (0.3, 0.0, 500),  # 0.3 is no float32
        (1.0, 0.5, 500),  # no integer stands for 0
        (1.0, 0.0, 40_000),  # beyond int16
    ],
)
def test_integers_that_the_header_cannot_scale_come_back_as_float32(
    tmp_path: Path, publish_integers: PublishIntegers, slope: float, inter: float, base: int
) -> None:
    raw = publish_integers(slope, inter, base=base, raw_dtype="i4")
    image = exported(tmp_path, 0)
    with ShardSet(tmp_path) as opened:
        found = np.asanyarray(image.dataobj)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[opened.mask].T, (raw * slope + inter).astype("f4"))
        assert not found[~opened.mask].any()


# --- the file ---------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    exported(tmp_path, 0, "a.nii.gz")
    exported(tmp_path, 0, "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_file_that_exists_is_replaced_only_when_asked_to(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    (tmp_path / "out.nii.gz").write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        exported(tmp_path, 0)
    assert (tmp_path / "out.nii.gz").read_text() == "precious"
    assert exported(tmp_path, 0, overwrite=True).shape[3] == 37


def test_the_mask_of_the_set_is_never_replaced(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    with pytest.raises(OutputError, match="the mask of the shard set itself"):
        exported(tmp_path, 0, "mask.nii.gz", overwrite=True)


def test_a_run_that_is_damaged_leaves_no_file(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path, frames=(37, 3000))
    with ShardSet(tmp_path) as opened:
        entry = opened.runs[1]
    stored = bytearray((tmp_path / entry.shard).read_bytes())
    stored[entry.bold_offset + entry.bold_bytes * 3 // 4] ^= 1
    (tmp_path / entry.shard).write_bytes(stored)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(CorruptShardError, match=entry.run_id):
        exported(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["out.mgz", "out.gz", ".nii.gz", "nii"])
def test_names_that_are_not_of_nifti_are_refused(tmp_path: Path, make_shard_set, name: str) -> None:
    make_shard_set(tmp_path)
    with pytest.raises(UsageError, match=r"\.nii\.gz"):
        exported(tmp_path, 0, name)


@pytest.mark.parametrize(
    "asked",
    [{"start": 37}, {"start": -1}, {"num_frames": 38}, {"start": 30, "num_frames": 8}, {"num_frames": 0}],
)
def test_frames_outside_the_run_are_refused(tmp_path: Path, make_shard_set, asked: dict[str, int]) -> None:
    make_shard_set(tmp_path)
    with pytest.raises(UsageError, match="the run has 37"):
        exported(tmp_path, 0, **asked)


def test_an_image_has_no_frames(tmp_path: Path, make_shard_set) -> None:
    make_shard_set(tmp_path)
    with pytest.raises(UsageError, match="whole run"):
        exported(tmp_path, 0, what="mean", start=3)


def test_progress_counts_every_frame(tmp_path: Path, make_shard_set, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_BLOCK_BYTES", 20_000)
    make_shard_set(tmp_path)
    counts: list[int] = []
    exported(tmp_path, 1, advance=counts.append)
    assert sum(counts) == 150 and len(counts) > 3


def test_memory_does_not_grow_with_the_run(tmp_path: Path, make_shard_set, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(export, "_BLOCK_BYTES", 500_000)
    make_shard_set(tmp_path, frames=(20_000,))
    with ShardSet(tmp_path) as opened:
        run_bytes = 4 * 20_000 * opened.num_voxels
        tracemalloc.start()
        export_run(opened, 0, tmp_path / "out.nii")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < run_bytes / 4


# --- ingest and back --------------------------------------------------------------------------------------------


def ingested(src: Path, out: Path) -> ShardSet:
    from ingest.cli import main

    assert main(["--src", str(src), "--out", str(out), "--workers", "0"]) == 0
    return ShardSet(out)


def test_a_simulated_cohort_comes_back_within_the_recorded_error(tmp_path: Path) -> None:
    from ingest.simulate.cli import main

    asked = ["--subjects", "2", "--frames", "12", "--voxel-mm", "12", "--parcels", "20"]
    assert main(["--out", str(tmp_path / "cohort"), *asked]) == 0
    with ingested(tmp_path / "cohort", tmp_path / "set") as opened:
        for run, entry in enumerate(opened.runs):
            export_run(opened, run, tmp_path / f"{run}.nii.gz")
            source = nibabel.as_closest_canonical(nibabel.load(tmp_path / "cohort" / entry.source))
            found = nibabel.load(tmp_path / f"{run}.nii.gz")
            np.testing.assert_allclose(found.affine, source.affine)
            error = np.abs(found.get_fdata() - source.get_fdata())[opened.mask].max()
            assert 0 < error <= entry.error_max * (1 + 1e-6)


def test_int16_in_another_orientation_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(400, 900, (6, 7, 5, 1)) + rng.integers(-9, 10, (6, 7, 5, 30))
    image = nibabel.Nifti1Image(data.astype("i2"), np.diag([-3.0, 3.0, 3.0, 1.0]))
    image.header.set_zooms((3, 3, 3, 2.0))
    image.header.set_xyzt_units("mm", "sec")
    (tmp_path / "src").mkdir()
    nibabel.save(image, tmp_path / "src" / "sub-1_task-rest_bold.nii.gz")
    with ingested(tmp_path / "src", tmp_path / "set") as opened:
        assert opened.runs[0].lossless
        export_run(opened, 0, tmp_path / "back.nii.gz")
        found = nibabel.load(tmp_path / "back.nii.gz")
        source = nibabel.as_closest_canonical(image)
        assert found.get_data_dtype() == np.int16
        np.testing.assert_array_equal(found.affine, source.affine)
        np.testing.assert_array_equal(found.dataobj.get_unscaled()[opened.mask], source.get_fdata()[opened.mask])
