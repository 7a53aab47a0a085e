"""What explaining a model gives, and its files.

Shapes: S subject, K output, V voxel, C class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.arrays import map_image
from eval.explain.attention import Attention
from eval.scoring.metrics import Floats
from eval.targets import Target

MAPS = "maps.npz"
GROUP, Z, IMPORTANCE = (f"attribution_{what}_stat.nii.gz" for what in ("group", "group-z", "smoothgradsq"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """One subject whose windows were explained.

    Attributes
    ----------
    subject : str
        Label without 'sub-'.
    y_true : float
        Level number, or value in the target's units.
    margin, change : float
        Means over its windows: the margin of its own class (the output, for a measure), and how far that is from what
        the model says at residual 0.
    attributed : float
        Sum of its map, which should equal `change`.
    correct : bool or None
        Whether these windows alone put it into its class; None for a measure.
    """

    subject: str
    y_true: float
    margin: float
    change: float
    attributed: float
    correct: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Randomised:
    """How much the maps of a model with shuffled weights are like ours: rank correlations over voxels.

    `group` is of the maps of the group, `importance` of the mean squared attributions.
    """

    level: str
    group: float
    importance: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Maps, what speaks for and against them, and attention over time.

    Attributes
    ----------
    target : Target
        What is predicted.
    subset : str
        The part that the subjects are from.
    subjects : tuple of Explained
        Sorted by label.
    group_V, z_V, p_V, threshold
        The map of the group, the same against shuffled labels (`groups.Significance`), |z| of p < 0.05.
    importance_V : numpy.ndarray, shape (V,)
        SmoothGrad-squared, mean over classes of means over subjects.
    class_CV : mapping of str to numpy.ndarray
        Level to the mean map of the margin of that class over its subjects; empty for a measure.
    background_V : numpy.ndarray, shape (V,)
        Mean image of the subjects.
    completeness : tuple of float
        Median and largest gap between the sum of a window's attributions and the change of the output that they
        explain, as shares of the mean size of that change.
    halves : numpy.ndarray
        Rank correlations of the maps of two halves of the subjects.
    randomised : tuple of Randomised
        One for each draw of a model with shuffled weights.
    attention : Attention
        Weights by lag.
    attention_matters : bool
        False where the transformer's output is multiplied by zero.
    tr_s : float or None
        Repetition time, if all windows have the same.
    mask, affine : numpy.ndarray
        Grid of the voxels.
    folder : Path
        Where the files are.
    files : tuple of str
        Their names.
    options : mapping
        windows, steps, noise_samples and seed.
    """

    target: Target
    subset: str
    subjects: tuple[Explained, ...]
    group_V: Floats
    z_V: Floats
    p_V: Floats
    threshold: float
    importance_V: Floats
    class_CV: Mapping[str, Floats]
    background_V: Floats
    completeness: tuple[float, float]
    halves: Floats
    randomised: tuple[Randomised, ...]
    attention: Attention
    attention_matters: bool
    tr_s: float | None
    mask: npt.NDArray[np.bool_]
    affine: Floats
    folder: Path
    files: tuple[str, ...]
    options: Mapping[str, int]

    @property
    def positions_mm(self) -> Floats:
        """Centre of each voxel, `(V, 3)`, in mm."""
        return np.argwhere(self.mask) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def image(self, values_V: Floats) -> Any:
        """The values as a `nibabel.Nifti1Image` on the grid, 0 outside the mask."""
        return map_image(values_V, self.mask, self.affine)


def class_file(level: str, number: int) -> str:
    """Name of the map of a class; levels are free text, file names are not."""
    return f"attribution_class-{number}{re.sub('[^A-Za-z0-9]', '', level)[:40]}_stat.nii.gz"


def subjects_table(subjects: Sequence[Explained], target: Target) -> str:
    """`subjects.tsv`: a row a subject."""
    lines = ["\t".join(("subject", "target", "margin", "change", "attributed", "correct"))]
    for each in subjects:
        value = target.levels[int(each.y_true)] if target.levels else repr(each.y_true)
        correct = "n/a" if each.correct is None else str(each.correct).lower()
        numbers = (f"{number:.6g}" for number in (each.margin, each.change, each.attributed))
        lines.append("\t".join((each.subject, value, *numbers, correct)))
    return "\n".join(lines) + "\n"
