"""All baselines, from the weakest to those to beat, and those that were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.baselines.boosting import boosting_baselines
from eval.baselines.connectivity import Connectivity, KernelConnectivity, TangentConnectivity
from eval.baselines.images import Amplitude, MeanImage
from eval.baselines.networks import network_baselines
from eval.baselines.protocol import Baseline
from eval.baselines.simple import Confounds, Majority
from eval.scoring.metrics import Kind
from shards.errors import UsageError

if TYPE_CHECKING:
    from eval.parcels.cache import RunCache


def all_baselines(kind: Kind, amplitude: RunCache) -> tuple[Baseline, ...]:
    """Every baseline for a kind of target.

    Parameters
    ----------
    kind : {'binary', 'multiclass', 'regression'}
        Kind of target.
    amplitude : eval.parcels.cache.RunCache
        Of `eval.parcels.series.amplitude_cache`.
    """
    return (
        Majority(kind),
        Confounds(),
        MeanImage(),
        Amplitude(amplitude),
        Amplitude(amplitude, fractional=True),
        Connectivity(kind),
        KernelConnectivity(kind),
        TangentConnectivity(kind),
        *network_baselines(kind),
        *boosting_baselines(kind),
    )


def chosen(baselines: tuple[Baseline, ...], keys: tuple[str, ...]) -> tuple[Baseline, ...]:
    """Those of the named keys, in their own order; all of them where no key is named.

    Raises
    ------
    UsageError
        A key is unknown; the message lists those there are.
    """
    known = [baseline.key for baseline in baselines]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise UsageError(f"--models {unknown[0]}: no such baseline; there are {', '.join(known)}")
    return tuple(baseline for baseline in baselines if not keys or baseline.key in keys)
