"""tensorstore on the bytes of our shard set, and on dense float16 volumes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from peers.contract import Consume, Contender, Key, Opened
from peers.windows import Windows
from shards.chunks import zarr_metadata
from shards.reader import ShardSet

PACKAGES = {"tensorstore": "tensorstore"}


def prepare(windows: Windows, folder: Path) -> None:
    """The .bold members as files of a Zarr hierarchy, byte for byte; and dense runs, sharded, not compressed."""
    import tensorstore

    size = windows.size
    with ShardSet(folder.parent / "ours") as shard_set:
        for run, entry in enumerate(shard_set.runs):
            array = folder / "int8" / str(run)
            (array / "c" / "0").mkdir(parents=True)
            (array / "zarr.json").write_text(json.dumps(zarr_metadata(size.frames, size.voxels, "int8", {})))
            (array / "c" / "0" / "0").write_bytes(shard_set.read_stored(run, 0, entry.bold_bytes))
            dense = tensorstore.open(_dense_spec(windows, folder / "dense" / str(run)), create=True, open=True)
            dense.result().write(windows.volumes(np.array(windows.stored(run)))).result()


def contenders(windows: Windows, folder: Path) -> list[Contender]:
    """One window at a time on one thread; two under way on two."""
    found = []
    for delivers in ("int8", "dense"):
        for workers in (1, 2):
            what = {"int8": "our bytes", "dense": "sharded Zarr, not compressed"}[delivers]
            found.append(
                Contender(
                    name=f"tensorstore, {what}, {workers} thread{'s' * (workers > 1)}",
                    delivers=delivers,
                    workers=workers,
                    open=_tensorstore(windows, folder / delivers, workers),
                    cold=workers == 1,
                )
            )
    return found


def _dense_spec(windows: Windows, path: Path) -> dict[str, Any]:
    frames, cube = windows.size.frames, windows.size.cube
    sharding = {
        "chunk_shape": [1, cube, cube, cube],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    metadata = {
        "shape": [frames, cube, cube, cube],
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [frames, cube, cube, cube]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    return {"driver": "zarr3", "kvstore": f"file://{path}/", "metadata": metadata}


def _tensorstore(windows: Windows, folder: Path, threads: int) -> Callable:
    @contextmanager
    def opened() -> Opened:
        import tensorstore

        limits = {name: {"limit": threads} for name in ("data_copy_concurrency", "file_io_concurrency")}
        context = tensorstore.Context(limits)
        arrays = [
            tensorstore.open({"driver": "zarr3", "kvstore": f"file://{folder / str(run)}/"}, context=context).result()
            for run in range(windows.size.runs)
        ]

        def ask(key: Key) -> Any:
            return arrays[key[0]][key[1] : key[1] + windows.size.length].read()

        def read(consume: Consume) -> None:
            ahead = deque(ask(key) for key in windows.keys[: threads - 1])
            for number, key in enumerate(windows.keys):
                ahead.extend(ask(later) for later in windows.keys[number + threads - 1 :][:1])
                consume(ahead.popleft().result(), *key)

        yield read

    return opened
