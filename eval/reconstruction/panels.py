"""Figures of reconstructed frames: slices, voxel series, carpets, connectivity, spectra, and a map.

Shapes: V voxel, T frame, P parcel, F frequency bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.page.canvas import OUR_COLOUR, Drawing, drawn
from eval.reconstruction.agreement import bin_centres_hz
from eval.reconstruction.stage import Reconstruction
from shards.reader import ShardSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

TRUE_COLOUR, LINEAR_COLOUR = "#7d8894", "#d0661b"
PLANES = ("sagittal", "coronal", "axial")
RAMP = "RdBu_r"
NUM_SERIES = 6
SERIES_FRAMES = 200


def slices(shard_set: ShardSet, found: Reconstruction) -> Drawing:
    """One frame in three orthogonal planes: true, reconstructed, difference, with one colour bar."""
    true_V, ours_V = found.example["volume_true"], found.example["volume_ours"]
    rows = {"true": true_V, "reconstructed": ours_V, "difference": true_V - ours_V}
    limit = float(np.percentile(np.abs(true_V), 98)) or 1.0
    frame = int(found.example["frame"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots(3, 3)
        for (name, values_V), line in zip(rows.items(), axes, strict=True):
            image = _planes(line, shard_set, values_V, RAMP, -limit, limit)
            line[0].set_ylabel(name, fontweight="bold")
        for axis, plane in zip(axes[0], PLANES, strict=True):
            axis.set_title(plane)
        figure.colorbar(image, ax=axes, label="residual (SD of the voxel)", shrink=0.7, aspect=30)

    spatial = float(np.corrcoef(true_V, ours_V)[0, 1]) if np.ptp(ours_V) > 0 else float("nan")
    return Drawing(
        title="One frame, true and reconstructed",
        uri=drawn(draw, 8.6, 7.4),
        alt=f"Three orthogonal slices of frame {frame} of {found.example_id}",
        caption=f"Frame {frame}, the middle of {found.example_id}, through the centre of the mask; left is left. "
        f"Correlation over voxels {spatial:.2f}. Look at the last row: it should be noise without anatomy.",
    )


def voxel_map(shard_set: ShardSet, found: Reconstruction) -> Drawing:
    """Where series come back: the model's correlation over time in each voxel, mean over subjects."""
    known = found.map[np.isfinite(found.map)]
    top = float(np.percentile(known, 99)) if known.size else 1.0

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 3)
        image = _planes(axes, shard_set, found.map, "viridis", 0.0, max(top, 0.05))
        for axis, plane in zip(axes, PLANES, strict=True):
            axis.set_title(plane)
        figure.colorbar(image, ax=axes, label="r over time", shrink=0.8, aspect=20)

    return Drawing(
        title="Where in the brain the signal comes back",
        uri=drawn(draw, 8.6, 2.9),
        alt="Map of the correlation over time between true and reconstructed series",
        caption=f"Correlation over time of true and reconstructed series in each voxel, mean over "
        f"{len(found.subjects)} subjects. Regions that stay dark are hardly seen by the model, whatever it predicts.",
    )


def voxel_series(shard_set: ShardSet, found: Reconstruction) -> Drawing:
    """Six voxels from badly to well reconstructed ones."""
    true_TC, ours_TC = (found.example[f"carpet_{name}"][:SERIES_FRAMES] for name in ("true", "ours"))
    agreement_C = _column_correlations(true_TC, ours_TC)
    ordered = np.argsort(agreement_C, kind="stable")
    chosen = ordered[np.rint(np.linspace(0.05, 0.95, NUM_SERIES) * (ordered.size - 1)).astype(int)]
    positions_V3 = np.argwhere(shard_set.mask)
    seconds = np.arange(len(true_TC)) * shard_set.runs[int(found.example["run"])].tr_s

    def draw(figure: Figure) -> None:
        axes = figure.subplots(NUM_SERIES, 1, sharex=True, sharey=True)
        for axis, column in zip(axes, chosen, strict=True):
            axis.plot(seconds, true_TC[:, column], color=TRUE_COLOUR, lw=0.9, label="true")
            axis.plot(seconds, ours_TC[:, column], color=OUR_COLOUR, lw=1.4, label="reconstructed")
            x, y, z = positions_V3[int(found.example["voxels"][column])]
            axis.text(
                1.005, 0.5, f"r = {agreement_C[column]:.2f}\n({x}, {y}, {z})", transform=axis.transAxes, va="center"
            )
        axes[0].legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 0.95))
        axes[-1].set_xlabel("time (s)")
        figure.supylabel("residual (SD of the voxel)", fontsize=10.5)

    return Drawing(
        title="Six voxels over time",
        uri=drawn(draw, 9.4, 6.6),
        alt="True and reconstructed series of six voxels; r " + ", ".join(f"{agreement_C[c]:.2f}" for c in chosen),
        caption="From the worst to the best twentieth of the voxels by their correlation over time (r; in brackets "
        "the voxel's index on the grid). A reconstruction is smaller than the truth where the rest is taken for noise.",
    )


def carpets(shard_set: ShardSet, found: Reconstruction) -> Drawing:
    """Voxels by time, true and reconstructed."""
    pair = {name: found.example[f"carpet_{key}"].T for name, key in (("true", "true"), ("reconstructed", "ours"))}
    tr_s = shard_set.runs[int(found.example["run"])].tr_s
    num_voxels, num_frames = pair["true"].shape

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        look: dict[str, Any] = {"cmap": "gray", "vmin": -2, "vmax": 2, "aspect": "auto", "interpolation": "nearest"}
        for axis, (name, values) in zip(axes, pair.items(), strict=True):
            image = axis.imshow(values, extent=(0, num_frames * tr_s, num_voxels, 0), **look)
            axis.set_title(name)
            axis.set_xlabel("time (s)")
        axes[0].set_ylabel("voxels, by parcel")
        figure.colorbar(image, ax=axes, label="residual (SD of the voxel)", aspect=30)

    return Drawing(
        title="Carpet of the run",
        uri=drawn(draw, 9.4, 3.9),
        alt=f"Carpet plots of {num_voxels} voxels and {num_frames} frames, true and reconstructed",
        caption=f"{num_voxels} evenly spaced voxels in the order of their parcels. Vertical stripes, which go through "
        "the whole brain, are mostly motion and breathing: look whether the model spends its latents on them.",
    )


def matrices(found: Reconstruction) -> Drawing:
    """Connectivity of the run, true and reconstructed."""
    pair = {
        name: _correlation(found.example[f"series_{key}"])
        for name, key in (("true", "true"), ("reconstructed", "ours"))
    }
    row = [method.key for method in found.methods].index("itself_ours")
    mean = found.measures[:, row, 3]
    said = (
        f"{np.nanmean(mean):.2f} on average over subjects"
        if np.isfinite(mean).any()
        else "undefined in runs this short"
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2)
        for axis, (name, values_PP) in zip(axes, pair.items(), strict=True):
            image = axis.imshow(values_PP, cmap=RAMP, vmin=-1, vmax=1, interpolation="nearest")
            axis.set_title(name)
            axis.set_xlabel("parcel")
        axes[0].set_ylabel("parcel")
        figure.colorbar(image, ax=axes, label="correlation", shrink=0.85)

    return Drawing(
        title="Functional connectivity",
        uri=drawn(draw, 9.0, 4.0),
        alt="Parcel correlation matrices, true and reconstructed",
        caption=f"Correlations of {len(pair['true'])} geometric parcels in {found.example_id}. The edges of the two "
        f"correlate with {said}. Reconstructed correlations are stronger where noise of the parcels is gone.",
    )


def spectrum(found: Reconstruction) -> Drawing:
    """Power by frequency, and the share of it that is reconstructed."""
    hz = bin_centres_hz()
    known_F = np.isfinite(found.power).all(axis=1).any(axis=0)
    power_3F = np.array([np.nanmean(found.power[:, k][:, known_F], axis=0) for k in range(3)])
    looks = (("true", TRUE_COLOUR), ("PCA", LINEAR_COLOUR), ("our model", OUR_COLOUR))

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for (name, colour), power_F in zip(looks, power_3F, strict=True):
            left.plot(hz[known_F], power_F, "o-", ms=3, color=colour, label=name)
        for (name, colour), power_F in zip(looks[1:], power_3F[1:], strict=True):
            right.plot(hz[known_F], power_F / power_3F[0], "o-", ms=3, color=colour, label=name)
        right.axhline(1, color="#9aa4ae", ls=(0, (4, 3)), lw=1)
        right.set_ylim(bottom=0)
        left.set_yscale("log")
        left.set_ylabel("power (SD\u00b2 / Hz)")
        right.set_ylabel("power, reconstructed / true")
        left.legend()
        for axis in (left, right):
            axis.set_xlabel("frequency (Hz)")
            axis.grid(color="#e8ecef", lw=0.8)

    return Drawing(
        title="Which frequencies come back",
        uri=drawn(draw, 9.4, 3.4),
        alt="Power spectra of true and reconstructed parcel series, and their ratio",
        caption="Power spectral density of parcel series (Welch, segments of 128 s, bins of 0.01 Hz up to 0.25 Hz), "
        "mean over parcels and subjects. The ratio of a faithful reconstruction is flat; one that falls with frequency "
        "means smoothing in time, one above 1 means that shared signal is made larger than it is.",
    )


def _planes(axes: Any, shard_set: ShardSet, values_V: npt.NDArray[Any], ramp: str, low: float, high: float) -> Any:
    """Sagittal, coronal and axial slice through the mask's centre; left is left. Returns the last image."""
    import nibabel

    affine = np.asarray(shard_set.grid.affine)
    volume = np.where(shard_set.mask, shard_set.unmask(np.asarray(values_V, np.float32)), np.nan)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume, affine))
    mask = nibabel.as_closest_canonical(nibabel.Nifti1Image(shard_set.mask.astype(np.uint8), affine))
    data, where_N3 = image.get_fdata(), np.argwhere(np.asarray(mask.dataobj))
    voxel_mm = np.asarray(image.header.get_zooms())
    centre, half_mm = where_N3.mean(axis=0), 0.54 * float((np.ptp(where_N3, axis=0) * voxel_mm).max() + voxel_mm.max())
    shown: Any = None
    for number, axis in enumerate(axes):
        across, up = (k for k in range(3) if k != number)
        plane = np.take(data, round(centre[number]), axis=number).T
        left, bottom = ((-0.5 - centre[k]) * voxel_mm[k] for k in (across, up))
        extent = (left, left + data.shape[across] * voxel_mm[across], bottom, bottom + data.shape[up] * voxel_mm[up])
        shown = axis.imshow(
            plane, origin="lower", extent=extent, cmap=ramp, vmin=low, vmax=high, interpolation="nearest"
        )
        axis.set_xlim(-half_mm, half_mm)
        axis.set_ylim(-half_mm, half_mm)
        _bare(axis)
    return shown


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _column_correlations(true_TC: npt.NDArray[Any], ours_TC: npt.NDArray[Any]) -> Floats:
    """Correlation of each pair of columns; 0 where one is constant."""
    true_TC, ours_TC = (np.asarray(x, np.float64) - x.mean(axis=0) for x in (true_TC, ours_TC))
    length_C = np.linalg.norm(true_TC, axis=0) * np.linalg.norm(ours_TC, axis=0)
    return np.where(length_C > 0, (true_TC * ours_TC).sum(axis=0) / np.where(length_C > 0, length_C, 1.0), 0.0)


def _correlation(series_TP: npt.NDArray[Any]) -> Floats:
    """Correlation matrix; 0 where a parcel is constant."""
    centred = np.asarray(series_TP, np.float64) - series_TP.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(length > 0, length, 1.0)
    found: Floats = unit.T @ unit
    return found
