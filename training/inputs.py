"""What a run starts from, opened and checked before anything is written."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import order
from shards.errors import MismatchError, UsageError
from shards.loader import WindowLoader
from shards.reader import ShardSet
from shards.splits import Split, check_split, family_column, load_split, make_split, read_strata
from shards.storage.cache import CacheConfig
from shards.union import ShardUnion, open_sets
from training.checkpoints.transfer import Init, open_init
from training.config import NO_INIT, ResolvedConfig
from training.engine.environment import Place
from training.finetuning.targets import Target, known_numbers, learn_target
from training.finetuning.task import check_subjects

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Shard set, split, earlier phase and target of a run.

    Attributes
    ----------
    train_runs, val_runs
        Numbers of the runs to train and validate on; in phase 3 those of subjects with a target.
    train, val
        Phase 3: subject to number. Empty otherwise.
    """

    shard_set: ShardSet
    split: Split
    init: Init | None
    target: Target | None
    train: dict[str, float]
    val: dict[str, float]
    train_runs: list[int]
    val_runs: list[int]

    @property
    def hashes(self) -> dict[str, str | None]:
        """Identity of what goes in."""
        manifest = self.shard_set.manifest
        return {
            "set_hash": manifest.set_hash,
            "mask_hash": manifest.mask_hash,
            "split_hash": self.split.hash,
            "init_hash": self.init.identity if self.init else None,
        }


def open_inputs(config: ResolvedConfig) -> Inputs:
    """Open everything that the flags name.

    Raises
    ------
    BoldstreamError
        Whatever does not exist, does not fit together, or would leak test subjects.
    """
    shard_set = open_sets(config.shards, _cache(config), config.subjects)
    init = None
    if config.init not in (None, NO_INIT):
        init = open_init(Path(str(config.init)), config.phase, shard_set)
    split = _split(config, shard_set, init)
    train_runs, val_runs = split.runs(shard_set, "train"), split.runs(shard_set, "val")
    if not train_runs:
        raise UsageError(
            f"{shard_set.location}: holds none of the split's {len(split.train)} training subjects; make a split of it"
        )
    if config.phase < 3:
        val_runs = _spread(val_runs, config.val_runs)
        return Inputs(
            shard_set=shard_set,
            split=split,
            init=init,
            target=None,
            train={},
            val={},
            train_runs=train_runs,
            val_runs=val_runs,
        )
    values = shard_set.phenotype(str(config.target))
    target = learn_target(str(config.target), values, _with_runs(shard_set, split.train), config.target_kind)
    train = known_numbers(target, values, _with_runs(shard_set, split.train))
    val = known_numbers(target, values, _with_runs(shard_set, split.val))
    check_subjects(target, train, val)
    return Inputs(
        shard_set=shard_set,
        split=split,
        init=init,
        target=target,
        train=train,
        val=val,
        train_runs=[run for run in train_runs if shard_set.runs[run].subject in train],
        val_runs=[run for run in val_runs if shard_set.runs[run].subject in val],
    )


def make_loader(
    config: ResolvedConfig, place: Place, shard_set: ShardSet, runs: list[int], mode: str, *, alone: bool = False
) -> WindowLoader:
    """Loader of this rank's windows; `alone`: of all windows, as if there were one rank."""
    options: dict[str, Any] = {} if alone else {"rank": place.rank, "world_size": place.world_size}
    if mode == "train":
        options["weights"] = run_weights(config, shard_set, runs)
        options["pairs"] = config.phase == 2 and config.pair_weight > 0
    return WindowLoader(
        shard_set,
        runs=runs,
        window=config.window,
        batch_size=int(config.batch_size or 1),
        mode="train" if mode == "train" else "tile",
        seed=config.seed,
        threads=config.threads,
        on_bad=config.on_bad_data,
        intensity=bool(config.intensity),
        pin_memory=place.device.type == "cuda",
        **options,
    )


def run_weights(config: ResolvedConfig, shard_set: ShardSet, runs: list[int]) -> NDArray[np.float64] | None:
    """How often each of the runs is drawn, as --sample_by and --shard_weights say; None: every window once an epoch."""
    if config.sample_by == "window" and config.shard_weights is None:
        return None
    entries = [shard_set.runs[run] for run in runs]
    lengths = order.parse_window(config.window, [entry.tr_s for entry in entries])
    weights = order.natural_counts([entry.num_frames for entry in entries], lengths).astype(np.float64)
    if config.sample_by == "run":
        weights = order.shares(weights, range(len(runs)))
    elif config.sample_by == "subject":
        weights = order.shares(weights, np.unique([entry.subject for entry in entries], return_inverse=True)[1])
    if config.shard_weights is not None and isinstance(shard_set, ShardUnion):
        weights = order.shares(weights, shard_set.set_of_run[runs], config.shard_weights)
    return weights


def _cache(config: ResolvedConfig) -> CacheConfig | None:
    return None if config.cache is None else CacheConfig(folder=config.cache, num_bytes=int(config.cache_gb * 1e9))


def _split(config: ResolvedConfig, shard_set: ShardSet, init: Init | None) -> Split:
    """The split of --init, of --split, or a new one; checked against the shard set."""
    if init is not None:
        split, where = _inherited(config, init), f"--init {init.folder}"
    elif config.split is not None:
        split, where = load_split(config.split), f"--split {config.split}"
    else:
        return _new_split(config, shard_set)
    check_split(split, shard_set, where)
    return split


def _inherited(config: ResolvedConfig, init: Init) -> Split:
    if config.split_flags():
        flag = config.split_flags()[0]
        raise UsageError(f"{flag}: the split is inherited from --init {init.folder}; leave it out")
    if config.split is not None and load_split(config.split).hash != init.split.hash:
        raise MismatchError(
            f"--split {config.split}: hash {load_split(config.split).hash}, --init {init.folder} was trained with "
            f"{init.split.hash}; its test subjects may have been seen, leave --split out"
        )
    return init.split


def _new_split(config: ResolvedConfig, shard_set: ShardSet) -> Split:
    subjects = [entry.subject for entry in shard_set.runs]
    group = _group_column(config, shard_set)
    strata = read_strata(shard_set, config.split_stratify or (), subjects)
    return make_split(
        subjects,
        groups=shard_set.phenotype(group) if group else None,
        strata=strata.values,
        fractions=config.split_fractions or (0.7, 0.15, 0.15),
        seed=config.split_seed or 0,
        rule={"group": group, "stratify": strata.words},
    )


def _group_column(config: ResolvedConfig, shard_set: ShardSet) -> str | None:
    if config.split_group is not None:
        return None if config.split_group == "none" else config.split_group
    found = family_column(shard_set)
    if found:
        logger.info("split: families are kept together by the column %s; --split_group none to change that", found)
    return found


def _with_runs(shard_set: ShardSet, subjects: tuple[str, ...]) -> list[str]:
    present = {entry.subject for entry in shard_set.runs}
    return [subject for subject in subjects if subject in present]


def _spread(runs: list[int], most: int) -> list[int]:
    """At most so many runs, evenly spread."""
    if len(runs) <= most:
        return runs
    return [runs[k * len(runs) // most] for k in range(most)]
