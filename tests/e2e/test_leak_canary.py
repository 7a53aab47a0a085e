"""The canary of leakage: a cohort of noise in which relatives resemble each other and share a meaningless label.

Nothing in a brain says what the label is, so an honest test finds chance. Who has a relative among the training
subjects can be recognised by that relative, so a split that divides families finds more: the canary sings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_run import write_run
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from eval.config import PredictConfig
from eval.context import open_context
from eval.guards import refuse_leaks
from eval.ranks import Ranks
from shards.errors import MismatchError
from shards.reader import ShardSet
from shards.splits import Split, make_split

NUM_FAMILIES, NUM_REGIONS, NUM_FRAMES, NUM_SPLITS = 100, 12, 60, 20
FRACTIONS = (0.7, 0.1, 0.2)
SUBJECTS = [f"{k:03d}" for k in range(2 * NUM_FAMILIES)]
FAMILY = {subject: f"F{k // 2:02d}" for k, subject in enumerate(SUBJECTS)}


@pytest.fixture
def shards(make_shard_set: Callable[..., Any], mask: NDArray[np.bool_], tmp_path: Path) -> Path:
    """Pairs of relatives; each family has a connectivity of its own, and a label drawn by a coin."""
    rng = np.random.default_rng(7)
    region_V = rng.integers(NUM_REGIONS, size=int(mask.sum()))
    mixing = rng.standard_normal((NUM_FAMILIES, NUM_REGIONS, NUM_REGIONS))
    labels = rng.permutation(["a", "b"] * (NUM_FAMILIES // 2))
    signals, lines = {}, []
    for k, subject in enumerate(SUBJECTS):
        series_TR = rng.standard_normal((NUM_FRAMES, NUM_REGIONS)) @ mixing[k // 2]
        noise_TV = 3 * rng.standard_normal((NUM_FRAMES, region_V.size))
        signals[f"sub-{subject}_task-rest"] = (1000 + 10 * (series_TR[:, region_V] + noise_TV)).astype("f4")
        lines.append(f"sub-{subject}\t{labels[k // 2]}\t{FAMILY[subject]}")
    table = "participant_id\tgroup\tfamily\n" + "\n".join(lines) + "\n"
    make_shard_set(tmp_path / "set", signals=signals, participants=table, runs_per_shard=64)
    np.save(tmp_path / "regions.npy", region_V)
    return tmp_path / "set"


def connectivity(shards: Path) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    """Upper triangle of every subject's correlations between regions, as stored; and the labels."""
    region_V = np.load(shards.parent / "regions.npy")
    above = np.triu_indices(NUM_REGIONS, 1)
    found = {}
    with ShardSet(shards) as shard_set:
        for run, entry in enumerate(shard_set.runs):
            signal_TV = shard_set.read_run(run)
            series_TR = np.stack([signal_TV[:, region_V == r].mean(1) for r in range(NUM_REGIONS)], axis=1)
            found[entry.subject] = np.corrcoef(series_TR.T)[above]
        return found, shard_set.phenotype("group")


def grouped(seed: int) -> Split:
    return make_split(SUBJECTS, groups=FAMILY, fractions=FRACTIONS, seed=seed, rule={"group": "family"})


def naive(seed: int) -> Split:
    return make_split(SUBJECTS, fractions=FRACTIONS, seed=seed, rule={"group": None})


def accuracies(shards: Path, splits: list[Split]) -> NDArray[np.float64]:
    """Share of test subjects whose nearest training subject, by connectivity, has their label; one a split."""
    features, labels = connectivity(shards)
    found = []
    for split in splits:
        x, y = ([values[s] for s in split.train] for values in (features, labels))
        nearest = KNeighborsClassifier(1, metric="correlation").fit(x, y)
        found.append(nearest.score([features[s] for s in split.test], [labels[s] for s in split.test]))
    return np.array(found)


def test_noise_is_at_chance_by_our_split_and_above_it_by_a_naive_one(shards: Path) -> None:
    honest = accuracies(shards, [grouped(seed) for seed in range(NUM_SPLITS)])
    leaking = accuracies(shards, [naive(seed) for seed in range(NUM_SPLITS)])
    assert 0.42 < honest.mean() < 0.58, honest
    assert leaking.mean() > 0.75, leaking


def test_the_guards_pass_the_one_and_refuse_the_other(shards: Path, tmp_path: Path) -> None:
    for name, split, leaks in (("ours", grouped(0), False), ("naive", naive(0), True)):
        run = write_run(tmp_path / name, shards, split)
        config = PredictConfig(checkpoint=run, shards=str(shards), out=tmp_path / "out")
        with open_context(config, Ranks()) as context:
            if leaks:
                with pytest.raises(MismatchError, match=r"F\d\d is divided"):
                    refuse_leaks(context)
            else:
                refuse_leaks(context)
