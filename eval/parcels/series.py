"""Region series of all runs, and the amplitude of slow fluctuations of all voxels: one pass each, then kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.parcels.blocks import Blocks
from eval.parcels.cache import RunCache
from eval.parcels.parcels import Parcels, averaging
from shards.format import xxh3

if TYPE_CHECKING:
    import dask.array

    from shards.reader import ShardSet

BAND_HZ = (0.01, 0.1)
"""The slow fluctuations of resting-state fMRI (Zang et al. 2007 use 0.01 to 0.08 Hz; up to 0.1 is common)."""


class RegionSeries:
    """Mean residual of each parcel in each frame, for every run; computed once and kept beside the shards.

    Parameters
    ----------
    shard_set : shards.reader.ShardSet
        Open shard set.
    parcels : Parcels
        The parcellation.
    out : Path
        Folder that takes the cache when the shard set's folder cannot.

    Attributes
    ----------
    cache : RunCache
        `cache.ensure(runs, ranks, threads)` computes what is missing.
    """

    def __init__(self, shard_set: ShardSet, parcels: Parcels, out: Path) -> None:
        self.parcels = parcels
        blocks, mean_PV = Blocks(shard_set), averaging(parcels)
        self.cache = RunCache(
            shard_set,
            "parcels",
            {
                "description": f"region series, {parcels.description}",
                "num_parcels": parcels.num_parcels,
                "labels": parcels_hash(parcels),
                "mask": shard_set.manifest.mask_hash,
            },
            lambda run: _projected(blocks.residual(run), mean_PV),
            out,
        )

    @property
    def num_parcels(self) -> int:
        """P."""
        return self.parcels.num_parcels

    @property
    def description(self) -> str:
        """Which parcels, for people."""
        return self.parcels.description

    def of_run(self, run: int) -> npt.NDArray[np.float32]:
        """Series of a run, shape (T, P), float32."""
        return self.cache.read(run)


def parcels_hash(parcels: Parcels) -> str:
    """Identity of a parcellation: the parcel of every voxel of the mask."""
    return xxh3(np.ascontiguousarray(parcels.labels, dtype="<i8").tobytes())


def _projected(residual: dask.array.Array, mean_PV: Any) -> dask.array.Array:
    return residual.map_blocks(
        _parcel_means, mean_PV=mean_PV, dtype=np.float32, chunks=(residual.chunks[0], (mean_PV.shape[0],))
    )


def _parcel_means(block: npt.NDArray[np.float32], mean_PV: Any) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray((mean_PV @ block.T).T, dtype=np.float32)


def amplitude_cache(shard_set: ShardSet, out: Path) -> RunCache:
    """Amplitude of slow fluctuations of every voxel of every run, shape (V,), float32.

    The mean over the frequencies of `BAND_HZ` of the square root of the power spectral density of the residual, its
    linear trend removed, in 1 / sqrt(Hz): it does not depend on the length of a run or its TR. Times the voxel's SD
    it is the ALFF of Zang et al. (2007); as it is, it is relative to the voxel's whole fluctuation, as fALFF is.
    """
    import dask

    blocks = Blocks(shard_set)

    def lazy(run: int) -> Any:
        return dask.delayed(_amplitude, pure=False)(blocks, run)

    facts = {"description": "amplitude of slow fluctuations", "band_hz": list(BAND_HZ)}
    return RunCache(shard_set, "amplitude", {**facts, "mask": shard_set.manifest.mask_hash}, lazy, out)


def band_basis(num_frames: int, tr_s: float) -> npt.NDArray[np.complex128]:
    """Fourier basis of the frequencies of `BAND_HZ` that a run has, free of constant and linear trend, shape (K, T).

    Its product with a series is the discrete Fourier transform of the series without its linear trend.
    """
    frequencies = np.fft.rfftfreq(num_frames, tr_s)
    inside = np.flatnonzero((frequencies >= BAND_HZ[0]) & (frequencies <= BAND_HZ[1]))
    time = np.arange(num_frames)
    basis = np.exp(-2j * np.pi * np.outer(inside, time) / num_frames)
    trend = np.stack([np.ones(num_frames), time - time.mean()])
    trend /= np.maximum(np.linalg.norm(trend, axis=1, keepdims=True), 1e-12)
    return np.asarray(basis - (basis @ trend.T) @ trend)


def _amplitude(blocks: Blocks, run: int) -> npt.NDArray[np.float32]:
    """Fourier sums of a run, one block after the other, so that a thread holds one block and one set of sums."""
    entry = blocks.shard_set.runs[run]
    basis = band_basis(entry.num_frames, entry.tr_s)
    both = np.concatenate([basis.real, basis.imag]).astype(np.float32)
    sums = np.zeros((len(both), blocks.shard_set.num_voxels), dtype=np.float32)
    residual, start = blocks.residual(run, times=4), 0
    for number, length in enumerate(residual.chunks[0]):
        sums += both[:, start : start + length] @ residual.blocks[number].compute(scheduler="synchronous")
        start += length
    modulus = np.hypot(sums[: len(basis)], sums[len(basis) :], out=sums[: len(basis)])
    scale = np.sqrt(2 * entry.tr_s / entry.num_frames) / max(1, len(basis))
    return np.asarray(scale * modulus.sum(axis=0), dtype=np.float32)
