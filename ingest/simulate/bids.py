"""Names and side-car texts of a simulated cohort, laid out as fMRIPrep writes its derivatives::

    dataset_description.json
    participants.tsv, participants.json
    atlas-boldstream_dseg.nii.gz, .tsv
    sub-0001/func/
        sub-0001_task-rest_desc-confounds_timeseries.tsv, .json
        sub-0001_task-rest_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz
        sub-0001_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz, .json
    simulation.json

The last one is written last: it marks a complete cohort.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ingest.simulate.anatomy import (
    ANATOMY_EFFECT_CENTRE_MM,
    ANATOMY_EFFECT_RADIUS_MM,
    Anatomy,
)
from ingest.simulate.cohort import Subject, participants_rows
from ingest.simulate.config import SimulateConfig
from ingest.simulate.regions import NUM_ROTATIONS, ROTATION_HZ, Population

MARKER = "simulation.json"
UNFINISHED = "simulation.partial.json"
DESCRIPTION = "dataset_description.json"
PARTICIPANTS = "participants.tsv"
PARTICIPANTS_JSON = "participants.json"
ATLAS = "atlas-boldstream_dseg.nii.gz"
ATLAS_TABLE = "atlas-boldstream_dseg.tsv"
ROOT_FILES = (DESCRIPTION, PARTICIPANTS, PARTICIPANTS_JSON, ATLAS, ATLAS_TABLE)
SIMULATION_VERSION = 2
"""Rises when the same flags give other bytes."""

_TASK = "task-rest"
_SPACE = "space-MNI152NLin2009cAsym"


def confounds_path(subject: str) -> str:
    """Return the confounds table, relative to the root."""
    return f"{_prefix(subject)}_{_TASK}_desc-confounds_timeseries.tsv"


def confounds_json_path(subject: str) -> str:
    """Return the side-car of the confounds table, relative to the root."""
    return confounds_path(subject).removesuffix(".tsv") + ".json"


def mask_path(subject: str) -> str:
    """Return the brain mask, relative to the root."""
    return f"{_prefix(subject)}_{_TASK}_{_SPACE}_desc-brain_mask.nii.gz"


def bold_path(subject: str) -> str:
    """Return the 4D image, relative to the root."""
    return f"{_prefix(subject)}_{_TASK}_{_SPACE}_desc-preproc_bold.nii.gz"


def bold_json_path(subject: str) -> str:
    """Return the side-car of the 4D image, relative to the root."""
    return bold_path(subject).removesuffix(".nii.gz") + ".json"


def subject_files(subject: str) -> tuple[str, ...]:
    """Return all files of one subject, relative to the root."""
    confounds = (confounds_path(subject), confounds_json_path(subject))
    return (*confounds, mask_path(subject), bold_path(subject), bold_json_path(subject))


def _prefix(subject: str) -> str:
    return f"sub-{subject}/func/sub-{subject}"


def json_text(content: dict[str, Any]) -> str:
    """Return JSON as all files of the cohort have it."""
    return json.dumps(content, indent=2) + "\n"


def dataset_description() -> str:
    """Return dataset_description.json."""
    from importlib.metadata import version

    return json_text(
        {
            "Name": "Simulated fMRI cohort",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "boldstream simulate-fmri",
                    "Version": version("boldstream"),
                    "Description": "Synthetic data with planted effects (simulation.json); no person was scanned.",
                }
            ],
        }
    )


def participants_tsv(config: SimulateConfig, cohort: tuple[Subject, ...]) -> str:
    """Return participants.tsv."""
    rows = participants_rows(config, cohort)
    return "".join("\t".join(cells) + "\n" for cells in (tuple(rows[0]), *(tuple(r.values()) for r in rows)))


def participants_json() -> str:
    """Return participants.json: what each column means."""
    return json_text(
        {
            "sex": {"Description": "Random, carries nothing", "Levels": {"F": "female", "M": "male"}},
            "age": {"Description": "Random, carries nothing", "Units": "years"},
            "group": {
                "Description": "Carries every planted effect (simulation.json); siblings share it",
                "Levels": {"control": "effects point one way", "patient": "effects point the other way"},
            },
            "site": {
                "Description": "Scanner; siblings share it; balanced over group unless --site-imbalance says otherwise",
                "Levels": {"site1": "lower gain, higher tSNR", "site2": "higher gain, lower tSNR"},
            },
            "family": {"Description": "Subjects with the same label are siblings"},
        }
    )


def bold_json(config: SimulateConfig) -> str:
    """Return the side-car of a 4D image."""
    return json_text({"RepetitionTime": config.tr_s, "SkullStripped": True, "TaskName": "rest"})


def atlas_tsv(anatomy: Anatomy, population: Population) -> str:
    """Return the parcels' names, networks and centres; `index` is the value in the image."""
    lines = ["index\tname\themisphere\tnetwork\tx_mm\ty_mm\tz_mm"]
    for parcel, (x, y, z) in enumerate(anatomy.centres_mm_R3):
        side = "LR"[parcel % 2]
        name = f"{side}{parcel // 2 + 1:03d}"
        network = population.networks_R[parcel] + 1
        lines.append(f"{parcel + 1}\t{name}\t{side}\t{network}\t{x:.2f}\t{y:.2f}\t{z:.2f}")
    return "\n".join(lines) + "\n"


def simulation_json(config: SimulateConfig, population: Population) -> str:
    """Return simulation.json: the configuration, and where each planted effect lies."""
    first, second = (np.flatnonzero(population.networks_R == network) + 1 for network in (0, 1))
    return json_text(
        {
            "simulation_version": SIMULATION_VERSION,
            "config": config.identity(),
            "planted": {
                "column": "group",
                "fc": {
                    "size": config.effect_fc,
                    "what": "coupling of two networks in the logarithm of the covariance; patient is higher",
                    "parcels": [first.tolist(), second.tolist()],
                },
                "dynamics": {
                    "size": config.effect_dynamics,
                    "what": "direction of time of rotating patterns; mean, variance and static FC are equal",
                    "rotations": NUM_ROTATIONS,
                    "frequency_hz": ROTATION_HZ * config.effect_dynamics,
                },
                "anatomy": {
                    "size": config.effect_anatomy,
                    "what": "Gaussian profile on the mean image; patient is brighter",
                    "centre_mm": list(ANATOMY_EFFECT_CENTRE_MM),
                    "sd_mm": ANATOMY_EFFECT_RADIUS_MM,
                },
            },
        }
    )
