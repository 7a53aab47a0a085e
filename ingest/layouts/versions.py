"""Choosing between versions of one run: the same frames, processed further."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ingest.record import RunRecord


def prefer(records: Sequence[RunRecord], order: Sequence[str]) -> tuple[list[RunRecord], list[str]]:
    """For each run and space, keep the version that comes first in `order`.

    Parameters
    ----------
    records
        `variant` says the version; one that is not in `order` is kept whatever else there is.
    order
        The better first.

    Returns
    -------
    chosen
        In the order given.
    notes
        How many runs of each version were taken and left out, where that needs saying.
    """
    place = {variant: k for k, variant in enumerate(order)}
    best: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.run_id, record.space)
        best[key] = min(best.get(key, len(place)), place.get(record.variant, len(place)))

    def is_best(record: RunRecord) -> bool:
        return place.get(record.variant, -1) in (-1, best[record.run_id, record.space])

    chosen, others = split(records, is_best)
    notes = []
    if others or len({record.variant for record in chosen}) > 1:
        left = f"; also there and not taken: {count_variants(others)}" if others else ""
        notes.append(f"versions taken: {count_variants(chosen)}{left}; others with --include (a pattern of file names)")
    return chosen, notes


def count_variants(records: Sequence[RunRecord]) -> str:
    """Versions and their numbers, as `400 hp2000_clean, 56 minimal`."""
    counts = Counter(record.variant for record in records)
    return ", ".join(f"{count} {variant}" for variant, count in sorted(counts.items()))


def split(records: Sequence[RunRecord], keep: Callable[[RunRecord], bool]) -> tuple[list[RunRecord], list[RunRecord]]:
    """The records that `keep` says yes to, and the others."""
    yes: list[RunRecord] = []
    no: list[RunRecord] = []
    for record in records:
        (yes if keep(record) else no).append(record)
    return yes, no
