"""Probes of machine and folders, held to what the system itself says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from shards import fitness
from shards.fitness import Finding


def test_probes_of_a_folder_leave_nothing_and_agree_with_the_system(tmp_path):
    below = tmp_path / "not" / "there"
    assert fitness.existing(below) == tmp_path
    assert fitness.free_bytes(below) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert fitness.write_rate(below, 4 << 20) > 1e5
    assert abs(fitness.clock_skew_s(below)) < 1
    assert fitness.links_work(below)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_ahead_is_seen(tmp_path, monkeypatch):
    now = fitness.time.time
    monkeypatch.setattr(fitness.time, "time", lambda: now() - 100)  # this machine is behind the file system
    assert fitness.clock_skew_s(tmp_path) == pytest.approx(100, abs=1)


def test_a_folder_without_links_is_seen(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert not fitness.links_work(tmp_path)


def test_a_control_group_bounds_cores_and_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    files = {"cpu.max": "400000 100000", "memory.max": "3000000", "memory.current": "1000000"}
    monkeypatch.setattr(fitness, "_control_group", files.get)
    assert fitness.usable_cores() == 4
    assert fitness.usable_memory_bytes() == 2_000_000
    monkeypatch.setattr(fitness, "_control_group", {"cpu.max": "max 100000", "memory.max": "max"}.get)
    assert fitness.usable_cores() == 64
    lines = Path("/proc/meminfo").read_text().split()
    assert fitness.usable_memory_bytes() == pytest.approx(1024 * int(lines[lines.index("MemAvailable:") + 1]), rel=0.2)


def test_reading_stops_at_the_end_of_a_small_file(tmp_path):
    (tmp_path / "small").write_bytes(bytes(1000))
    assert fitness.read_rate(tmp_path / "small") > 0


def test_table_lines_up_and_gives_remedies():
    lines = fitness.table([Finding(what="a", found="1"), fitness.note("longer", "2 GB", "take more")])
    assert lines == ["ok    a       1", "note  longer  2 GB; take more"]
