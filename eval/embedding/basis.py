"""From thousands of features to at most 128 dimensions: where training subjects differ most, and what the head reads.

Pooled moments are about 3 D^2 numbers, which nobody wants in a table. Kept are the leading principal components of
the training subjects, and, behind them, what is missing of the directions that the head weighs: so the model's output
is a linear function of an embedding, exactly. Nothing of other subjects enters, and nothing is scaled again.

Most of the spread of moments over a few hundred frames is noise that fills all dimensions evenly; of subjects that the
components were not fitted on they hold a small share therefore, which the facts tell for each part of the split.

Shapes: S subject, F feature, E dimension, K output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_DIMENSIONS = 128
MOST_SUBJECTS = 2000
"""Training subjects that the components are fitted on; more change them little and cost memory."""
NOTHING = 1e-6
"""A head's direction of which less than this share lies outside the components adds nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """Orthonormal directions: embedding = (features - mean) components', output = embedding readout + offset.

    Attributes
    ----------
    mean : numpy.ndarray, shape (F,)
        Of the training subjects.
    components : numpy.ndarray, shape (E, F)
        Principal components by falling variance, then directions of the head.
    share : numpy.ndarray, shape (P,)
        Share of the fitted subjects' variance along each of the P <= E principal components.
    readout, offset : numpy.ndarray, shapes (E, K) and (K,)
        From embeddings to the model's outputs.
    """

    mean: Floats
    components: Floats
    share: Floats
    readout: Floats
    offset: Floats

    def project(self, features_SF: npt.ArrayLike) -> Floats:
        """Embeddings `(S, E)` of features `(S, F)`."""
        found: Floats = (np.asarray(features_SF, np.float64) - self.mean) @ self.components.T
        return found

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Basis:
        """From a file."""
        return cls(**arrays)


def fit_basis(features_SF: Floats, weight_KF: Floats, bias_K: Floats, seed: int) -> Basis:
    """Directions to keep.

    Parameters
    ----------
    features_SF : numpy.ndarray, shape (S, F)
        Of training subjects, at least 3.
    weight_KF, bias_K : numpy.ndarray
        Output = weight features + bias.
    seed : int
        Of the randomised solver, which large matrices take.
    """
    from sklearn.decomposition import PCA

    most = MOST_DIMENSIONS - len(weight_KF)
    found = PCA(min(most, features_SF.shape[0] - 1, features_SF.shape[1]), random_state=seed).fit(features_SF)
    components_EF = np.concatenate([found.components_, _outside(weight_KF, found.components_)])
    return Basis(
        mean=found.mean_,
        components=components_EF,
        share=np.nan_to_num(found.explained_variance_ratio_),
        readout=components_EF @ weight_KF.T,
        offset=bias_K + weight_KF @ found.mean_,
    )


def fitted_subjects(subjects: Sequence[str]) -> tuple[str, ...]:
    """The training subjects that the components are fitted on: all, or 2000 of the sorted ones, evenly spaced."""
    if len(subjects) <= MOST_SUBJECTS:
        return tuple(subjects)
    return tuple(subjects[row] for row in np.linspace(0, len(subjects) - 1, MOST_SUBJECTS).astype(int))


def _outside(weight_KF: Floats, components_PF: Floats) -> Floats:
    """Orthonormal rows that span what the components miss of the weights; no rows where they miss nothing."""
    found: list[Floats] = []
    for weight_F in weight_KF:
        rest_F = weight_F
        for _ in range(2):  # twice, or rounding leaves a part inside
            for known in (components_PF, np.array(found).reshape(-1, len(weight_F))):
                rest_F = rest_F - (rest_F @ known.T) @ known
        norm = float(np.linalg.norm(rest_F))
        if norm > NOTHING * float(np.linalg.norm(weight_F)):
            found.append(rest_F / norm)
    return np.array(found).reshape(-1, weight_KF.shape[1])
