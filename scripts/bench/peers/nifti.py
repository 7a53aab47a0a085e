"""nibabel: a slice of a .nii or .nii.gz that holds the residuals as float32, into the cube as float16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
from zlib_ng import gzip_ng

from peers.contract import Consume, Contender, Opened
from peers.windows import Windows

PACKAGES: dict[str, str] = {}
_NAME, _LEVEL = "bold.nii", 6
_COUNTS = {"": 4, ".gz": 2}


def prepare(windows: Windows, folder: Path) -> None:
    """Write run 0, z-scored already, plain and compressed: a trainer would z-score the window as well."""
    signal = np.zeros((windows.size.frames, *windows.size.grid), np.float32)
    signal[:, windows.mask] = windows.stored(0) / np.float32(16)
    image = nibabel.Nifti1Image(np.moveaxis(signal, 0, 3), np.diag([2.0, 2.0, 2.0, 1.0]))
    nibabel.save(image, folder / _NAME)
    with gzip_ng.open(folder / f"{_NAME}.gz", "wb", compresslevel=_LEVEL) as packed:
        packed.write((folder / _NAME).read_bytes())


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """Some windows of run 0 only: these are slow."""
    return [
        Contender(
            name=f"nibabel slice of a {'.nii' + suffix}",
            delivers="dense",
            workers=1,
            open=_slicing(windows, folder / f"{_NAME}{suffix}", count),
            cold=not suffix,
            num_windows=count,
        )
        for suffix, count in _COUNTS.items()
    ]


def _slicing(windows: Windows, path: Path, count: int) -> Callable:
    @contextmanager
    def opened() -> Opened:
        image = nibabel.load(path)
        assert isinstance(image, nibabel.Nifti1Image)
        inside, outside = _overlap(windows)
        starts = [start for run, start in windows.keys if run == 0][:count]
        volumes = np.zeros(windows.dense_shape, np.float16)

        def read(consume: Consume) -> None:
            for start in starts:
                signal = np.asanyarray(image.dataobj[..., start : start + windows.size.length])
                volumes[(slice(None), *inside)] = np.moveaxis(signal[outside], 3, 0)
                consume(volumes, 0, start)

        yield read

    return opened


def _overlap(windows: Windows) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the grid and the cube overlap: as slices of the cube, and of the grid."""
    inside, outside = [], []
    for first, count in zip(windows.origin, windows.size.grid, strict=True):
        low, high = max(first, 0), min(first + windows.size.cube, count)
        inside.append(slice(low - first, high - first))
        outside.append(slice(low, high))
    return tuple(inside), tuple(outside)
