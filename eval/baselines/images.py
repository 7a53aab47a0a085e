"""Maps of voxels with a linear model: what one volume a subject tells, be it the mean or the size of fluctuations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eval.baselines.linear import AT_ONCE, fit_on
from eval.baselines.protocol import Fitted, NotAvailable, Problem, Series
from eval.parcels.series import BAND_HZ, band_basis

if TYPE_CHECKING:
    from eval.parcels.cache import RunCache

Maps = Callable[[tuple[str, ...]], npt.NDArray[Any]]


class MeanImage:
    """The mean volume over time: anatomy, coil profile and coverage, no dynamics."""

    key = "mean_image"
    label = "Mean image (anatomy)"
    sees = "each voxel's mean over time, relative to the mean over the mask"

    def fit(self, problem: Problem) -> Fitted:
        """Linear model on the principal components of the fitted subjects' mean images."""
        shard_set = problem.cohort.shard_set
        return fit_maps(problem, lambda subjects: _maps(problem, subjects, lambda run: shard_set.statistics(run).mean))


class Amplitude:
    """How strongly each voxel fluctuates slowly (ALFF), or which part of its fluctuation is slow.

    Parameters
    ----------
    cache : eval.parcels.cache.RunCache
        Of `eval.parcels.series.amplitude_cache`; it holds the runs of all subjects.
    fractional : bool
        Relative to the voxel's own SD, as fALFF is, instead of in units of the signal.
    """

    def __init__(self, cache: RunCache, fractional: bool = False) -> None:
        self.cache, self.fractional = cache, fractional
        band = f"{BAND_HZ[0]:g} to {BAND_HZ[1]:g} Hz"
        self.key = "falff" if fractional else "alff"
        self.label = "Fractional ALFF" if fractional else "ALFF"
        relative = "relative to its SD" if fractional else "relative to the mean over the mask"
        self.sees = f"each voxel's amplitude at {band}, {relative}"

    def fit(self, problem: Problem) -> Fitted:
        """Linear model on the principal components of the fitted subjects' maps.

        Raises
        ------
        NotAvailable
            A run is too short, or its TR too long, to have a frequency in the band.
        """
        entries = problem.cohort.shard_set.runs
        lengths = {(entry.num_frames, entry.tr_s) for entry in entries}
        if not all(len(band_basis(*length)) for length in lengths):
            raise NotAvailable(f"a run is too short to have a frequency from {BAND_HZ[0]:g} to {BAND_HZ[1]:g} Hz")
        return fit_maps(problem, lambda subjects: _maps(problem, subjects, lambda run: self._map(problem, run)))

    def _map(self, problem: Problem, run: int) -> Series:
        amplitude: Series = self.cache.read(run)
        return amplitude if self.fractional else amplitude * problem.cohort.shard_set.statistics(run).std


def fit_maps(problem: Problem, maps: Maps) -> Fitted:
    """Linear model on the principal components of subjects' maps.

    The components (all that few subjects span, else 256) are those of all fitted subjects together, found without the
    target, a batch of maps at a time.
    """
    from sklearn.decomposition import IncrementalPCA
    from sklearn.utils import gen_batches

    size = min(len(problem.to_fit), AT_ONCE)
    components = IncrementalPCA(n_components=min(size, problem.cohort.shard_set.num_voxels))
    for batch in gen_batches(len(problem.to_fit), AT_ONCE, min_batch_size=size):
        components.partial_fit(maps(problem.to_fit[batch]))

    def features_of(subjects: tuple[str, ...]) -> npt.NDArray[np.float64]:
        batches = gen_batches(len(subjects), AT_ONCE)
        return np.concatenate([components.transform(maps(subjects[batch])) for batch in batches]).astype(np.float64)

    fitted = fit_on(problem, features_of)
    note = f"{components.n_components_} principal components; {fitted.note}"
    return Fitted(note=note, predict=fitted.predict, held_out=fitted.held_out)


def _maps(problem: Problem, subjects: tuple[str, ...], of_run: Callable[[int], Series]) -> Series:
    """Each subject's map over its runs, weighted by frames, divided by its mean size over the mask; (N, V)."""
    from concurrent.futures import ThreadPoolExecutor

    cohort = problem.cohort

    def one(subject: str) -> Series:
        total = np.zeros(cohort.shard_set.num_voxels, dtype=np.float32)
        for run in cohort.runs[subject]:
            total += of_run(run) * cohort.shard_set.runs[run].num_frames
        total /= float(np.abs(total).mean()) or 1.0
        return total

    with ThreadPoolExecutor(problem.threads) as pool:
        return np.stack(list(pool.map(one, subjects)))
