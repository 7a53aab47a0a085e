"""Values that are no numbers, too large, too small, or all the same, and scalings that make them so."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from hostile_case import PLAIN, VALUES, Case, Write, array, canonical, content, fails, nifti2, takes, zipped
from numpy.typing import NDArray

RUN = VALUES.astype(np.float32)
NOISE = np.random.default_rng(3).standard_normal(RUN.shape)
INSIDE, OUTSIDE = (2, 3, 2), (0, 0, 0)
"""A voxel of the mask, and one that is not in it."""
NOT_FINITE = ("values", "not-finite")
CONSTANT = ("constant", "constant")
STILL = "no voxel in the mask varies"
OF_60 = "of 60 voxels in the mask"


def changed(change: Callable[[NDArray], None], dtype: str = "float32") -> Write:
    """The run with some of its values changed."""
    values = VALUES.astype(dtype)
    change(values)
    return array(values)


def put(voxel: tuple[int, ...], value: float, frames: slice = slice(4, 5)) -> Write:
    def change(values: NDArray) -> None:
        values[(*voxel, frames)] = value

    return changed(change)


def scaled(slope: float, inter: float, dtype: str = "int16", values: NDArray | None = None) -> Write:
    """The run as integers with a scaling in its header."""
    stored = np.rint(VALUES if values is None else values).astype(dtype)
    return array(stored, scl_slope=slope, scl_inter=inter)


def scaled2(slope: float, inter: float) -> Write:
    """The run as NIfTI-2, whose scaling has 64 bits."""
    return content(lambda: zipped(nifti2(scl_slope=slope, scl_inter=inter)))


def payload() -> bytes:
    """A signalling nan with its own payload in a voxel of the mask."""
    where = 352 + 4 * int(np.ravel_multi_index((*INSIDE, 4), RUN.shape, order="F"))
    return PLAIN[:where] + struct.pack("<I", 0x7FA12345) + PLAIN[where + 4 :]


def half_frozen(values: NDArray) -> None:
    """The scanner stopped, the file goes on."""
    values[..., 10:] = values[..., 9:10]


def steps(low: int, high: int, dtype: str) -> NDArray:
    """Integers of both ends of a type's range, in every voxel of the mask."""
    values = np.zeros(RUN.shape, dtype)
    values[1:, 1:, 1:] = np.where(NOISE[1:, 1:, 1:] > 0, np.array(high, dtype), np.array(low, dtype))
    return values


def integers(dtype: str) -> Write:
    """A run of every NIfTI integer type, over all that the type can hold."""
    limits = np.iinfo(dtype)
    return array(steps(int(limits.min), int(limits.max), dtype))


INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")

CASES: list[Case] = [
    # no numbers
    fails("nan in one voxel of one frame", put(INSIDE, np.nan), *NOT_FINITE, f"1 {OF_60}"),
    fails("infinity in one voxel", put(INSIDE, np.inf), *NOT_FINITE, f"1 {OF_60}"),
    fails("minus infinity in one voxel", put(INSIDE, -np.inf), *NOT_FINITE, f"1 {OF_60}"),
    fails("both infinities in one voxel", put(INSIDE, [np.inf, -np.inf], slice(4, 6)), *NOT_FINITE, f"1 {OF_60}"),
    fails("a signalling nan", content(lambda: zipped(payload())), *NOT_FINITE, f"1 {OF_60}"),
    fails("nan in one frame", put((Ellipsis,), np.nan), *NOT_FINITE, f"60 {OF_60}"),
    fails("nothing but nan", array(np.full_like(RUN, np.nan)), *NOT_FINITE, f"60 {OF_60}"),
    takes("nan outside the mask", put(OUTSIDE, np.nan, slice(None))),
    takes("infinity outside the mask", put(OUTSIDE, np.inf)),
    # the same all the time
    fails("zeros", array(np.zeros_like(RUN)), *CONSTANT, STILL),
    fails("sevens", array(np.full(RUN.shape, 7, np.int16)), *CONSTANT, STILL),
    fails("one volume over and over", array(np.repeat(RUN[..., :1], 20, axis=3)), *CONSTANT, STILL),
    fails("varies outside the mask only", array(np.where(RUN > 0, 1000, NOISE).astype(np.float32)), *CONSTANT, STILL),
    takes(
        "one voxel that varies", array(np.where(np.arange(20) + np.zeros_like(RUN) == 3, RUN, 900).astype(np.float32))
    ),
    takes("frozen from the middle", changed(half_frozen)),
    takes("one constant voxel", put(INSIDE, 5, slice(None))),
    takes("two different frames", array(np.where(np.arange(20) < 19, RUN[..., :1], RUN[..., 1:2]).astype(np.float32))),
    takes("mean of zero", array(NOISE.astype(np.float32))),
    takes("negative throughout", array(-RUN)),
    # large and small
    takes("a spike of 1e30", put(INSIDE, 1e30)),
    takes("around 1e38", array((1e35 * RUN).astype(np.float32))),
    fails(
        "over the whole of float32", array(np.where(NOISE > 1.5, -3e38, 3e38).astype(np.float32)), *NOT_FINITE, OF_60
    ),
    fails("float64 beyond float32", array(1e300 * VALUES), *NOT_FINITE, f"60 {OF_60}"),
    fails(
        "1e39 in one voxel",
        changed(lambda run: run.__setitem__((*INSIDE, 4), 1e39), "float64"),
        *NOT_FINITE,
        f"1 {OF_60}",
    ),
    fails("float64 that float32 cannot tell apart", array(1e9 + 1e-3 * NOISE), *CONSTANT, STILL),
    fails("denormal float32", array((1e-42 * NOISE).astype(np.float32)), *NOT_FINITE, f"60 {OF_60}"),
    fails("float64 below float32", array(1e-300 * NOISE), *CONSTANT, STILL),
    takes("1e-30", array((1e-30 * NOISE).astype(np.float32))),
    *(takes(f"{dtype} from end to end", integers(dtype)) for dtype in INTEGERS),
    fails("int64 at the top", array(np.int64(2**63 - 1) - np.rint(9 * NOISE**2).astype(np.int64)), *CONSTANT, STILL),
    fails("uint64 at the top", array(np.uint64(2**64 - 1) - np.rint(9 * NOISE**2).astype(np.uint64)), *CONSTANT, STILL),
    takes("int64 beyond 2^53 in steps that float32 can tell apart", array((VALUES * 2**50).astype(np.int64))),
    # scaling
    takes("slope 0 is no scaling", scaled(0, 5), canonical(np.rint(VALUES))),
    takes("slope nan is no scaling", scaled(np.nan, np.nan), canonical(np.rint(VALUES))),
    takes("slope infinite is no scaling", scaled(np.inf, 1), canonical(np.rint(VALUES))),
    takes("negative slope", scaled(-0.25, 10)),
    takes("slope of 1e-30", scaled(1e-30, 0)),
    takes("slope of 1e30", scaled(1e30, 0)),
    fails("slope of 1e38", scaled(1e38, 0), *NOT_FINITE, f"60 {OF_60}"),
    fails("slope of 1e300", scaled2(1e300, 0), *NOT_FINITE, f"60 {OF_60}"),
    fails("slope of 1e-300", scaled2(1e-300, 0), *CONSTANT, STILL),
    fails("denormal slope", scaled(1e-45, 0), *NOT_FINITE, f"60 {OF_60}"),
    fails("inter that swallows the signal", scaled(1, 1e30), *CONSTANT, STILL),
    fails("inter nan", scaled(1, np.nan), "header", "bad-scaling", "scl_inter"),
    fails("inter infinite", scaled(1, np.inf), "header", "bad-scaling", "scl_inter"),
    takes("slope over int64", scaled(2.0**-40, -1024, "int64", VALUES * 2**40)),
]
