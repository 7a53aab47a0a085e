"""Embeddings in two dimensions, and how much of their variance each property of the subjects explains.

Shapes: S subject, E dimension, C column of a design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eval.context import Context
from shards.errors import CorruptShardError

Floats = npt.NDArray[np.float64]

NEIGHBOURS_FROM, NEIGHBOURS_TO = 30, 5000
"""Numbers of subjects outside training between which t-SNE is drawn: it needs some, and takes minutes above."""
PERPLEXITY = 30
PERMUTATIONS = 999
HEAD = ("subject", "part", "target", "site", "mean_fd_mm", "pc1", "pc2", "tsne1", "tsne2")
MISSING = "n/a"


def neighbour_map(vectors_SE: npt.ArrayLike, part: Sequence[str], seed: int) -> Floats | None:
    """t-SNE `(S, 2)` of validation and test subjects; `nan` in rows of training subjects.

    Training subjects lie further out, since the components were fitted on them: together with them, the map would
    show who was fitted on. None where there are fewer than 30 or more than 5000 other subjects.
    """
    from sklearn.manifold import TSNE

    rows = [row for row, name in enumerate(part) if name != "train"]
    if not NEIGHBOURS_FROM <= len(rows) <= NEIGHBOURS_TO:
        return None
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    model = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
    found = np.full((len(part), 2), np.nan)
    found[rows] = model.fit_transform(np.asarray(vectors_SE, np.float64)[rows])
    return found


def target_texts(context: Context, subjects: Sequence[str]) -> list[str]:
    """Target of each subject in words or original units; 'n/a' where it has none."""
    target, values = context.target, context.values
    return [target.text(values[who]) if who in values else MISSING for who in subjects]


def mean_motion(context: Context, subjects: Sequence[str]) -> Floats:
    """Mean framewise displacement of each subject in mm; `nan` where no run has it."""
    return np.array([context.cohort.weighted("mean_fd_mm", who) for who in subjects])


def projection_table(
    context: Context, subjects: Sequence[str], part: Sequence[str], vectors_SE: npt.ArrayLike, map_S2: Floats | None
) -> str:
    """A line a subject: part, target, site, motion, two principal components, and t-SNE where there is one."""
    sites, motion = context.cohort.values.get("site", {}), mean_motion(context, subjects)
    plane_S2 = np.asarray(vectors_SE, np.float64)[:, :2]
    lines = ["\t".join(HEAD)]
    for row, (who, target) in enumerate(zip(subjects, target_texts(context, subjects), strict=True)):
        moved = f"{motion[row]:.4f}" if np.isfinite(motion[row]) else MISSING
        mapped = [np.nan, np.nan] if map_S2 is None else map_S2[row].tolist()
        near = [f"{value:.7g}" if np.isfinite(value) else MISSING for value in mapped]
        plane = [f"{value:.7g}" for value in plane_S2[row]]
        lines.append("\t".join((who, part[row], target, sites.get(who, MISSING), moved, *plane, *near)))
    return "\n".join(lines) + "\n"


def read_neighbours(path: Path) -> Floats | None:
    """The t-SNE columns `(S, 2)` of `projection_table`.

    Raises
    ------
    CorruptShardError
        The file is gone or not such a table.
    """
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        if tuple(rows[0]) != HEAD:
            raise ValueError("other columns")
        cells = [[np.nan if cell == MISSING else float(cell) for cell in row[-2:]] for row in rows[1:]]
    except (OSError, ValueError, IndexError) as error:
        raise CorruptShardError(f"{path}: cannot be read ({error}); remove its folder and run again") from error
    found = np.array(cells).reshape(-1, 2)
    return found if np.isfinite(found).any() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """How much of the spread of embeddings a property of the subjects explains.

    Attributes
    ----------
    name : str
        The property.
    num_subjects : int
        Subjects that have it.
    share : float
        R-squared of the embeddings on the property, adjusted for its degrees of freedom; about 0 without a relation.
    p_value : float
        Of the unadjusted share, against subjects permuted 999 times.
    """

    name: str
    num_subjects: int
    share: float
    p_value: float


def explained(
    name: str, values: Mapping[str, str | float], subjects: Sequence[str], vectors_SE: npt.ArrayLike, seed: int
) -> Explained | None:
    """Regress embeddings on a property: the PERMANOVA of Anderson (2001) with Euclidean distances.

    Parameters
    ----------
    name : str
        For the table.
    values : mapping
        Subject to a level (str) or a number (float).
    subjects : sequence of str
        Rows of `vectors_SE`; those without a value are left out.
    vectors_SE : array_like, shape (S, E)
        Embeddings.
    seed : int
        Of the permutations.

    Returns
    -------
    Explained or None
        None where the property is constant, or has about as many levels as there are subjects.
    """
    rows = [row for row, who in enumerate(subjects) if who in values]
    design_SC = _design([values[subjects[row]] for row in rows])
    spare = len(rows) - 1 - design_SC.shape[1]
    if design_SC.shape[1] == 0 or spare < design_SC.shape[1]:
        return None
    centred_SE = np.asarray(vectors_SE, np.float64)[rows]
    centred_SE = centred_SE - centred_SE.mean(axis=0)
    total = float(np.square(centred_SE).sum())
    if total == 0:
        return None
    basis_SC = np.linalg.qr(design_SC - design_SC.mean(axis=0))[0]
    rng = np.random.default_rng(seed)
    share = float(np.square(basis_SC.T @ centred_SE).sum()) / total
    null = [float(np.square(basis_SC[rng.permutation(len(rows))].T @ centred_SE).sum()) for _ in range(PERMUTATIONS)]
    above = int(np.sum(np.array(null) / total >= share - 1e-12))
    adjusted = 1 - (1 - share) * (len(rows) - 1) / spare
    return Explained(name=name, num_subjects=len(rows), share=adjusted, p_value=(1 + above) / (1 + PERMUTATIONS))


def _design(values: Sequence[str | float]) -> Floats:
    """One column for a number, one less than there are levels for levels; none for a constant."""
    if all(isinstance(value, float) for value in values):
        column = np.array(values, dtype=np.float64)
        return column[:, None] if column.size and np.ptp(column) > 0 else np.zeros((len(values), 0))
    levels = sorted({str(value) for value in values})
    return np.array([[float(value == level) for level in levels[1:]] for value in values]).reshape(len(values), -1)
