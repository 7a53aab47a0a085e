"""The shard-set format: write, read, order, stream, verify. The normative text is `shards/FORMAT.md`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zarr

    from shards.storage.cache import CacheConfig


def open_zarr(location: str | Path, cache: CacheConfig | None = None) -> zarr.Group:
    """Open a shard set as a read-only `zarr.Group`; see `shards.zarr_store.open_zarr`."""
    from shards.zarr_store import open_zarr as opened

    return opened(location, cache)
