"""Memory that a thread keeps: the same bytes again, its own in each thread, and nothing kept beyond the bound."""

from __future__ import annotations

import threading

import numpy as np

from shards.room import Room


def test_it_grows_and_is_used_again() -> None:
    room = Room(1000)
    first, smaller, larger = room.take(100), room.take(40), room.take(300)
    assert (len(first), len(smaller), len(larger)) == (100, 40, 300)
    assert np.shares_memory(first, smaller)
    assert np.shares_memory(larger, room.take(300))


def test_more_than_the_bound_is_not_kept() -> None:
    room = Room(1000)
    kept, large = room.take(1000), room.take(1001)
    assert len(large) == 1001 and not np.shares_memory(large, room.take(1001))
    assert np.shares_memory(kept, room.take(5))


def test_each_thread_has_its_own() -> None:
    room = Room(1000)
    mine, theirs = room.take(10), []
    thread = threading.Thread(target=lambda: theirs.append(room.take(10)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])
