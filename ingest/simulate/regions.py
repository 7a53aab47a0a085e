"""Region dynamics with a covariance and a direction of time that are set independently.

In the coordinates Y the regions follow an irreversible Ornstein-Uhlenbeck process,

    Y[t+1] = a O Y[t] + sqrt(1 - a^2) eps,    a = exp(-TR / tau),    O = expm(-K TR),    K antisymmetric,

whose stationary covariance is the identity for every K. With X = S^(1/2) Y the covariance is S whatever K is, and
K -> -K is exact time reversal: mean, variance, static connectivity, spectra and symmetric lagged covariances stay
as they were, only who leads whom is turned round. One haemodynamic response for all regions changes none of that.

Axes: T frame, R region, P plane of rotation, D dimension of the individual deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.simulate.cohort import Stream, Subject, random_stream
from ingest.simulate.config import SimulateConfig

Array = npt.NDArray[np.float64]

NUM_NETWORKS = 7
DEVIATION_RANK = 12
INDIVIDUAL_SD = 0.25
"""SD of an entry of the individual deviation of log S, in the basis of the deviations."""
FAMILY_SHARE = 0.5
"""Fraction of the variance of a deviation that siblings share."""
NUM_ROTATIONS = 3
ROTATION_HZ = 0.03
MEMORY_S = 2.5
GAIN_SD = 0.25
FC_DIRECTION_NORM = 4.0
"""Frobenius norm of the distance between the groups' mean log S at `--effect-fc 1`."""
SIGNAL_PERCENT = 0.5
"""SD of a region's signal, and again of its white noise, in percent of the mean intensity."""
_CONNECTOME_SEED = 20220214


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """What all subjects of all cohorts on one parcellation have in common.

    Attributes
    ----------
    networks_R : int array
        Network of each region, 0 to NUM_NETWORKS - 1.
    log_covariance_RR : float array
        Matrix logarithm of the population's correlation matrix.
    fc_direction_RR : float array
        Symmetric, Frobenius norm FC_DIRECTION_NORM: coupling between the first two networks.
    deviations_RD : float array
        Orthonormal columns; individuals deviate from the population in their span.
    planes_P2R : float array
        Orthonormal pairs; K0 turns each pair's plane at ROTATION_HZ.
    """

    networks_R: npt.NDArray[np.int64]
    log_covariance_RR: Array
    fc_direction_RR: Array
    deviations_RD: Array
    planes_P2R: Array


def make_population(centres_mm_R3: Array) -> Population:
    """Build the synthetic connectome from the parcels' centres (R, 3) in mm, in mirrored pairs (2i, 2i + 1).

    The correlation is a sum of positive definite parts: global, network, distance, homotopic pair, and own.
    """
    rng = np.random.default_rng(_CONNECTOME_SEED)
    networks = _assign_networks(centres_mm_R3, rng)
    distance = np.linalg.norm(centres_mm_R3[:, None] - centres_mm_R3[None], axis=-1)
    pair = np.arange(len(networks)) // 2
    correlation = (
        0.20
        + 0.25 * (networks[:, None] == networks[None])
        + 0.25 * np.exp(-distance / 40.0)
        + 0.05 * (pair[:, None] == pair[None])
        + 0.25 * np.eye(len(networks))
    )
    first, second = (_unit(networks == network) for network in (0, 1))
    coupling = np.outer(first, second)
    modes = _leading_vectors(correlation)
    basis, _ = np.linalg.qr(rng.standard_normal((len(networks), DEVIATION_RANK)))
    return Population(
        networks_R=networks,
        log_covariance_RR=_matrix_function(correlation, np.log),
        fc_direction_RR=FC_DIRECTION_NORM * (coupling + coupling.T) / math.sqrt(2),
        deviations_RD=basis,
        planes_P2R=modes[:, : 2 * NUM_ROTATIONS].T.reshape(NUM_ROTATIONS, 2, -1),
    )


def _assign_networks(centres_mm_R3: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Give each mirrored pair the network of the nearest of two seeds per network; no network stays empty."""
    left = centres_mm_R3[0::2]
    seeds = rng.permutation(len(left))[: 2 * NUM_NETWORKS]
    distance = np.linalg.norm(left[:, None] - left[seeds][None], axis=-1)
    return np.repeat(np.argmin(distance, axis=1) % NUM_NETWORKS, 2)


def _unit(vector: npt.NDArray) -> Array:
    values = vector.astype(np.float64)
    return np.asarray(values / np.linalg.norm(values))


def _leading_vectors(symmetric_RR: Array) -> Array:
    """Eigenvectors by falling eigenvalue, each with its largest entry positive."""
    _, vectors = np.linalg.eigh(symmetric_RR)
    vectors = vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return np.asarray(vectors * np.sign(largest))


def _matrix_function(symmetric_RR: Array, function: np.ufunc) -> Array:
    values, vectors = np.linalg.eigh(symmetric_RR)
    return np.asarray((vectors * function(values)) @ vectors.T)


def deviation(own: Array, family: Array) -> Array:
    """Mix a subject's own and its family's standard deviates, so that siblings share FAMILY_SHARE of the variance."""
    return math.sqrt(1 - FAMILY_SHARE) * own + math.sqrt(FAMILY_SHARE) * family


def subject_covariance(config: SimulateConfig, population: Population, subject: Subject) -> Array:
    """Return the correlation matrix S (R, R) of one subject: population, family, own deviation and planted effect."""
    own = random_stream(config, Stream.CONNECTOME, subject.index)
    family = random_stream(config, Stream.FAMILY_CONNECTOME, subject.family)
    drawn = deviation(_symmetric_noise(own), _symmetric_noise(family))
    basis = population.deviations_RD
    logarithm = (
        population.log_covariance_RR
        + INDIVIDUAL_SD * basis @ drawn @ basis.T
        + config.effect_fc * subject.effect * population.fc_direction_RR
    )
    covariance = _matrix_function(logarithm, np.exp)
    sd = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(sd, sd))


def _symmetric_noise(rng: np.random.Generator) -> Array:
    noise = rng.standard_normal((DEVIATION_RANK, DEVIATION_RANK))
    return np.asarray((noise + noise.T) / math.sqrt(2))


def rotation(population: Population, angle_rad: float) -> Array:
    """Return O (R, R): the planes of the population turned by `angle_rad`, everything else left alone."""
    result = np.eye(population.planes_P2R.shape[-1])
    for u, v in population.planes_P2R:
        result += (math.cos(angle_rad) - 1) * (np.outer(u, u) + np.outer(v, v))
        result += math.sin(angle_rad) * (np.outer(v, u) - np.outer(u, v))
    return result


def haemodynamic_response(tr_s: float, length_s: float = 32.0) -> Array:
    """Return the double-gamma response (peaks 5 s and 15 s, ratio 6), sampled at `tr_s`."""
    t = np.arange(0.0, length_s, tr_s)
    return np.asarray(t**5 * np.exp(-t) / math.gamma(6) - t**15 * np.exp(-t) / math.gamma(16) / 6)


def region_series(config: SimulateConfig, population: Population, subject: Subject) -> npt.NDArray[np.float32]:
    """Draw one run of region series.

    Parameters
    ----------
    config : SimulateConfig
        Frames, TR, effects and seed.
    population : Population
        From `make_population`.
    subject : Subject
        From `make_cohort`.

    Returns
    -------
    float32 array (T, R)
        Signal and white noise, in percent of the mean intensity, around 0.
    """
    rng = random_stream(config, Stream.REGIONS, subject.index)
    num_regions = len(population.networks_R)
    memory = math.exp(-config.tr_s / MEMORY_S)
    angle = 4 * math.pi * ROTATION_HZ * config.tr_s * config.effect_dynamics * subject.effect
    step = (memory * rotation(population, angle)).T
    response = haemodynamic_response(config.tr_s)
    num_steps = config.frames + len(response) - 1
    drive_TR = math.sqrt(1 - memory**2) * rng.standard_normal((num_steps, num_regions))
    state = rng.standard_normal(num_regions)  # stationary from the first frame: no burn-in
    for t in range(num_steps):
        state = state @ step + drive_TR[t]
        drive_TR[t] = state
    mixed_TR = drive_TR @ _matrix_function(subject_covariance(config, population, subject), np.sqrt)
    signal_TR = _convolve(mixed_TR, response) / _response_sd(response, memory)
    gain_R = np.exp(GAIN_SD * rng.standard_normal(num_regions))
    noise_TR = rng.standard_normal(signal_TR.shape)
    return (SIGNAL_PERCENT * (gain_R * signal_TR + noise_TR)).astype(np.float32)


def _convolve(series_TR: Array, response: Array) -> Array:
    """Convolve each column; only frames that the whole response covers are kept."""
    result = np.zeros((len(series_TR) - len(response) + 1, series_TR.shape[1]))
    for k, weight in enumerate(reversed(response)):
        result += weight * series_TR[k : k + len(result)]
    return result


def _response_sd(response: Array, memory: float) -> float:
    """SD after convolution of an AR(1) process of unit variance."""
    lag = np.abs(np.subtract.outer(np.arange(len(response)), np.arange(len(response))))
    return math.sqrt(response @ memory**lag @ response)
