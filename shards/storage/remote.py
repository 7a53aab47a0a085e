"""Shard sets on remote or slow storage, with a cache on this machine in front of it or without."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import CorruptShardError, UsageError
from shards.format import MANIFEST, Manifest
from shards.room import Room
from shards.storage import Storage
from shards.storage.cache import BlockCache, CacheConfig, CachedShard
from shards.storage.local import LocalStorage
from shards.storage.urls import UrlStorage

_block = Room(64 * 1024**2)


class RemoteStorage:
    """Files of a shard set at a URL or in a slow folder (see `shards.storage.Storage`).

    Parameters
    ----------
    location
        A folder, or anything that fsspec knows (`https://...`, `s3://...`).
    cache
        Keep blocks of shards on this machine; without it, each read is one request.

    Raises
    ------
    UsageError
        There is no such folder, or the cache's folder cannot be made.
    """

    def __init__(self, location: str, cache: CacheConfig | None = None) -> None:
        self._given, self._config = location, cache
        self._origin = _origin(location)
        self.location = self._origin.location
        self._cache = None if cache is None else BlockCache(cache)
        self._sizes: dict[str, int] = {}
        self._manifest: bytes | None = None
        self._shards: dict[str, CachedShard] = {}

    def read_file(self, name: str) -> bytes:
        """Read a small file whole, past the cache."""
        data = self._origin.read_file(name)
        if name == MANIFEST:
            self._manifest = data
        return data

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Say which shards there are, name to bytes; the cache tells them by the hashes in the manifest."""
        self._sizes = dict(sizes)
        self._origin.expect(sizes)
        if self._cache is None:
            return
        text = self._manifest or self.read_file(MANIFEST)
        hashes = {shard.name: shard.xxh3 for shard in Manifest.from_json(text, f"{self.location}/{MANIFEST}").shards}
        self._shards = {
            name: self._cache.shard(self.location, name, num_bytes, hashes.get(name, ""))
            for name, num_bytes in sizes.items()
        }

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` of a shard, from the cache where it has the bytes."""
        if name not in self._sizes:
            raise UsageError(f"{self.location}/{name}: not a shard of this set")
        if offset < 0 or offset + len(room) > self._sizes[name]:
            raise CorruptShardError(
                f"{self.location}/{name}: {len(room)} bytes at {offset} asked for, it has {self._sizes[name]}; the "
                "tables do not fit the shard, restore them"
            )
        if self._cache is None:
            self._origin.read_into(name, offset, room)
        else:
            self._cache.read_into(self._shards[name], offset, room, partial(self._fetch, name))

    def close(self) -> None:
        """Close what is open; reading again opens it anew."""
        self._origin.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self._given, "cache": self._config, "sizes": self._sizes, "manifest": self._manifest}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["location"], state["cache"])  # type: ignore[misc]
        self._manifest = state["manifest"]
        if state["sizes"]:
            self.expect(state["sizes"])

    def _fetch(self, name: str, offset: int, num_bytes: int) -> memoryview:
        """A block from where it lies, valid until this thread fetches again."""
        block = _block.take(num_bytes).data
        self._origin.read_into(name, offset, block)
        return block


def _origin(location: str) -> Storage:
    if "://" in location:
        return UrlStorage(location)
    if not Path(location).is_dir():
        raise UsageError(f"{location}: no such folder; give the folder that ingest-fmri wrote (--out)")
    return LocalStorage(Path(location))
