"""What every command of `eval-fmri` starts from: a phase-3 run and the shard set it was trained on, checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.checkpoint import check_shard_set, read_run_config
from eval.cohort import Cohort, open_cohort
from eval.config import CommonConfig
from eval.ranks import Ranks
from eval.stages import Stage
from eval.targets import Target
from shards.errors import MismatchError, UsageError
from shards.reader import ShardSet
from shards.splits import PARTS, Split

if TYPE_CHECKING:
    from training.networks.model import BoldModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Context:
    """A phase-3 run, its shard set, its subjects, and the ranks at work.

    Attributes
    ----------
    config : CommonConfig
        The command line.
    run_config : mapping
        The run's resolved configuration.
    model : BoldModel
        In evaluation mode, on this rank's device.
    weights_hash : str
        Of the model's weights.
    split, target, cohort, shard_set
        The run's split and target; the open shard set and its people.
    values : mapping of str to float
        Target of each subject that has one: level number, or value in original units.
    ranks : Ranks
        The ranks at work.
    command : str
        As it was typed.
    """

    config: CommonConfig
    run_config: Mapping[str, Any]
    model: BoldModel
    weights_hash: str
    split: Split
    target: Target
    cohort: Cohort
    shard_set: ShardSet
    values: Mapping[str, float]
    ranks: Ranks
    command: str = ""

    @property
    def window(self) -> int | str:
        """Window length of the training: frames (20) or seconds ('16s')."""
        return window_length(self.run_config["window"])

    def subjects(self, part: str) -> tuple[str, ...]:
        """Subjects of a part of the split that have a value of the target, sorted."""
        return tuple(sorted(subject for subject in self.split.subjects(part) if subject in self.values))

    def runs(self, subjects: tuple[str, ...]) -> list[int]:
        """Run numbers of some subjects, ascending."""
        return sorted(run for subject in subjects for run in self.cohort.runs[subject])

    def stage(self, name: str, **options: Any) -> Stage:
        """A stage of this evaluation in its own folder of --out.

        Parameters
        ----------
        name : str
            Of the folder.
        options
            What the result depends on beyond the run and the shard set (JSON values).
        """
        inputs = {
            "weights": self.weights_hash,
            "set": self.shard_set.manifest.set_hash,
            "split": self.split.hash,
            "target": self.target.column,
            "window": str(self.window),
            **options,
        }
        return Stage(self.config.out / name, inputs, self.ranks, self.command)


def window_length(recorded: Any) -> int | str:
    """A window length as a run records it: frames (20) or seconds ('16s')."""
    text = str(recorded)
    return text if text.endswith("s") else int(text)


@contextmanager
def open_context(config: CommonConfig, ranks: Ranks, command: str = "") -> Iterator[Context]:
    """Open the run and the shard set, and refuse what does not belong together.

    Raises
    ------
    UsageError
        The checkpoint, the shard set or the target column cannot be used.
    MismatchError
        Checkpoint, split and shard set do not belong together.
    """
    run_config = read_run_config(config.checkpoint)
    with ShardSet(config.shards) as shard_set:
        check_shard_set(run_config, shard_set, config.checkpoint)
        from training.checkpoints.export import load_model, read_description

        loaded = load_model(config.checkpoint, ranks.device)
        split, target = loaded.split, Target.from_json(loaded.target)
        cohort = open_cohort(shard_set, target.column, split.rule.get("group"))
        check_split(cohort, split)
        yield Context(
            config=config,
            run_config=run_config,
            model=loaded.model,
            weights_hash=str(read_description(config.checkpoint)["weights_xxh3"]),
            split=split,
            target=target,
            cohort=cohort,
            shard_set=shard_set,
            values=target.encode(shard_set.phenotype(target.column)),
            ranks=ranks,
            command=command,
        )


def check_split(cohort: Cohort, split: Split) -> None:
    """Refuse a split of subjects that the shard set does not have.

    Raises
    ------
    MismatchError
        Names how many are missing, and the first.
    """
    wanted = [subject for part in PARTS for subject in split.subjects(part)]
    missing = sorted(subject for subject in wanted if subject not in cohort.runs)
    if missing:
        raise MismatchError(
            f"{cohort.shard_set.location}: {len(missing)} of {len(wanted)} subjects of the split have no run in it, "
            f"first {missing[0]}; give the shard set of the training"
        )


def subjects_to_score(context: Context, part: str) -> tuple[str, ...]:
    """Subjects of a part that can be scored, sorted.

    Raises
    ------
    UsageError
        There are none.
    """
    found = context.subjects(part)
    if not found:
        raise UsageError(
            f"none of the {len(context.split.subjects(part))} {part} subjects of the split has a value of the target; "
            "add it to participants.tsv, or score the other part with --subset"
        )
    return found
