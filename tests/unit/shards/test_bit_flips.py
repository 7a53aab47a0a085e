"""Nothing silent: each single-bit flip of a small set is caught by `verify`, and by the reader for what it reads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from forged_sets import SHARD, tiny_set

from shards.errors import BoldstreamError, ShardError
from shards.format import MANIFEST, MASK, PARTICIPANTS, RUNS
from shards.reader import ShardSet
from shards.shard_check import ShardCheck
from shards.storage import open_storage
from shards.verify import ignore, verify_set

TABLES = (MANIFEST, RUNS, MASK, PARTICIPANTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_set(tmp_path_factory.mktemp("flips"))


@contextmanager
def flipping(path: Path) -> Iterator[Callable[[int], None]]:
    """Return a function that flips a bit of the file; a second time, and it is as before."""
    with path.open("r+b", buffering=0) as file:

        def flip(bit: int) -> None:
            (byte,) = os.pread(file.fileno(), 1, bit // 8)
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)

        yield flip


def uncaught(path: Path, bits: Iterable[int], caught: Callable[[], bool]) -> list[int]:
    """The bits whose flip is not caught."""
    missed = []
    with flipping(path) as flip:
        for bit in bits:
            flip(bit)
            if not caught():
                missed.append(bit)
            flip(bit)
    return missed


def one_of_each_byte(path: Path) -> list[int]:
    """A bit of every byte, each of the eight in turn; all of them take minutes."""
    return [8 * byte + byte % 8 for byte in range(path.stat().st_size)]


def refused(read: Callable[[], object]) -> bool:
    """Whether a read raises one of our errors."""
    try:
        read()
    except BoldstreamError:
        return True
    return False


def verify_catches(folder: Path) -> bool:
    try:
        return bool(verify_set(folder, threads=1).findings)
    except ShardError:
        return True  # an unknown version is refused


@pytest.mark.parametrize("name", TABLES)
def test_verify_catches_a_bit_of_every_byte_of_a_table(folder: Path, name: str) -> None:
    assert uncaught(folder / name, one_of_each_byte(folder / name), lambda: verify_catches(folder)) == []


def test_verify_catches_a_bit_of_every_byte_of_a_shard(folder: Path) -> None:
    with ShardSet(folder) as opened:
        manifest, entries = opened.manifest, {entry.run_id: entry for entry in opened.runs}
    storage = open_storage(folder)
    storage.expect({shard.name: shard.num_bytes for shard in manifest.shards})

    def caught() -> bool:
        check = ShardCheck(storage, manifest, manifest.shards[0], entries, decode=False, progress=ignore)
        check.run(threading.Event())
        return bool(check.problems.listed())

    assert not caught()
    assert uncaught(folder / SHARD, one_of_each_byte(folder / SHARD), caught) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLES, SHARD])
def test_verify_catches_every_bit_of_every_file(folder: Path, name: str) -> None:
    path = folder / name
    assert uncaught(path, range(8 * path.stat().st_size), lambda: verify_catches(folder)) == []


@pytest.mark.parametrize("name", TABLES)
def test_opening_refuses_every_flip_or_gives_the_same(folder: Path, name: str) -> None:
    def content() -> list[object]:
        with ShardSet(folder) as opened:
            return [opened.manifest, repr(opened.runs), opened.mask.tobytes(), opened.phenotype("age")]

    right = content()
    path = folder / name
    wrong = uncaught(path, range(8 * path.stat().st_size), lambda: refused(content) or content() == right)
    assert wrong == []


def test_statistics_refuse_every_flip_or_are_the_same(folder: Path) -> None:
    with ShardSet(folder) as opened:
        entry = opened.runs[1]
        right = [getattr(opened.statistics(1), name).copy() for name in ("mean", "std", "scale")]

        def caught() -> bool:
            try:
                found = opened.statistics(1)
            except ShardError:
                return True
            return all(
                np.array_equal(getattr(found, name), array)
                for name, array in zip(("mean", "std", "scale"), right, strict=True)
            )

        bits = range(8 * entry.offset, 8 * entry.bold_offset)
        assert uncaught(folder / SHARD, bits, caught) == []


def test_windows_refuse_every_flip_of_what_they_are_read_from(folder: Path) -> None:
    with ShardSet(folder) as opened:
        entry = opened.runs[0]

    def caught() -> bool:
        with ShardSet(folder) as opened:  # a set keeps the indices that it has read
            return refused(lambda: opened.read_window(0, 1, 4))

    bits = range(8 * entry.bold_offset, 8 * (entry.bold_offset + entry.bold_bytes))
    assert uncaught(folder / SHARD, bits, caught) == []
