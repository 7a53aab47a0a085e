"""Where the files of a shard set lie: a folder, or a URL, with or without a cache on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shards.errors import UsageError

if TYPE_CHECKING:
    from shards.storage.cache import CacheConfig


class Storage(Protocol):
    """Files of one shard set; safe to use from several threads."""

    location: str
    """Folder or URL, without a slash at its end; for messages."""

    def read_file(self, name: str) -> bytes:
        """Read a small file whole.

        Raises
        ------
        FileNotFoundError
            There is none of that name.
        StorageError
            Storage fails.
        """
        ...

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Say which shards there are, name to bytes; one of another size is refused on first use."""
        ...

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        """Fill `room` with the bytes of a shard from `offset` on.

        Raises
        ------
        CorruptShardError
            The shard is missing, has another size than expected, or ends too early.
        StorageError
            Storage fails.
        """
        ...

    def close(self) -> None:
        """Close what is open; reading again opens it anew."""
        ...


def open_storage(location: str | Path, cache: CacheConfig | None = None) -> Storage:
    """Storage of a shard set.

    Parameters
    ----------
    location
        A folder, or anything that fsspec knows (`https://...`, `s3://...`).
    cache
        Keep what was read on this machine; for slow or remote storage.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    if cache is None and "://" not in str(location):
        from shards.storage.local import LocalStorage

        if not Path(location).is_dir():
            raise UsageError(f"{location}: no such folder; give the folder that ingest-fmri wrote (--out)")
        return LocalStorage(Path(location))
    from shards.storage.remote import RemoteStorage

    return RemoteStorage(str(location), cache)
