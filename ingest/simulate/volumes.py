"""4D images of simulated runs: mean image x (1 + parcel signal + drift + global) + smooth AR(1) noise, and jerks.

Painted in blocks of frames straight into the gzip stream, so memory does not grow with the length of a run.

Axes: T frame, N frames of a block, V voxel of the mask in C order, R parcel.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ingest.simulate.anatomy import Anatomy, mean_image, site_gain, smooth, smoothed_sd
from ingest.simulate.cohort import Stream, Subject, random_stream
from ingest.simulate.config import SimulateConfig
from ingest.simulate.confounds import HeadMotion
from ingest.simulate.regions import haemodynamic_response

TSNR = 60.0
"""Mean of the brain over the SD of the thermal noise, at a site whose gain is 1."""
NOISE_FWHM_MM = 5.0
NOISE_LAG1 = 0.25
DRIFT_PERCENT = 0.2
GLOBAL_PERCENT = 0.15
JERK_RESIDUAL = 0.1
"""Fraction of a jerk that realignment leaves in the image."""
JERK_LOSS_PERCENT_PER_MM = 0.5
NON_STEADY_GAIN = 0.2
"""Of frame 0, relative; it halves from frame to frame."""
NUM_TISSUE_VOXELS = 1000
"""Most white matter and CSF voxels whose series are kept."""
_VALUES_PER_BLOCK = 2_000_000


def paint(
    config: SimulateConfig,
    anatomy: Anatomy,
    subject: Subject,
    series_TR: npt.NDArray[np.float32],
    motion: HeadMotion,
) -> Iterator[npt.NDArray[np.int16]]:
    """Yield the masked frames of a run in blocks.

    Parameters
    ----------
    config, anatomy, subject
        Who is scanned, and how.
    series_TR : float32 array (T, R)
        Percent of the mean intensity, from `region_series`.
    motion : HeadMotion
        From `draw_motion`.

    Yields
    ------
    int16 array (N, V)
        Consecutive frames, arbitrary units.
    """
    rng = random_stream(config, Stream.VOXELS, subject.index)
    mean_V = mean_image(config, anatomy, subject)
    noise_sd = float(mean_V.mean()) * site_gain(config, subject) / TSNR
    common_T = (_drift(config, rng) + _global_signal(config, rng)) / 100
    jerk_mm_T = np.linalg.norm(motion.jerk_mm_T3, axis=1)
    common_T = common_T - JERK_LOSS_PERCENT_PER_MM / 100 * jerk_mm_T
    common_T[: config.non_steady] += NON_STEADY_GAIN * 0.5 ** np.arange(config.non_steady)
    common_T = common_T.astype(np.float32)
    residual_mm_T3 = (JERK_RESIDUAL * motion.jerk_mm_T3).astype(np.float32)
    start = 0
    for noise_NV in _smooth_ar1_noise(config, anatomy, rng):
        frames = slice(start, start + len(noise_NV))
        start = frames.stop
        change_NV = series_TR[frames][:, anatomy.labels_V] / np.float32(100) + common_T[frames, None]
        values_NV = mean_V * (1 + change_NV) + np.float32(noise_sd) * noise_NV
        values_NV -= residual_mm_T3[frames] @ anatomy.gradient_V3.T
        yield np.clip(np.rint(values_NV), 0, np.iinfo(np.int16).max).astype(np.int16)


def _drift(config: SimulateConfig, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Scanner drift (T,) in percent: a line and half a cosine of random sizes."""
    t = np.linspace(-1, 1, config.frames)
    slope, bend = DRIFT_PERCENT * rng.standard_normal(2)
    return np.asarray(slope * t + bend * np.cos(np.pi * t))


def _global_signal(config: SimulateConfig, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Signal (T,) in percent that all voxels share."""
    response = haemodynamic_response(config.tr_s)
    noise = rng.standard_normal(config.frames + len(response) - 1)
    return GLOBAL_PERCENT * np.convolve(noise, response / np.linalg.norm(response), mode="valid")


def _smooth_ar1_noise(
    config: SimulateConfig, anatomy: Anatomy, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield blocks (N, V) of noise of unit SD, smooth in space and AR(1) in time."""
    sigma = NOISE_FWHM_MM / 2.355 / anatomy.voxel_mm
    margin = math.ceil(2 * sigma) + 1  # keeps opposite sides of the periodic box apart
    corners = np.argwhere(anatomy.mask)
    box = tuple(slice(low, high + 1) for low, high in zip(corners.min(0), corners.max(0), strict=True))
    mask = np.pad(anatomy.mask[box], [(0, margin)] * 3)
    inside = np.flatnonzero(mask)
    scale = np.float32(1 / smoothed_sd(sigma, 3))
    fresh = np.float32(math.sqrt(1 - NOISE_LAG1**2))
    block = max(1, _VALUES_PER_BLOCK // mask.size)
    before = None
    for start in range(0, config.frames, block):
        shape = (min(block, config.frames - start), *mask.shape)
        noise = smooth(rng.standard_normal(shape, dtype=np.float32), sigma)
        noise_NV = noise.reshape(len(noise), -1)[:, inside] * scale
        for n in range(len(noise_NV)):
            if before is not None:
                noise_NV[n] = np.float32(NOISE_LAG1) * before + fresh * noise_NV[n]
            before = noise_NV[n]
        yield noise_NV


class FrameSignals:
    """Tissue means, DVARS and some tissue voxels of a run, measured block by block."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._rows: dict[str, list[float]] = {"csf": [], "white_matter": [], "global_signal": [], "dvars": []}
        self._squared_V = np.zeros(len(anatomy.labels_V))
        self._before: npt.NDArray[np.float32] | None = None
        tissue = np.flatnonzero(anatomy.white_matter_V | anatomy.csf_V)
        self._tissue = tissue[:: math.ceil(len(tissue) / NUM_TISSUE_VOXELS)]
        self._tissue_rows: list[npt.NDArray[np.float32]] = []

    def watch(self, blocks: Iterator[npt.NDArray[np.int16]]) -> Iterator[npt.NDArray[np.int16]]:
        """Pass on blocks (N, V) of masked frames, measuring each."""
        for frames_NV in blocks:
            self._add(frames_NV)
            yield frames_NV

    def _add(self, frames_NV: npt.NDArray[np.int16]) -> None:
        for frame in frames_NV.astype(np.float32):
            self._rows["csf"].append(float(frame[self._anatomy.csf_V].mean()))
            self._rows["white_matter"].append(float(frame[self._anatomy.white_matter_V].mean()))
            self._rows["global_signal"].append(float(frame.mean()))
            self._tissue_rows.append(frame[self._tissue])
            if self._before is not None:
                squared = (frame - self._before) ** 2
                self._squared_V += squared
                self._rows["dvars"].append(math.sqrt(float(squared.mean())))
            self._before = frame

    def columns(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return `csf`, `white_matter`, `global_signal` and `std_dvars` (T,); the last is nan at frame 0.

        DVARS is standardised by the mean over voxels of the rms difference between neighbouring frames.
        """
        columns = {name: np.asarray(self._rows[name]) for name in ("csf", "white_matter", "global_signal")}
        typical = np.sqrt(self._squared_V / len(self._rows["dvars"])).mean()
        columns["std_dvars"] = np.concatenate([[np.nan], np.asarray(self._rows["dvars"]) / typical])
        return columns

    def tissue_TV(self) -> npt.NDArray[np.float64]:
        """Return the series of up to NUM_TISSUE_VOXELS voxels of white matter and CSF."""
        return np.stack(self._tissue_rows).astype(np.float64)


def nifti_header(anatomy: Anatomy, dtype: str, num_frames: int | None = None, tr_s: float = 0.0) -> bytes:
    """Return the 352 bytes before the data of a single-file NIfTI in MNI space; 3D without `num_frames`."""
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(anatomy.mask.shape if num_frames is None else (*anatomy.mask.shape, num_frames))
    header.set_qform(anatomy.affine, code="mni")
    header.set_sform(anatomy.affine, code="mni")
    header.set_xyzt_units("mm", "sec")
    if num_frames is not None:
        header["pixdim"][4] = tr_s
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + bytes(4)


def write_bold(
    file: BinaryIO, anatomy: Anatomy, blocks: Iterator[npt.NDArray[np.int16]], num_frames: int, tr_s: float
) -> None:
    """Compress a run into `file` as NIfTI; voxels outside the mask are 0."""
    frame = np.zeros(anatomy.mask.shape, dtype="<i2")
    with _gzip(file) as stream:
        stream.write(nifti_header(anatomy, "<i2", num_frames, tr_s))
        for block_NV in blocks:
            for values_V in block_NV:
                frame[anatomy.mask] = values_V
                stream.write(frame.tobytes(order="F"))


def write_volume(file: BinaryIO, anatomy: Anatomy, values: npt.NDArray) -> None:
    """Compress one volume (X, Y, Z) into `file` as NIfTI of its own dtype."""
    with _gzip(file) as stream:
        stream.write(nifti_header(anatomy, values.dtype.str))
        stream.write(values.tobytes(order="F"))


def _gzip(file: BinaryIO) -> gzip.GzipFile:
    """Without name and time: the same data give the same bytes."""
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0)
