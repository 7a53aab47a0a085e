"""A split and its file: who is in which part, by what rule, with a hash that tells every edit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import ConfigDiffersError, MismatchError, OutputError, UsageError
from shards.format import canonical_json, xxh3
from shards.reader import ShardSet
from shards.writer import write_atomic

PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Subjects (labels without `sub-`) of each part, and the rule that made them."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    rule: dict[str, Any]
    """Fractions, and the names of the group and stratum columns."""
    seed: int
    counts: dict[str, dict[str, int]]
    """Part to stratum to number of subjects."""

    @property
    def hash(self) -> str:
        """Identity: XXH3-128 of who is where."""
        return xxh3(canonical_json([self.train, self.val, self.test]).encode())

    @property
    def part_of(self) -> dict[str, str]:
        """Subject to part."""
        return {subject: part for part in PARTS for subject in self.subjects(part)}

    def subjects(self, part: str) -> tuple[str, ...]:
        """Subjects of `train`, `val` or `test`."""
        if part not in PARTS:
            raise UsageError(f"part {part!r}: allowed are {', '.join(PARTS)}")
        return tuple(getattr(self, part))

    def runs(self, shard_set: ShardSet, part: str) -> list[int]:
        """Numbers of the shard set's runs that belong to a part."""
        wanted = set(self.subjects(part))
        return [number for number, entry in enumerate(shard_set.runs) if entry.subject in wanted]

    def to_json(self) -> str:
        """Return the text of a split file."""
        return json.dumps({"hash": self.hash} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Split:
        """Parse a split file.

        Raises
        ------
        UsageError
            Not a split file, or a subject stands in two parts.
        MismatchError
            The subjects were edited: the stored hash no longer fits.
        """
        try:
            values = json.loads(text)
            parts = {part: tuple(sorted(str(subject) for subject in values[part])) for part in PARTS}
            counts = {part: {str(s): int(n) for s, n in values["counts"][part].items()} for part in PARTS}
            split = cls(rule=dict(values["rule"]), seed=int(values["seed"]), counts=counts, **parts)
            recorded, own = values["hash"], split.hash
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UsageError(f"{where}: not a split file ({type(error).__name__}: {error}); make one anew") from None
        twice = [who for who, count in Counter([*split.train, *split.val, *split.test]).items() if count > 1]
        if twice:
            raise UsageError(f"{where}: subject {twice[0]} stands in more than one part; make the split anew")
        if recorded != own:
            raise MismatchError(
                f"{where}: hash {recorded} recorded, its subjects give {own}; the list was edited, restore it"
            )
        return split


def compose_split(
    parts: Sequence[Iterable[str]], strata: Mapping[str, str], *, seed: int, rule: Mapping[str, Any]
) -> Split:
    """A split of three parts; counts them by stratum (subject to name; `""` where there is none)."""
    train, val, test = (tuple(sorted(part)) for part in parts)
    counted = [Counter(strata.get(subject, "") for subject in part) for part in (train, val, test)]
    counts = {part: dict(sorted(count.items())) for part, count in zip(PARTS, counted, strict=True)}
    return Split(train=train, val=val, test=test, rule=dict(rule), seed=seed, counts=counts)


def save_split(path: Path, split: Split) -> None:
    """Write a split file, atomically."""
    write_atomic(path, split.to_json())


def load_split(path: Path) -> Split:
    """Read a split file; raises `UsageError` or `MismatchError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}; give a split.json") from None
    return Split.from_json(text, str(path))


def publish_splits(splits: Mapping[Path, Split]) -> list[Path]:
    """Write split files that are not there yet; a split that is in use is never replaced.

    Returns
    -------
    list of Path
        Those written now; the others were there already, with the same content.

    Raises
    ------
    ConfigDiffersError
        A file holds another split; nothing was written.
    OutputError
        A path is something else, or cannot be written.
    """
    missing = [path for path, split in splits.items() if not _holds(path, split)]
    for path in missing:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent}: {error.strerror}; choose another folder") from None
        save_split(path, splits[path])
    return missing


def _holds(path: Path, split: Split) -> bool:
    if not path.exists():
        return False
    try:
        found = load_split(path)
    except (UsageError, MismatchError) as error:
        raise OutputError(f"{error}; nothing was overwritten, give another --out") from None
    if found.hash != split.hash:
        raise ConfigDiffersError(
            f"{path}: holds another split (hash {found.hash}, now {split.hash}); runs may depend on it, "
            "give another --out or remove it"
        )
    if found.to_json() != split.to_json():
        raise ConfigDiffersError(
            f"{path}: holds the same subjects by another rule or seed; give another --out, or remove it"
        )
    return True
