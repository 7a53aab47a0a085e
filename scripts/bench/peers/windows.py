"""The simulated runs and the windows that every contender reads, with their reference values.

Noise whose temporal SD is the step that an int8 shard set has (6 bits a voxel-sample after zstd), in a mask of the
size and shape of a brain at 2 mm. The windows are those of the first epoch of `shards.loader`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from peers.contract import Key
from shards.order import training_windows
from shards.values import encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the bench is."""

    grid: tuple[int, int, int]
    voxels: int
    cube: int
    """Edge of the dense volumes; the mask lies in the middle of one."""
    runs: int
    frames: int
    length: int
    """Frames of a window."""


FULL = Size(grid=(91, 109, 91), voxels=228_483, cube=96, runs=3, frames=160, length=20)
SMOKE = Size(grid=(13, 15, 13), voxels=600, cube=14, runs=2, frames=40, length=10)
_SEMI_AXES = (0.400, 0.415, 0.370)  # of a brain in MNI space, as fractions of the 2 mm grid


class Windows:
    """The source of truth; written once by `simulate`, then opened by every process.

    Attributes
    ----------
    size : Size
    mask : ndarray of bool, (x, y, z)
    keys : list of (run, first frame)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "size.json").read_text())
        self.size = Size(**facts | {"grid": tuple(facts["grid"])})
        self.mask = np.load(folder / "mask.npy")
        size = self.size
        order = training_windows([size.frames] * size.runs, [size.length] * size.runs, seed=0, epoch=0)
        self.keys: list[Key] = list(zip(order.run.tolist(), order.start.tolist(), strict=True))

    @property
    def dense_shape(self) -> tuple[int, int, int, int]:
        """(frame, x, y, z) of a dense window."""
        return (self.size.length, *[self.size.cube] * 3)

    def stored(self, run: int) -> np.ndarray:
        """(frame, voxel) int8 of a run, from disk."""
        return np.load(self.folder / f"run-{run}.npy", mmap_mode="r")

    def window(self, run: int, start: int) -> np.ndarray:
        """(frame, voxel) int8."""
        return np.array(self.stored(run)[start : start + self.size.length])

    def volumes(self, q: np.ndarray) -> np.ndarray:
        """(frame, voxel) int8 to (frame, x, y, z) float16 residuals, zero outside the mask."""
        cubes = np.zeros((len(q), self.size.cube**3), np.float16)
        cubes[:, self.places] = q / np.float16(16)
        return cubes.reshape(len(q), *[self.size.cube] * 3)

    def dense(self) -> Iterator[tuple[Key, np.ndarray]]:
        """Every window as (frame, x, y, z) float16."""
        for run, start in self.keys:
            yield (run, start), self.volumes(self.window(run, start))

    @cached_property
    def origin(self) -> tuple[int, int, int]:
        """Grid index of the cube's first voxel: the mask's bounding box lies in the middle."""
        found = []
        for axis in range(3):
            inside = np.flatnonzero(self.mask.any(tuple({0, 1, 2} - {axis})))
            extent = int(inside[-1] - inside[0] + 1)
            found.append(int(inside[0]) - (self.size.cube - extent) // 2)
        return found[0], found[1], found[2]

    @cached_property
    def places(self) -> np.ndarray:
        """(voxel,) positions in the flattened cube."""
        inside = np.argwhere(self.mask) - np.asarray(self.origin)
        return np.ravel_multi_index(tuple(inside.T), [self.size.cube] * 3)

    def digest(self, delivers: str, key: Key) -> int:
        """XXH3-64 of any window, as `int8` or `dense`; those of `keys` were computed when the runs were simulated."""
        if (delivers, key) not in self._digests:
            q = self.window(*key)
            self._digests[delivers, key] = xxhash.xxh3_64_intdigest(q if delivers == "int8" else self.volumes(q))
        return self._digests[delivers, key]

    @cached_property
    def _digests(self) -> dict[tuple[str, Key], int]:
        path = self.folder / "digests.json"
        known = json.loads(path.read_text()) if path.exists() else []
        return {(kind, (run, start)): digest for kind, run, start, digest in known}


def simulate(folder: Path, size: Size) -> Windows:
    """Write runs, mask and digests into a new folder."""
    folder.mkdir()
    (folder / "size.json").write_text(json.dumps(asdict(size)))
    np.save(folder / "mask.npy", ellipsoid(size.grid, size.voxels))
    rng = np.random.default_rng(0)
    for run in range(size.runs):
        noise = rng.standard_normal((size.frames, size.voxels), dtype="f4")
        np.save(folder / f"run-{run}.npy", encode(noise, "int8").q)
    windows = Windows(folder)
    digests = [(kind, *key, windows.digest(kind, key)) for kind in ("int8", "dense") for key in windows.keys]
    (folder / "digests.json").write_text(json.dumps(digests))
    return windows


def ellipsoid(grid: tuple[int, int, int], voxels: int) -> np.ndarray:
    """A mask of exactly this many voxels, in the proportions of a brain."""
    radii = [fraction * n for fraction, n in zip(_SEMI_AXES, grid, strict=True)]
    axes = [(np.arange(n) - (n - 1) / 2) / radius for n, radius in zip(grid, radii, strict=True)]
    distance = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij"))
    mask = np.zeros(distance.size, bool)
    mask[np.argsort(distance.ravel(), kind="stable")[:voxels]] = True
    return mask.reshape(grid)
