"""The streaming benchmark runs, reads right data, and does without peers that are not installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[3] / "scripts" / "bench"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import peers` find the families."""
    monkeypatch.syspath_prepend(str(BENCH))


def run(out: Path, *options: str) -> dict:
    command = [sys.executable, BENCH / "stream.py", "--smoke", "--rounds", "1", "--out", out, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict = json.loads(out.read_text())
    return report


def test_smoke_run_times_ours_and_floors(tmp_path: Path) -> None:
    report = run(tmp_path / "out.json", "--only", "ours", "floors", "--cold-rounds", "0")
    rows = {(row["what"], row["delivers"], row["workers"]): row for row in report["warm"]}
    expected = {
        ("ours: read_window", "int8", 1),
        ("ours: WindowLoader, 1 thread", "int8", 1),
        ("ours: WindowLoader, 2 threads", "int8", 2),
        ("ours: WindowLoader, 2 threads", "dense", 2),
        ("bare zstd, numcodecs' library", "int8", 1),
        ("memcpy", "dense", 1),
        ("the consumer alone", "int8", 1),
    }
    assert expected <= rows.keys()
    assert rows["ours: read_window", "int8", 1]["ratio_to_ours"] == 1
    assert all(row["windows_per_s"] > 0 and row["cpu_ms_per_window"] > 0 for row in report["warm"])
    assert report["left_out"] == {}
    assert {"machine", "versions", "date", "command"} <= report.keys()


@pytest.mark.slow
def test_every_family_runs_or_is_not_installed(tmp_path: Path) -> None:
    report = run(tmp_path / "out.json", "--cold-rounds", "1")
    names = {"webdataset": "webdataset", "streaming": "mosaic", "litdata": "litdata", "tensorstore": "tensorstore"}
    absent = {family for module, family in names.items() if importlib.util.find_spec(module) is None}
    assert report["left_out"].keys() == absent
    assert all(note.startswith("not installed: ") for note in report["left_out"].values())
    told = " ".join(row["what"] for row in report["warm"])
    for words in ("zarr-python", "per-frame .pt", "nibabel slice of a .nii.gz", "DataLoader that only moves"):
        assert words in told
    assert {row["what"] for row in report["cold"]} >= {"ours: read_window", "zarr-python on our shard set"}


def test_peer_that_is_not_installed_is_named(peers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peers import mosaic
    from peers.process import Served
    from peers.windows import SMOKE, simulate

    simulate(tmp_path / "windows", SMOKE)
    monkeypatch.setattr(mosaic, "PACKAGES", {"no_such_module": "no-such-package"})
    assert Served("mosaic", tmp_path).prepare() == {"absent": ["no-such-package"]}


def test_wrong_window_is_not_timed(peers: None, tmp_path: Path) -> None:
    from peers.contract import Consumer, WrongDataError
    from peers.windows import SMOKE, simulate

    windows = simulate(tmp_path / "windows", SMOKE)
    consumer = Consumer()
    for run_number, start in windows.keys:
        window = windows.window(run_number, start)
        window[3, 5] += (run_number, start) == windows.keys[2]
        consumer(window, run_number, start)
    with pytest.raises(WrongDataError, match="1 of 8 windows differ"):
        consumer.check(lambda key: windows.digest("int8", key), 8, all_different=True)


def test_dense_reference_is_the_mask_put_into_the_cube(peers: None, tmp_path: Path) -> None:
    from peers.windows import SMOKE, simulate

    windows = simulate(tmp_path / "windows", SMOKE)
    grid = np.zeros(SMOKE.grid, np.float32)
    grid[windows.mask] = windows.stored(0)[7] / np.float32(16)
    cube = windows.volumes(np.array(windows.stored(0)[7:8]))[0]
    inside = np.argwhere(cube != 0)
    x, y, z = (inside + windows.origin).T
    np.testing.assert_array_equal(cube[cube != 0], grid[x, y, z])
    assert np.count_nonzero(cube) == np.count_nonzero(grid)
