"""Sets as earlier builds wrote them, kept as files: they read the same for ever.

`sets/format-1` is of the first build (November 2026), before runs held the hash of their statistics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import shards
from shards.errors import CorruptShardError
from shards.loader import WindowLoader
from shards.reader import ShardSet

SETS = Path(__file__).parent / "sets"


def source(run: int) -> NDArray[np.float32]:
    """(25, 18): what the sets were made of."""
    t, v = np.arange(25)[:, None], np.arange(18)[None]
    return (1000 + 50 * v + 10 * np.sin(0.7 * t * (run + 1) + v) + 0.3 * ((7 * t * t + 3 * v * t + run) % 11)).astype(
        "f4"
    )


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_format_1_reads_as_it_did(dtype: str) -> None:
    with ShardSet(SETS / "format-1" / dtype) as opened:
        assert [entry.run_id for entry in opened.runs] == [f"sub-{k:02d}_task-rest" for k in range(3)]
        assert opened.phenotype("sex") == {"00": "F", "01": "M", "02": "M"}
        for number, entry in enumerate(opened.runs):
            signal = source(number)
            assert np.abs(opened.read_run(number) - signal).max() <= entry.error_max * (1 + 1e-6)
            np.testing.assert_allclose(opened.statistics(number).mean, signal.mean(0, dtype="f8"), rtol=1e-6)
            np.testing.assert_allclose(opened.statistics(number).std, signal.std(0, dtype="f8"), rtol=1e-5)
        windows = [
            key for batch in WindowLoader(opened, window=5, batch_size=3, seed=1) for key in batch.start.tolist()
        ]
        assert windows == STARTS
    array = shards.open_zarr(SETS / "format-1" / dtype)["sub-01_task-rest"]
    with ShardSet(SETS / "format-1" / dtype) as opened:
        np.testing.assert_array_equal(array[:], opened.read_window(1, 0, 25))


def test_the_statistics_of_a_set_without_their_hash_are_still_checked_for_what_cannot_be(tmp_path: Path) -> None:
    old = SETS / "format-1" / "int8"
    for path in old.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with ShardSet(tmp_path) as opened:
        entry = opened.runs[0]
        data = bytearray((old / entry.shard).read_bytes())
        data[entry.bold_offset - 512 - 512 + 3] = 0xFF  # the sign and exponent of the first scale
        (tmp_path / entry.shard).write_bytes(data)
        with pytest.raises(CorruptShardError, match="statistics are damaged"):
            opened.statistics(0)


STARTS = [4, 19, 16, 5, 20, 10, 7, 9, 16, 2, 13, 19, 3, 8, 2]
