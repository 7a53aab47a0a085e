"""Dense volumes against numpy and torch: masks of any texture, all dtypes, boxes larger than the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dense import Box, Filler, VolumeType, box_around
from shards.errors import UsageError

KINDS: tuple[VolumeType, ...] = ("float16", "bfloat16", "float32")


def volumes_of(kind: VolumeType, frames: int, shape: tuple[int, int, int]) -> tuple[torch.Tensor, np.ndarray]:
    tensor = torch.zeros((frames, int(np.prod(shape))), dtype=getattr(torch, kind))
    bits = tensor.numpy() if kind == "float32" else tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor, bits


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 70)),
    density=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from(["int8", "int16", "float16", "float32"]),
    kind=st.sampled_from(KINDS),
    with_shift=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=150, deadline=None)
def test_they_are_the_rounded_products(
    shape: tuple[int, int, int], density: float, dtype: str, kind: VolumeType, with_shift: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    mask[tuple(n - 1 for n in shape)] = True
    voxels = int(mask.sum())
    q = np.rint(40 * rng.standard_normal((3, voxels))).clip(-127, 127).astype(dtype)
    gain = (1 / 16 + rng.random(voxels) / 7).astype("f4")
    shift = rng.standard_normal(voxels).astype("f4") if with_shift else None
    box = Box(origin=(0, 0, 0), shape=shape)
    tensor, bits = volumes_of(kind, 3, shape)
    Filler(mask, box, kind).fill(q, gain, shift, bits)
    exact = q.astype("f8") * gain + (0 if shift is None else shift)
    expected = torch.zeros((3, *shape), dtype=torch.float64)
    expected[:, torch.from_numpy(mask)] = torch.from_numpy(exact)
    found = tensor.view(3, *shape)
    if shift is None:
        assert torch.equal(found, expected.float().to(found.dtype))
    else:  # a compiler may round the product before the sum, or not
        torch.testing.assert_close(found.double(), expected, rtol=2**-8 if kind == "bfloat16" else 2**-10, atol=1e-6)


def test_what_is_outside_the_mask_is_not_touched() -> None:
    mask = np.zeros((3, 4, 40), bool)
    mask[1, 2, 5:38] = True
    tensor, bits = volumes_of("float16", 2, mask.shape)
    tensor.fill_(7)
    Filler(mask, Box(origin=(0, 0, 0), shape=mask.shape), "float16").fill(
        np.full((2, 33), 16, np.int8), np.full(33, 1 / 16, np.float32), None, bits
    )
    found = tensor.view(2, *mask.shape).numpy()
    assert (found[:, mask] == 1).all() and (found[:, ~mask] == 7).all()


def test_the_box_is_centred_on_the_mask_and_may_leave_the_grid() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[0:4, 3:8, 9:10] = True
    assert box_around(mask) == Box(origin=(0, 3, 9), shape=(4, 5, 1))
    box = box_around(mask, (8, 8, 8))
    assert box == Box(origin=(-2, 2, 6), shape=(8, 8, 8))
    tensor, bits = volumes_of("float32", 1, box.shape)
    q = np.arange(mask.sum(), dtype=np.int16)[None]
    Filler(mask, box, "float32").fill(q, np.ones(q.size, np.float32), None, bits)
    whole = np.zeros((20, 20, 20))
    whole[5:15, 5:15, 5:15][mask] = q[0]
    np.testing.assert_array_equal(tensor.view(box.shape).numpy(), whole[3:11, 7:15, 11:19])
    with pytest.raises(UsageError, match="3 x 8 x 8 voxels: the mask needs 4 x 5 x 1"):
        box_around(mask, (3, 8, 8))
