"""The common grid and the three ways to a mask."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nifti_files import AFFINE, SHAPE, bold_image, save

from ingest.check import check_run
from ingest.grid import canonical_grid, most_frequent, same_grid
from ingest.mask import combined_mask, computed_mask, evenly
from ingest.record import RunRecord
from shards.format import Grid


def grid(shift_mm: float = 0.0, shape: tuple[int, int, int] = (4, 5, 6)) -> Grid:
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 3] = shift_mm
    return Grid(shape=shape, affine=tuple(map(tuple, affine.tolist())))


def test_the_most_frequent_grid_wins_and_the_first_of_equals():
    a, b, c = grid(), grid(5.0), grid(shape=(4, 5, 7))
    assert most_frequent([a, b, b, c]) is b
    assert most_frequent([c, a, b, b, a]) is a
    assert most_frequent([b]) is b


def test_a_thousandth_of_a_millimetre_is_the_same_grid():
    assert same_grid(grid(), grid(0.0009)) and not same_grid(grid(), grid(0.0011))
    assert most_frequent([grid(), grid(5.0), grid(0.0009)]) == grid()


def test_orientation_alone_makes_no_other_grid(tmp_path):
    image = bold_image(0)
    flipped = nibabel.as_closest_canonical(image)
    grids = [
        canonical_grid(check_run(RunRecord(subject="x", bold=path), min_frames=2, tr_s=None).header)
        for path in (save(image, tmp_path / "a.nii"), save(flipped, tmp_path / "b.nii"))
    ]
    assert same_grid(*grids)


@pytest.mark.parametrize(("count", "most"), [(0, 3), (3, 3), (10, 3), (1000, 200), (201, 200)])
def test_samples_are_evenly_spaced_and_start_with_the_first(count, most):
    chosen = evenly(range(count), most)
    assert len(chosen) == min(count, most) == len(set(chosen)) and chosen == sorted(chosen)
    assert chosen[:1] == list(range(count))[:1]


def checked(path, mask=None):
    return check_run(RunRecord(subject=path.name.split(".")[0], bold=path, mask=mask), min_frames=2, tr_s=None)


def with_masks(tmp_path, masks):
    runs = []
    for k, voxels in enumerate(masks):
        mask = save(nibabel.Nifti1Image(voxels.astype(np.uint8), AFFINE), tmp_path / f"m{k}.nii.gz")
        runs.append(checked(save(bold_image(k), tmp_path / f"b{k}.nii.gz"), mask))
    return runs


def test_own_masks_are_combined_by_half(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random(SHAPE) < 0.5 for _ in range(4)]
    runs = with_masks(tmp_path, masks)
    mask, notes = combined_mask(runs, canonical_grid(runs[0].header))
    wanted = nibabel.Nifti1Image((np.sum(masks, 0) >= 2).astype(np.uint8), AFFINE)
    np.testing.assert_array_equal(mask.voxels, nibabel.as_closest_canonical(wanted).get_fdata() != 0)
    assert not notes and "half of 4 masks" in mask.source


def test_masks_that_do_not_fit_are_named_and_not_counted(tmp_path):
    full = np.ones(SHAPE)
    runs = with_masks(tmp_path, [full, full, full])
    save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)), runs[0].record.mask)
    runs[1].record.mask.write_text("no image")
    mask, notes = combined_mask(runs, canonical_grid(runs[0].header))
    assert "half of 1 masks" in mask.source and mask.voxels.all()
    assert [note.split(": ")[1] for note in notes] == ["m0.nii.gz", "m1.nii.gz"]
    assert combined_mask([checked(save(bold_image(0), tmp_path / "x.nii"))], canonical_grid(runs[0].header))[0] is None


def head(seed: int) -> nibabel.Nifti1Image:
    """A bright ball in dark noise, large enough for nilearn's morphology."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    ball = sum(axis**2 for axis in axes) < 0.5
    data = np.where(ball[..., None], 1000 + 20 * rng.standard_normal((24, 24, 24, 6)), 5 * rng.random((24, 24, 24, 6)))
    return nibabel.Nifti1Image(data.astype(np.float32), np.diag([3.0, 3, 3, 1]))


def test_computed_mask_is_nilearns_on_the_mean_image(tmp_path):
    from nilearn.masking import compute_epi_mask

    images = [head(k) for k in range(2)]
    for image in images:
        image.header["pixdim"][4] = 2
    runs = [checked(save(image, tmp_path / f"h{k}.nii.gz")) for k, image in enumerate(images)]
    mask = computed_mask(runs, canonical_grid(runs[0].header), pytest.fail)
    mean = np.mean([image.get_fdata().mean(-1) for image in images], 0).astype(np.float32)
    wanted = compute_epi_mask(nibabel.Nifti1Image(mean, images[0].affine)).get_fdata() != 0
    np.testing.assert_array_equal(mask.voxels, wanted)
    assert mask.source == "computed: nilearn compute_epi_mask of the mean image of 2 runs"


def test_tiny_grids_fall_back_to_varying_bright_voxels(tmp_path):
    run = checked(save(bold_image(0), tmp_path / "x.nii.gz"))
    mask = computed_mask([run], canonical_grid(run.header), pytest.fail)
    np.testing.assert_array_equal(mask.voxels, nibabel.as_closest_canonical(bold_image(0)).get_fdata().std(-1) > 0)
    assert "20 % of the 98th percentile" in mask.source


def test_runs_that_cannot_be_read_are_replaced_in_the_sample(tmp_path):
    runs = [checked(save(bold_image(k), tmp_path / f"x{k}.nii.gz")) for k in range(7)]
    for k in (0, 3):
        path = runs[k].record.bold
        path.write_bytes(path.read_bytes()[:-20])
    failed = []
    mask = computed_mask(runs, canonical_grid(runs[0].header), lambda run, error: failed.append((run, error.stage)))
    assert [(run.record.subject, stage) for run, stage in failed] == [("x0", "data"), ("x3", "data")]
    assert "mean image of 5 runs" in mask.source


def test_runs_centred_on_zero_have_the_mask_of_what_varies(tmp_path):
    """XCP-D's series have no mean, so brightness says nothing of where the brain is."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((6, 7, 5, 20)).astype("f4")
    values -= values.mean(axis=3, keepdims=True)
    inside = np.zeros((6, 7, 5), bool)
    inside[1:5, 2:6, 1:4] = True
    values[~inside] = 0
    path = save(nibabel.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "s.nii.gz")
    run = check_run(RunRecord(subject="x", bold=path), min_frames=2, tr_s=2.0)
    mask = computed_mask([run], canonical_grid(run.header), lambda *_: None)
    np.testing.assert_array_equal(mask.voxels, inside)
    assert "centred on zero" in mask.source
