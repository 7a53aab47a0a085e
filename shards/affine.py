"""What turns stored values into model input, in the form that is cheap to keep and to put into a batch.

Legend: V voxel.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards import values
from shards.format import xxh3
from shards.values import STEPS_PER_SD

Float32 = NDArray[np.float32]

SPARSE_BELOW = 0.25
"""Share of voxels up to which the exceptions are kept in memory instead of all gains."""
WIDE = "wide"
"""Optional key of a run's JSON: its exceptions, so that a reader need not read the statistics for them."""
LISTED_BELOW = 1 / 16
"""Share of voxels up to which a writer lists the exceptions there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """residual = gain * q + shift, where gain is one number for all voxels of a run but a few.

    An int8 voxel's gain is 1/16 unless its largest deviation passes 7.9 SD, where its step was widened.
    In recordings with movement most runs have such voxels and few voxels are such, so the exceptions
    are what is worth keeping.
    """

    base: float
    voxels: NDArray[np.int32]
    """Those with a gain of their own."""
    own: Float32
    """Their gains."""
    dense_V: Float32 | None = None
    """All gains, where exceptions are many."""
    shift_V: Float32 | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.voxels, self.own, self.dense_V, self.shift_V)
        return sum(array.nbytes for array in arrays if array is not None)

    def put(self, row_V: Float32, before: Gain | None) -> None:
        """Write the gains into a row that holds those of `before`, or anything if that is None."""
        if self.dense_V is not None:
            row_V[:] = self.dense_V
            return
        if before is None or before.dense_V is not None or before.base != self.base:
            row_V.fill(self.base)
        else:
            row_V[before.voxels] = self.base
        row_V[self.voxels] = self.own


@dataclass(frozen=True, kw_only=True, slots=True)
class Intensity:
    """intensity = level + spread * residual: the signal over the mean and SD of all the run's brain.

    The second input channel of TFF, which holds the anatomy.
    """

    level_V: Float32
    spread_V: Float32


def even_gain(dtype: str) -> Gain:
    """The gain of a run without exceptions."""
    nothing = np.zeros(0, np.int32)
    return Gain(base=1 / STEPS_PER_SD.get(dtype, 1), voxels=nothing, own=nothing.astype(np.float32))


def gain_of(mean_V: Float32, std_V: Float32, scale_V: Float32, dtype: str) -> Gain:
    """The gain of a run from its statistics; constant voxels hold q = 0, so theirs does not matter."""
    gain_V, shift_V = values.residual_affine(mean_V, std_V, scale_V, dtype)
    steps = STEPS_PER_SD.get(dtype)
    base = 1 / (steps or 1)
    # the rule by which runs.tsv counts them, not the gain itself, which is rounded once more
    wide_V = (scale_V != std_V / np.float32(steps)) & (std_V > 0) if steps else np.zeros(len(std_V), bool)
    voxels = np.flatnonzero(wide_V).astype(np.int32)
    many = shift_V is not None or len(voxels) > SPARSE_BELOW * len(gain_V)
    return Gain(
        base=base,
        voxels=voxels[:0] if many else voxels,
        own=gain_V[:0] if many else gain_V[voxels],
        dense_V=gain_V if many else None,
        shift_V=shift_V,
    )


def list_wide(gain: Gain, num_voxels: int) -> dict[str, str] | None:
    """The exceptions as text for a run's JSON; None where there are none, or too many."""
    if gain.dense_V is not None or not 0 < len(gain.voxels) <= LISTED_BELOW * num_voxels:
        return None
    voxels, own = gain.voxels.astype("<i4").tobytes(), gain.own.astype("<f4").tobytes()
    return {"voxels": _as_text(voxels), "gains": _as_text(own), "xxh3": xxh3(voxels + own)}


def read_wide(listed: object, count: int, num_voxels: int, dtype: str) -> Gain:
    """The gain of a run from its JSON.

    Parameters
    ----------
    listed
        What `list_wide` gave.
    count
        Of the run's wide voxels, as `runs.tsv` tells.

    Raises
    ------
    ValueError
        It is not what a writer made for such a run.
    """
    if not isinstance(listed, dict):
        raise ValueError(f"{WIDE} in .json is no object")
    voxels, own = (base64.b64decode(str(listed.get(key)), validate=True) for key in ("voxels", "gains"))
    if listed.get("xxh3") != xxh3(voxels + own) or len(voxels) != 4 * count or len(own) != 4 * count:
        raise ValueError(f"{WIDE} in .json is damaged or not of {count} voxels")
    at, gains = np.frombuffer(voxels, "<i4"), np.frombuffer(own, "<f4")
    if at[0] < 0 or at[-1] >= num_voxels or (np.diff(at) <= 0).any() or not (np.isfinite(gains) & (gains > 0)).all():
        raise ValueError(f"{WIDE} in .json names voxels or gains that cannot be")
    return Gain(base=1 / STEPS_PER_SD[dtype], voxels=at, own=gains)


def _as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def intensity_of(mean_V: Float32, std_V: Float32) -> Intensity:
    """Level and spread of a run from its statistics, in float64 until the end."""
    mean, std = mean_V.astype(np.float64), std_V.astype(np.float64)
    centre = mean.mean()
    deviation = np.sqrt((std**2 + (mean - centre) ** 2).mean())
    deviation = deviation if deviation > 0 else 1.0
    return Intensity(
        level_V=((mean - centre) / deviation).astype(np.float32), spread_V=(std / deviation).astype(np.float32)
    )
