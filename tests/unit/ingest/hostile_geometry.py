"""Affines that are none, and runs that lie elsewhere than the others."""

from __future__ import annotations

import nibabel
import numpy as np
from hostile_case import IMAGE, STORED, VALUES, Case, array, content, fails, header, nifti2, takes, zipped
from numpy.typing import NDArray

RUN = VALUES.astype(np.float32)
AFFINE = IMAGE.affine
OTHER_GRID = ("grid", "other-grid")
BAD_AFFINE = ("header", "bad-affine")


def rows(affine: NDArray) -> dict[str, NDArray]:
    """The header's fields for a 3 x 4 or 4 x 4 affine."""
    return {f"srow_{axis}": affine[k] for k, axis in enumerate("xyz")}


def moved(x_mm: float) -> NDArray:
    affine = AFFINE.copy()
    affine[0, 3] += x_mm
    return affine


def turned(degrees: float) -> NDArray:
    """The good runs' affine, turned about z."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return turn @ AFFINE


def flipped(*axes: int) -> tuple[NDArray, NDArray]:
    """The same run stored with these axes reversed."""
    affine = AFFINE.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (RUN.shape[axis] - 1)
        affine[:3, axis] *= -1
    return np.flip(RUN, axes), affine


def permuted(*order: int) -> tuple[NDArray, NDArray]:
    """The same run stored with its axes in another order."""
    return RUN.transpose(*order, 3), AFFINE[:, [*order, 3]]


def qform_only(**fields: float) -> dict[str, object]:
    """Fields that leave the orientation to the quaternion: that of nibabel, or one with these fields changed."""
    image = nibabel.Nifti1Image(RUN, AFFINE)
    image.set_qform(AFFINE, 2)
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "pixdim")
    found = {name: image.header[name] for name in names}
    found["pixdim"] = {k: float(image.header["pixdim"][k]) for k in range(4)}
    return {**found, "qform_code": 2, "sform_code": 0, **fields}


def stack(*shape: int) -> NDArray:
    return np.random.default_rng(5).normal(1000, 20, shape).astype(np.float32)


SINGULAR = AFFINE.copy()
SINGULAR[2, 2] = 0
PARALLEL = AFFINE.copy()
PARALLEL[:, 1] = 2 * PARALLEL[:, 0]
METRES, MICRONS = (AFFINE * [[factor], [factor], [factor], [1]] for factor in (1e-3, 1e3))
WORDS = "affine is not finite and invertible"

CASES: list[Case] = [
    fails("an axis without length", header(**rows(SINGULAR)), *BAD_AFFINE, WORDS),
    fails("affine of zeros", header(**rows(np.zeros((3, 4)))), *BAD_AFFINE, WORDS),
    fails("affine of nan", header(**rows(np.full((3, 4), np.nan))), *BAD_AFFINE, WORDS),
    fails("an infinite origin", header(**rows(moved(np.inf))), *BAD_AFFINE, WORDS),
    fails("two axes in one direction", header(**rows(PARALLEL)), *BAD_AFFINE, WORDS),
    fails("voxels of 1e30 mm", header(**rows(1e30 * AFFINE)), *OTHER_GRID, "the set's is"),
    fails("voxels of 1e300 mm", content(lambda: zipped(nifti2(**rows(1e300 * AFFINE)))), *BAD_AFFINE, WORDS),
    fails("voxels of 1e-300 mm", content(lambda: zipped(nifti2(**rows(1e-300 * AFFINE)))), *BAD_AFFINE, WORDS),
    fails("quaternion longer than 1", header(**qform_only(quatern_b=2.0)), *BAD_AFFINE, "orientation makes no sense"),
    fails("quaternion of nan", header(**qform_only(quatern_c=np.nan)), *BAD_AFFINE, ""),
    fails("handedness neither 1 nor -1", header(**qform_only(pixdim={0: 3.0})), *BAD_AFFINE, ""),
    fails("qform with pixdim 0", header(**qform_only(pixdim={1: 0.0})), *BAD_AFFINE, ""),
    fails("qform with pixdim nan", header(**qform_only(pixdim={2: np.nan})), *BAD_AFFINE, ""),
    fails("qform with a negative pixdim", header(**qform_only(pixdim={3: -3.5})), *BAD_AFFINE, ""),
    takes("qform only", header(**qform_only()), STORED),
    takes(
        "handedness 0 with a qform",
        header(**{**qform_only(), "pixdim": {0: 0.0}, **rows(AFFINE), "sform_code": 1}),
        STORED,
    ),
    takes("sform and qform disagree", header(**{**qform_only(qoffset_x=99.0), "sform_code": 2}), STORED),
    takes("a code of no space", header(sform_code=99), STORED),
    fails("neither sform nor qform", header(sform_code=0, qform_code=0), *OTHER_GRID, "the set's is"),
    # where it lies
    *(
        takes(f"the same run with axes {axes} reversed", array(flipped(*axes)[0], affine=flipped(*axes)[1]), STORED)
        for axes in ((0,), (1,), (0, 1, 2))
    ),
    *(
        takes(
            f"the same run with axes in order {order}", array(permuted(*order)[0], affine=permuted(*order)[1]), STORED
        )
        for order in ((1, 0, 2), (2, 0, 1))
    ),
    takes("0.1 micrometre aside", array(RUN, affine=moved(1e-4)), STORED),
    takes("turned by a millionth of a degree", array(RUN, affine=turned(1e-6)), STORED),
    fails("half a voxel aside", array(RUN, affine=moved(1.5)), *OTHER_GRID, "the set's is"),
    fails("turned by 10 degrees", array(RUN, affine=turned(10)), *OTHER_GRID, "the set's is"),
    takes("left and right exchanged on a grid that is symmetrical", array(RUN, affine=AFFINE * [[-1], [1], [1], [1]])),
    fails("axes swapped in the data only", array(RUN.transpose(1, 0, 2, 3)), *OTHER_GRID, "6 x 5 x 4"),
    fails("in metres", array(RUN, affine=METRES), *OTHER_GRID, "0.003 x 0.003 x 0.0035 mm"),
    fails("in micrometres", array(RUN, affine=MICRONS), *OTHER_GRID, "3000 x 3000 x 3500 mm"),
    fails("one slice", array(RUN[:, :, 2:3]), *OTHER_GRID, "5 x 6 x 1"),
    fails("one voxel", array(RUN[2:3, 2:3, 2:3]), *OTHER_GRID, "1 x 1 x 1"),
    fails("one voxel less", array(RUN[:, :-1]), *OTHER_GRID, "5 x 5 x 4"),
    # axes
    fails("one axis", array(stack(2400)), "header", "not-4d", "wanted 4D"),
    fails("two axes", array(stack(30, 80)), "header", "not-4d", "wanted 4D"),
    fails("three axes", array(RUN[..., 0]), "header", "not-4d", "3D (5 x 6 x 4), wanted 4D"),
    fails("five axes", array(stack(5, 6, 4, 10, 2)), "header", "not-4d", "5D"),
    fails("time on the fifth axis", array(stack(5, 6, 4, 1, 20)), "header", "not-4d", "5D"),
    fails("seven axes", array(stack(5, 6, 4, 2, 2, 2, 2)), "header", "not-4d", "7D"),
    takes("a fifth axis of one", array(RUN[..., None]), STORED),
    fails("one frame", array(RUN[..., :1]), "header", "not-4d", "3D"),
    fails("two frames", array(RUN[..., :2]), "frames", "too-few-frames", "2 frames, wanted 10"),
    fails("one frame fewer than wanted", array(RUN[..., :9]), "frames", "too-few-frames", "9 frames, wanted 10"),
    takes("as few frames as allowed", array(RUN[..., :10]), STORED[..., :10]),
]
