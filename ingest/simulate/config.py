"""What a simulated cohort is made of: the flags of `simulate-fmri`, and the words its tables use."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UsageError

GROUPS = ("control", "patient")
SITES = ("site1", "site2")
SEXES = ("F", "M")
AGE_RANGE_YEARS = (20.0, 70.0)
PHENOTYPES = ("sex", "age", "group")
"""The columns of participants.tsv in which `--missing` puts `n/a`."""


def _default_workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateConfig:
    """Write a synthetic fMRI cohort with planted effects of known size, as fMRIPrep-like BIDS derivatives.

    Every effect separates the two levels of the column `group` (control, patient); a size of 0 switches it
    off. Needs no network. The same flags give the same bytes, whatever the number of workers.
    """

    out: Path
    """Folder to write: absent, empty, or holding this very simulation (complete or interrupted)."""
    subjects: int
    """Number of subjects, one run each (at least 2)."""
    frames: int = 120
    """Frames (volumes) per run (at least 10)."""
    tr_s: float = 2.0
    """Repetition time in seconds."""
    voxel_mm: int = 6
    """Edge of a voxel in mm (2 to 12), on the grid of nilearn's MNI152 template."""
    parcels: int = 60
    """Number of parcels; even, since they come in mirrored pairs."""
    effect_fc: float = 0.6
    """Static connectivity: how far the groups' covariances lie apart along one fixed direction."""
    effect_dynamics: float = 0.0
    """Dynamics only: control runs -s and patient +s of one rotation; mean, variance and static FC are equal."""
    effect_anatomy: float = 0.0
    """Mean image: relative intensity difference between the groups at the centre of one region."""
    site_offset: float = 0.1
    """Relative difference between the two sites in intensity gain and, inversely, in tSNR."""
    site_imbalance: float = 0.0
    """How far site goes with group: 0 balanced, 1 all controls at site1 and all patients at site2."""
    families: float = 0.3
    """Fraction of subjects that have a sibling in the cohort; siblings share half of their deviation from
    the population, their group and their site, so only a split by family is honest."""
    family_size: int = 2
    """Members of a family with siblings (at least 2)."""
    motion: float = 0.02
    """Expected fraction of frames with a head jerk, visible in confounds and images."""
    non_steady: int = 0
    """Frames at the start that are too bright since magnetisation is not yet steady (0 to 5), marked in confounds."""
    missing: float = 0.02
    """Fraction of subjects whose sex, age and group (drawn for each column) read n/a in participants.tsv."""
    seed: int = 0
    """Draws the subjects. Parcels, connectome and directions of the effects are the same for every seed."""
    workers: int = field(default_factory=_default_workers)
    """Processes; does not change the bytes."""

    def __post_init__(self) -> None:
        for name, lowest, highest in _RANGES:
            value = getattr(self, name)
            if not lowest <= value <= highest:
                limit = f"at least {lowest:g}" if highest == _NO_LIMIT else f"{lowest:g} to {highest:g}"
                raise UsageError(f"{_flag(name)} is {value:g}, allowed is {limit}; change {_flag(name)}")
        if self.parcels % 2:
            raise UsageError(
                f"--parcels is {self.parcels}, allowed are even numbers (mirrored pairs); "
                f"take {self.parcels - 1} or {self.parcels + 1}"
            )

    def identity(self) -> dict[str, int | float]:
        """Return the fields that decide the bytes: all but `out` and `workers`."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in ("out", "workers")}


ADDED_LATER = {"site_imbalance": 0.0}
"""Fields that older records lack, with the value that their bytes have."""
_NO_LIMIT = float("inf")
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("subjects", 2, _NO_LIMIT),
    ("frames", 10, _NO_LIMIT),
    ("tr_s", 0.1, 10),
    ("voxel_mm", 2, 12),
    ("parcels", 20, 400),
    ("effect_fc", 0, 4),
    ("effect_dynamics", 0, 4),
    ("effect_anatomy", 0, 1),
    ("site_offset", 0, 1),
    ("site_imbalance", 0, 1),
    ("families", 0, 1),
    ("family_size", 2, _NO_LIMIT),
    ("motion", 0, 0.5),
    ("non_steady", 0, 5),
    ("missing", 0, 1),
    ("seed", 0, _NO_LIMIT),
    ("workers", 1, _NO_LIMIT),
)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
