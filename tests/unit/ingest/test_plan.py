"""Assignment of runs to shards, and sizes as people write them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.plan import assign, estimated_bytes, shard_name
from ingest.sizes import format_size, parse_size
from shards.errors import UsageError


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 200))
def test_shards_cover_the_runs_once_in_order_and_keep_the_limit(sizes, limit):
    cuts = assign(sizes, limit)
    assert [size for cut in cuts for size in sizes[cut]] == sizes
    for cut in cuts:
        assert sum(sizes[cut]) <= limit or len(sizes[cut]) == 1
    for one, two in pairwise(cuts):
        assert sum(sizes[one]) + sizes[two.start] > limit  # closed only because the next did not fit


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 200))
def test_runs_added_behind_change_no_earlier_shard_but_the_last(sizes, limit):
    before = assign(sizes, limit)
    after = assign([*sizes, 50], limit)
    assert after[: len(before) - 1] == before[:-1]


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
def test_estimate_is_near_what_noise_takes(dtype):
    import numpy as np

    from shards.chunks import encode_chunks
    from shards.values import encode

    run = (1000 + 20 * np.random.default_rng(0).standard_normal((50, 4000))).astype(np.float32)
    stored = len(encode_chunks(encode(run, dtype).q)) + 3 * 4 * 4000
    assert stored / 1.3 < estimated_bytes(50, 4000, dtype) < 1.3 * stored


def test_names():
    assert shard_name("abcd", 12) == "abcd-000012.tar"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("512MB", 512_000_000),
        ("1GiB", 2**30),
        ("1.5G", 1_500_000_000),
        ("2000000", 2_000_000),
        (" 3 kib ", 3072),
        ("7b", 7),
        ("0.5TiB", 2**39),
    ],
)
def test_sizes_are_read(text, num_bytes):
    assert parse_size(text, "--shard-size") == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 G B", "1e9", "0", "0.1B", "1XB", "nan"])
def test_other_texts_are_refused_with_the_flag(text):
    with pytest.raises(UsageError, match="--shard-size"):
        parse_size(text, "--shard-size")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (123_456, "123 kB"), (2.5e12, "2.5 TB")]
)
def test_sizes_are_written(num_bytes, text):
    assert format_size(num_bytes) == text
