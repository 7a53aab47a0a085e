"""Where a model comes from: the runs that its run folder started from, followed back by `init`, identity checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import BoldstreamError, CorruptShardError, MismatchError
from shards.splits import Split, load_split

FROM_NOTHING = (None, "none")
"""What `init` says in the configuration of a run that started from random weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestor:
    """A run that weights were taken from.

    Attributes
    ----------
    named : str
        As the run after it was given it (`--init`).
    weights_hash : str
        Of the weights that were taken.
    folder : Path or None
        Where the run lies now; None where it cannot be found or read.
    reason : str
        Why it cannot be read; '' where it can.
    config : mapping
        Its resolved configuration; empty where it cannot be read.
    split : shards.splits.Split or None
        Who it was trained and validated on.
    """

    named: str
    weights_hash: str
    folder: Path | None = None
    reason: str = ""
    config: Mapping[str, Any]
    split: Split | None = None

    @property
    def phase(self) -> int | None:
        """1 or 2, or None where it cannot be read."""
        return None if self.folder is None else int(self.config["phase"])


def ancestors(folder: Path, config: Mapping[str, Any]) -> tuple[Ancestor, ...]:
    """The runs behind a run, the nearest first.

    `init` is a path as it was typed, so it is looked for from the working directory, from the run folder's parents,
    and beside the run folder. Only a folder whose weights have the recorded hash is taken for the ancestor.

    Parameters
    ----------
    folder : Path
        A run folder.
    config : mapping
        Its resolved configuration (`config.json`).

    Returns
    -------
    tuple of Ancestor
        Ends with the run that started from random weights, or with the first that cannot be read; empty for a run
        that itself started from random weights.
    """
    return tuple(_follow(folder, config))


def _follow(folder: Path, config: Mapping[str, Any]) -> Iterator[Ancestor]:
    while config.get("init") not in FROM_NOTHING:
        found = _ancestor(folder, config)
        yield found
        if found.folder is None:
            return
        folder, config = found.folder, found.config


def _ancestor(folder: Path, config: Mapping[str, Any]) -> Ancestor:
    named, wanted = str(config["init"]), str(config.get("init_hash"))
    reason = "the folder is not there any more"
    for place in _places(folder, Path(named)):
        try:
            own, split = _read(place, wanted, int(config["phase"]))
        except BoldstreamError as error:
            reason = str(error)
            continue
        return Ancestor(named=named, weights_hash=wanted, folder=place, config=own, split=split)
    return Ancestor(named=named, weights_hash=wanted, reason=reason, config={})


def _places(folder: Path, named: Path) -> list[Path]:
    """Folders that the name can mean, the likeliest first."""
    here = folder.resolve()
    found = [named, *(parent / named for parent in here.parents), here.parent / named.name]
    return [place for place in dict.fromkeys(found) if place.is_dir()]


def _read(place: Path, wanted: str, later_phase: int) -> tuple[dict[str, Any], Split]:
    """Configuration and split of the run that has these weights, in the folder that should hold it."""
    import json

    from training.checkpoints.export import CONFIG, SPLIT, read_description

    description = read_description(place)
    if description.get("weights_xxh3") != wanted:
        raise MismatchError(f"{place} holds other weights now ({description.get('weights_xxh3')}, not {wanted})")
    split = load_split(place / SPLIT)
    if split.hash != description.get("split_hash"):
        raise MismatchError(f"{place / SPLIT} is not the split that its weights were trained with")
    try:
        config = dict(json.loads((place / CONFIG).read_text()))
        phase = int(config["phase"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptShardError(f"{place / CONFIG} cannot be read ({type(error).__name__}: {error})") from None
    if not phase < later_phase:
        raise MismatchError(f"{place} is a phase-{phase} run, which phase {later_phase} cannot have started from")
    return config, split
