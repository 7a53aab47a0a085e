"""Voxels to label through the real commands: each planted effect is found by the baseline that can see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.baselines.simple import Connectivity, MeanImage, Problem
from eval.cohort import open_cohort
from eval.parcels.parcels import atlas_parcels
from eval.scoring.metrics import score
from eval.targets import Target
from ingest.cli import main as ingest
from ingest.simulate.cli import main as simulate
from shards.reader import ShardSet
from shards.splits import make_split

GROUP = Target(column="group", kind="binary", levels=("control", "patient"), mean=float("nan"), std=float("nan"))


def _aurocs(folder: Path, *effects: str) -> dict[str, float]:
    bids, shards = folder / "bids", folder / "shards"
    size = ["--subjects", "80", "--voxel-mm", "10", "--frames", "80", "--workers", "1"]
    assert simulate(["--out", str(bids), *size, *effects]) == 0
    assert ingest(["--src", str(bids), "--out", str(shards), "--workers", "1"]) == 0
    with ShardSet(shards) as shard_set:
        values = GROUP.encode(shard_set.phenotype("group"))
        strata = {subject: (str(value),) for subject, value in values.items()}
        families = shard_set.phenotype("family")
        split = make_split(values, groups=families, strata=strata, fractions=(0.5, 0.1, 0.4))
        problem = Problem(
            cohort=open_cohort(shard_set, "group"),
            target=GROUP,
            y_fit={subject: values[subject] for subject in (*split.train, *split.val)},
            to_score=split.test,
            threads=1,
            seed=0,
        )
        parcels = atlas_parcels(shard_set, bids / "atlas-boldstream_dseg.nii.gz")
        truth = np.array([values[subject] for subject in split.test])
        return {
            baseline.key: score(truth, baseline.fit_predict(problem).output, "binary")["auroc"]
            for baseline in (Connectivity(parcels, "binary"), MeanImage())
        }


@pytest.mark.parametrize(
    ("effects", "seen_by", "unseen_by"),
    [
        (["--effect-fc", "0.8"], ["fc"], ["mean_image"]),
        (["--effect-fc", "0", "--effect-anatomy", "0.2"], ["mean_image"], ["fc"]),
        (["--effect-fc", "0", "--effect-dynamics", "0.6"], [], ["fc", "mean_image"]),
    ],
    ids=["connectivity", "anatomy", "dynamics"],
)
def test_each_effect_is_seen_by_its_baseline(
    tmp_path: Path, effects: list[str], seen_by: list[str], unseen_by: list[str]
) -> None:
    found = _aurocs(tmp_path, *effects)
    assert all(found[key] > 0.85 for key in seen_by), found
    assert all(found[key] < 0.75 for key in unseen_by), found
