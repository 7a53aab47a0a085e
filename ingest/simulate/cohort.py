"""Who takes part in a simulated cohort: groups, sites, families, phenotypes, and everyone's random numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ingest.simulate.config import AGE_RANGE_YEARS, GROUPS, PHENOTYPES, SEXES, SITES, SimulateConfig


class Stream(IntEnum):
    """Independent random streams, so that a change in one flag leaves all other random numbers alone."""

    COHORT = 0
    MISSING = 1
    CONNECTOME = 2
    REGIONS = 3
    ANATOMY = 4
    MOTION = 5
    VOXELS = 6
    FAMILY_CONNECTOME = 7
    FAMILY_ANATOMY = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One participant; `subject` is the label without 'sub-', `effect` is -0.5 (control) or +0.5 (patient)."""

    index: int
    subject: str
    sex: str
    age: float
    group: str
    site: str
    family: int

    @property
    def effect(self) -> float:
        """Which way, in units of an effect's size, this subject lies from the population's middle."""
        return GROUPS.index(self.group) - 0.5

    @property
    def family_label(self) -> str:
        """The family as participants.tsv names it."""
        return f"F{self.family + 1:04d}"


def random_stream(config: SimulateConfig, stream: Stream, index: int = 0) -> np.random.Generator:
    """Return the generator of one stream of one subject (or family)."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(int(stream), index)))


def make_cohort(config: SimulateConfig) -> tuple[Subject, ...]:
    """Draw the participants, balanced over group and, within group, over site as far as `site_imbalance` lets them.

    Families are placed whole, so a group may outnumber the other by at most one family.

    Returns
    -------
    tuple of Subject
        In the order of their labels, which carries no information.
    """
    rng = random_stream(config, Stream.COHORT)
    places: list[tuple[int, str, str]] = []
    filled: Counter[tuple[str, str]] = Counter()
    for family, size in enumerate(_family_sizes(config)):
        group = min(GROUPS, key=lambda g: sum(filled[g, site] for site in SITES))
        site = min(_sites(config, group), key=lambda s: filled[group, s] / _share(config, group, s))
        filled[group, site] += size
        places += [(family, group, site)] * size
    width = max(4, len(str(config.subjects)))
    family_names = rng.permutation(config.subjects)
    subjects = []
    for index, place in enumerate(rng.permutation(config.subjects)):
        family, group, site = places[place]
        subjects.append(
            Subject(
                index=index,
                subject=f"{index + 1:0{width}d}",
                sex=SEXES[int(rng.integers(len(SEXES)))],
                age=round(float(rng.uniform(*AGE_RANGE_YEARS)), 1),
                group=group,
                site=site,
                family=int(family_names[family]),
            )
        )
    return tuple(subjects)


def _share(config: SimulateConfig, group: str, site: str) -> float:
    """Share of a group's members who are scanned at a site."""
    own = GROUPS.index(group) == SITES.index(site)
    return 0.5 * (1 + config.site_imbalance if own else 1 - config.site_imbalance)


def _sites(config: SimulateConfig, group: str) -> list[str]:
    """Sites where a group is scanned at all."""
    return [site for site in SITES if _share(config, group, site) > 0]


def _family_sizes(config: SimulateConfig) -> list[int]:
    """Sizes of all families, the large ones first, singletons last."""
    largest = config.subjects // config.family_size
    num_families = min(round(config.families * config.subjects / config.family_size), largest)
    return [config.family_size] * num_families + [1] * (config.subjects - num_families * config.family_size)


def participants_rows(config: SimulateConfig, cohort: tuple[Subject, ...]) -> list[dict[str, str]]:
    """Return the rows of participants.tsv, with `n/a` where `--missing` says so.

    Notes
    -----
    A missing label hides the group from the table only: the subject's data still carry its effect.
    """
    rows = [
        {
            "participant_id": f"sub-{subject.subject}",
            "sex": subject.sex,
            "age": f"{subject.age:.1f}",
            "group": subject.group,
            "site": subject.site,
            "family": subject.family_label,
        }
        for subject in cohort
    ]
    rng = random_stream(config, Stream.MISSING)
    for column in PHENOTYPES:
        order = rng.permutation(len(rows))
        for row in order[: round(config.missing * len(rows))]:
            rows[row][column] = "n/a"
    return rows
