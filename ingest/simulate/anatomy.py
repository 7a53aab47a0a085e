"""The head that simulated subjects share: MNI152 grid, mask, tissue and parcels; and how their mean images differ.

Axes: V voxel of the mask in C order, R parcel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.simulate.cohort import Stream, Subject, random_stream
from ingest.simulate.config import SITES, SimulateConfig
from ingest.simulate.regions import deviation
from shards.errors import UsageError

MEAN_INTENSITY = 4000.0
"""Mean of the brain in arbitrary units, as scanners give it."""
ANATOMY_SD = 0.05
"""SD over subjects of a voxel's mean, relative to the population."""
ANATOMY_FWHM_MM = 18.0
ANATOMY_EFFECT_CENTRE_MM = (-38.0, -24.0, 48.0)
ANATOMY_EFFECT_RADIUS_MM = 14.0
_KMEANS_STEPS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """Grid, mask and population mean.

    Attributes
    ----------
    mask : bool array (X, Y, Z)
    affine : float array (4, 4)
        Voxel to MNI mm.
    labels_V : int array
        Parcel 0..R-1 of each voxel; 2i is the left and 2i + 1 the right of a mirrored pair.
    centres_mm_R3 : float array
        Mean position of each parcel.
    mean_V : float32 array
        Population mean image, arbitrary units.
    gradient_V3 : float32 array
        Its spatial gradient per mm.
    effect_V : float32 array
        Profile of the anatomical effect: 1 at its centre, falling off like a Gaussian.
    white_matter_V, csf_V : bool arrays
        Brightest and darkest voxels of the T1 template.
    """

    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    labels_V: npt.NDArray[np.int64]
    centres_mm_R3: npt.NDArray[np.float64]
    mean_V: npt.NDArray[np.float32]
    gradient_V3: npt.NDArray[np.float32]
    effect_V: npt.NDArray[np.float32]
    white_matter_V: npt.NDArray[np.bool_]
    csf_V: npt.NDArray[np.bool_]

    @property
    def voxel_mm(self) -> float:
        """Edge of a voxel in mm."""
        return float(abs(self.affine[0, 0]))


def load_anatomy(config: SimulateConfig) -> Anatomy:
    """Build the anatomy from the MNI152 mask and T1 template that ship with nilearn.

    Raises
    ------
    UsageError
        When the grid is too coarse for the number of parcels.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    mask_image = load_mni152_brain_mask(resolution=config.voxel_mm)
    mask = np.asarray(mask_image.dataobj) > 0
    template = np.asarray(load_mni152_template(resolution=config.voxel_mm).dataobj, dtype=np.float32)
    mean = template * (MEAN_INTENSITY / template[mask].mean())
    affine = np.asarray(mask_image.affine, dtype=np.float64)
    position_mm_V3 = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    labels, centres = mirrored_parcels(position_mm_V3, config.parcels, config.voxel_mm)
    squared_mm2_V = ((position_mm_V3 - ANATOMY_EFFECT_CENTRE_MM) ** 2).sum(axis=1)
    return Anatomy(
        mask=mask,
        affine=affine,
        labels_V=labels,
        centres_mm_R3=centres,
        mean_V=mean[mask],
        gradient_V3=np.stack(np.gradient(mean, float(config.voxel_mm)), axis=-1)[mask],
        effect_V=np.exp(-squared_mm2_V / (2 * ANATOMY_EFFECT_RADIUS_MM**2)).astype(np.float32),
        white_matter_V=mean[mask] > np.quantile(mean[mask], 0.85),
        csf_V=mean[mask] < np.quantile(mean[mask], 0.05),
    )


def mirrored_parcels(
    position_mm_V3: npt.NDArray, num_parcels: int, voxel_mm: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Cut the brain into compact parcels, mirrored at the midline, without any random number.

    Farthest-point seeds, then k-means, on (abs(x), y, z); the sign of x tells left (even) from right (odd).

    Returns
    -------
    labels_V : int array
        Parcel of each voxel.
    centres_mm_R3 : float array
        Mean position of each parcel.

    Raises
    ------
    UsageError
        When a parcel has no voxel.
    """
    from scipy.spatial import cKDTree

    folded = position_mm_V3 * [1.0, 1.0, 1.0]
    folded[:, 0] = np.abs(folded[:, 0])
    centres = _farthest_points(folded, num_parcels // 2)
    for _ in range(_KMEANS_STEPS):
        half = cKDTree(centres).query(folded)[1]
        centres = _centres(folded, half, centres)
    labels = 2 * half + (position_mm_V3[:, 0] >= 0)
    if len(np.unique(labels)) < num_parcels:
        raise UsageError(
            f"--parcels {num_parcels} leaves a parcel without a voxel at --voxel-mm {voxel_mm:g} "
            f"({len(labels)} voxels in the mask); use fewer parcels or smaller voxels"
        )
    return labels, _centres(position_mm_V3, labels, np.zeros((num_parcels, 3)))


def _farthest_points(points_V3: npt.NDArray, count: int) -> npt.NDArray[np.float64]:
    chosen = [int(points_V3[:, 2].argmax())]
    distance = np.full(len(points_V3), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((points_V3 - points_V3[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return np.asarray(points_V3[chosen], dtype=np.float64)


def _centres(points_V3: npt.NDArray, labels: npt.NDArray, empty: npt.NDArray) -> npt.NDArray[np.float64]:
    """Mean of each label's points; an empty label keeps its row of `empty`."""
    count = np.bincount(labels, minlength=len(empty))
    total = np.stack([np.bincount(labels, points_V3[:, k], minlength=len(empty)) for k in range(3)], axis=1)
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], empty)


def site_gain(config: SimulateConfig, subject: Subject) -> float:
    """Return the factor on intensities at the subject's site; tSNR is divided by it."""
    return 1.0 + config.site_offset * (SITES.index(subject.site) - 0.5)


def mean_image(config: SimulateConfig, anatomy: Anatomy, subject: Subject) -> npt.NDArray[np.float32]:
    """Return a subject's mean image (V,) in arbitrary units: population, own and family shape, effect, site."""
    own = _smooth_field(anatomy, random_stream(config, Stream.ANATOMY, subject.index))
    family = _smooth_field(anatomy, random_stream(config, Stream.FAMILY_ANATOMY, subject.family))
    shape = 1 + ANATOMY_SD * deviation(own, family)
    effect = 1 + config.effect_anatomy * subject.effect * anatomy.effect_V
    return np.asarray(anatomy.mean_V * shape * effect * site_gain(config, subject), dtype=np.float32)


def _smooth_field(anatomy: Anatomy, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Gaussian random field (V,) of unit variance."""
    sigma = ANATOMY_FWHM_MM / 2.355 / anatomy.voxel_mm
    noise = rng.standard_normal(anatomy.mask.shape)
    return np.asarray(smooth(noise, sigma)[anatomy.mask] / smoothed_sd(sigma, 3), dtype=np.float64)


def smooth(values: npt.NDArray, sigma_voxels: float) -> npt.NDArray:
    """Filter the last three axes by a Gaussian, periodic at the borders."""
    from scipy.ndimage import gaussian_filter

    sigma = (0.0,) * (values.ndim - 3) + (sigma_voxels,) * 3
    return np.asarray(gaussian_filter(values, sigma, mode="wrap", truncate=3.0))


def smoothed_sd(sigma_voxels: float, num_axes: int) -> float:
    """Return the SD that white noise of unit SD keeps under `smooth`."""
    reach = int(3.0 * sigma_voxels + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_voxels) ** 2)
    return float((np.sqrt((kernel**2).sum()) / kernel.sum()) ** num_axes)
