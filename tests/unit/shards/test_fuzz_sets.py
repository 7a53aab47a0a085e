"""100,000 fuzzed manifests, tables, masks, tars and chunk indices: only our errors, in bounded time and memory."""

from __future__ import annotations

import pytest
from fuzz_cases import CASES, campaign

COUNTS = {
    "manifest": 25_000,
    "runs": 20_000,
    "participants": 5_000,
    "mask": 5_000,
    "set": 15_000,
    "tar": 15_000,
    "chunks": 15_000,
}
"""Cases of each kind; the fast test takes a twentieth."""


def check(kind: str, seed: int, count: int, timeout_s: float) -> None:
    result = campaign(kind, seed, count, timeout_s)
    assert result.failures == []
    assert result.cases == count
    assert 0.3 * count < result.refused < count  # the mutations reach the checks, and not only the first
    assert result.worst_s < 2
    assert result.grown_mb < 200


@pytest.mark.parametrize("kind", CASES)
def test_fuzzed_files_raise_only_our_errors(kind: str) -> None:
    check(kind, 0, COUNTS[kind] // 20, 120)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", CASES)
def test_100_000_fuzzed_files_raise_only_our_errors(kind: str) -> None:
    assert sum(COUNTS.values()) == 100_000
    check(kind, 1, COUNTS[kind], 1700)
