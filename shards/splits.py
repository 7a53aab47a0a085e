"""Train, validation and test subjects: made once, stored with a hash, refused when they differ.

The unit is the subject; groups (families) never cross; strata (target, site) are balanced. The
result depends on the subjects' labels and the seed, not on their order in any table.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.errors import MismatchError, UsageError
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
            split = cls(rule=values["rule"], seed=int(values["seed"]), counts=values["counts"], **parts)
            recorded = values["hash"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{where}: not a split file ({type(error).__name__}: {error}); make one anew") from None
        twice = [who for who, count in Counter([*split.train, *split.val, *split.test]).items() if count > 1]
        if twice:
            raise UsageError(f"{where}: subject {twice[0]} stands in more than one part; make the split anew")
        if recorded != split.hash:
            raise MismatchError(
                f"{where}: hash {recorded} recorded, its subjects give {split.hash}; the list was edited, restore it"
            )
        return split


def make_split(
    subjects: Iterable[str],
    *,
    groups: Mapping[str, str] | None = None,
    strata: Mapping[str, str] | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    rule: Mapping[str, Any] | None = None,
) -> Split:
    """Divide subjects into train, validation and test.

    Parameters
    ----------
    subjects
        Labels; repeats count once.
    groups
        Subject to group (family); a group is never divided. Subjects without one are alone.
    strata
        Subject to stratum (target, site); parts get equal proportions as far as groups allow.
    fractions
        Of train, validation, test; they sum to 1.
    seed
        Another seed, another split.
    rule
        Words to store with it, such as the names of the columns.

    Raises
    ------
    UsageError
        The fractions do not sum to 1, or a part with a positive fraction gets no subject.
    """
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) < 0 or fractions[0] <= 0:
        raise UsageError(f"--split_fractions {fractions}: three numbers >= 0 that sum to 1, the first > 0")
    names = sorted(set(subjects))
    strata = strata or {}
    families = _families(names, groups or {})
    families.sort(
        key=lambda family: (-len(family), xxhash.xxh3_64_intdigest(family[0].encode(), seed % 2**64), family[0])
    )
    totals = Counter(strata.get(name, "") for name in names)
    taken: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for family in families:
        need = Counter(strata.get(name, "") for name in family)
        part = _neediest(need, totals, taken, fractions)
        parts[part] += family
        taken[part] += need
    for part, fraction in zip(PARTS, fractions, strict=True):
        if fraction > 0 and not parts[part]:
            raise UsageError(
                f"split of {len(names)} subjects in {len(families)} families: {part} gets none at {fraction:g}; "
                "add subjects or change --split_fractions"
            )
    return Split(
        train=tuple(sorted(parts["train"])),
        val=tuple(sorted(parts["val"])),
        test=tuple(sorted(parts["test"])),
        rule={"fractions": list(fractions)} | dict(rule or {}),
        seed=seed,
        counts={part: dict(sorted(taken[part].items())) for part in PARTS},
    )


def save_split(path: Path, split: Split) -> None:
    """Write a split file, atomically."""
    write_atomic(path, split.to_json())


def load_split(path: Path) -> Split:
    """Read a split file; raises `UsageError` or `MismatchError`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}; give a split.json") from None
    return Split.from_json(text, str(path))


def _families(names: list[str], groups: Mapping[str, str]) -> list[list[str]]:
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        members[("group", groups[name]) if name in groups else ("alone", name)].append(name)
    return list(members.values())


def _neediest(
    need: Counter[str],
    totals: Counter[str],
    taken: Mapping[str, Counter[str]],
    fractions: tuple[float, float, float],
) -> str:
    """The part whose share of these strata is furthest below its fraction; ties go to the first."""

    def lack(part: str, fraction: float) -> float:
        return sum(
            count * (fraction - taken[part][stratum] / totals[stratum]) / max(fraction, 1e-9)
            for stratum, count in need.items()
        )

    scores = {part: lack(part, f) for part, f in zip(PARTS, fractions, strict=True) if f > 0}
    return max(scores, key=lambda part: scores[part])
