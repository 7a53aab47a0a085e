"""A cohort of 40,000 runs in 2,000 shards opens, orders, resumes and splits within seconds and little memory.

Measured by `scripts/bench/scale.py` in processes of their own. Limits are on processor seconds, which a busy machine
stretches less than the clock's; the clock's are in `scripts/bench/results/scale.json`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from shards.planning.rates import write_synthetic

NUM_RUNS, NUM_SHARDS = 40_000, 2_000
Measure = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    path = Path(__file__).parents[3] / "scripts" / "bench" / "scale.py"
    spec = importlib.util.spec_from_file_location("bench_scale", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cohort(scale: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "cohort"
    scale.write_sparse(folder, NUM_RUNS, NUM_SHARDS)
    return folder


@pytest.fixture(scope="module")
def measure(scale: ModuleType, cohort: Path) -> Measure:
    def run(what: str, folder: Path = cohort) -> dict[str, float]:
        process = scale.child(what, folder, 1_000_000)
        said, _ = process.communicate()
        assert process.returncode == 0
        return json.loads(said)

    return run


def test_opening_takes_less_than_2_s_and_300_mb_and_reads_no_shard(measure: Measure, cohort: Path) -> None:
    figures = measure("open")
    assert figures["cpu_seconds"] < 2
    assert 10 < figures["peak_mb"] < 300
    shards = list(cohort.glob("*.tar"))
    assert len(shards) == NUM_SHARDS
    assert all(path.stat().st_size > 1e9 and path.stat().st_blocks == 0 for path in shards)


def test_a_million_windows_are_ordered_within_a_second_and_200_mb(measure: Measure) -> None:
    figures = measure("order")
    assert figures["kept_mb"] == pytest.approx(24, rel=0.01)
    assert figures["cpu_seconds"] < 1
    assert figures["peak_mb"] < 200


def test_a_state_is_a_line_and_restores_with_its_order_in_seconds(measure: Measure) -> None:
    figures = measure("state")
    assert figures["state_bytes"] < 1000
    assert figures["save_cpu_seconds"] < 0.1
    assert figures["restore_cpu_seconds"] < 3


def test_the_first_batch_of_full_size_frames_takes_less_than_a_second(measure: Measure, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "small", num_runs=2, num_frames=100, num_voxels=228_483, dtype="int8")
    assert measure("batch", tmp_path / "small")["cpu_seconds"] < 1


def test_ten_thousand_subjects_are_split_within_two_seconds(measure: Measure) -> None:
    assert measure("split")["cpu_seconds"] < 2


def test_ranks_of_a_node_hold_the_set_in_less_than_300_mb_each(scale: ModuleType, cohort: Path) -> None:
    figures = scale.node_memory(cohort, num_ranks=2)
    assert 10 < figures["mb_a_rank"] < 300
    assert figures["mb_in_all"] > 2 * figures["mb_a_rank"]
