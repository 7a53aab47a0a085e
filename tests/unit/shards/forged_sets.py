"""Tiny shard sets, and changes to them after which every hash is right again.

Hashes protect from accidents, not from an author: whoever changes a set can compute them anew. These are the sets
with which the checks behind the hashes are reached.
"""

from __future__ import annotations

import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from shards.format import MANIFEST, MASK, RUNS, Grid, config_hash, manifest_hash, xxh3
from shards.publish import publish_set, run_entry
from shards.values import Encoded, encode
from shards.writer import EncodedRun, write_shard

SHARD = "tiny-000000.tar"
BLOCK = 512
_GRID = Grid(
    shape=(3, 2, 2),
    affine=((4.0, 0.0, 0.0, -4.0), (0.0, 4.0, 0.0, -2.0), (0.0, 0.0, 4.0, -2.0), (0.0, 0.0, 0.0, 1.0)),
)
PARTICIPANT_TABLE = b"participant_id\tage\nsub-01\t31\nsub-02\t44\n"


def tiny_set(folder: Path, runs: list[Encoded] | None = None) -> Path:
    """Write a set of 12 voxels, a shard, a run a subject, with every optional hash; returns its folder."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(5)
    if runs is None:
        runs = [encode((100 + 3 * rng.standard_normal((t, 12))).astype("f4"), "int8") for t in (6, 5)]
    samples = []
    for number, encoded in enumerate(runs, start=1):
        meta = {"subject": f"{number:02d}", "session": "", "task": "rest", "run": "", "entities": {}, "source": ""}
        meta |= {"tr_s": 2.0}
        samples.append(EncodedRun(run_id=f"sub-{number:02d}_task-rest", meta=meta, encoded=encoded))
    written = write_shard(folder / SHARD, samples)
    publish_set(
        folder,
        name="tiny",
        dtype=str(runs[0].q.dtype),
        mask=np.ones(_GRID.shape, bool),
        grid=_GRID,
        entries=[run_entry(run, SHARD, written.places[run.run_id]) for run in samples],
        shards=[written.info],
        participants=PARTICIPANT_TABLE,
        mask_source="all",
        cleaning={"clean": "none"},
        config={"min_frames": 5},
        software={"numpy": "2.0"},
    )
    edit_manifest(folder, lambda manifest: None)
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object], *, rehash: bool = True) -> None:
    """Change the parsed manifest; afterwards its own hashes are right, if what they are taken of is there."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    if rehash:
        hash_manifest(manifest)
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def edit_file(folder: Path, name: str, change: Callable[[bytearray], bytes | bytearray | None]) -> None:
    """Change the bytes of a table or shard, in place or by returning others; then all hashes and sizes are right."""
    data = bytearray((folder / name).read_bytes())
    data = bytearray(change(data) or data)
    (folder / name).write_bytes(data)

    def tell(manifest: dict[str, Any]) -> None:
        if name in manifest["tables"]:
            manifest["tables"][name] = xxh3(bytes(data))
        for shard in manifest["shards"]:
            if shard["name"] == name:
                shard["num_bytes"], shard["xxh3"] = len(data), xxh3(bytes(data))

    edit_manifest(folder, tell)


def edit_rows(folder: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change the cells of `runs.tsv`, a dict a row; then all hashes are right."""

    def rewrite(data: bytearray) -> bytes:
        header, *lines = data.decode().removesuffix("\n").split("\n")
        rows = [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]
        change(rows)
        return "".join(line + "\n" for line in [header, *("\t".join(row.values()) for row in rows)]).encode()

    edit_file(folder, RUNS, rewrite)


def rows(folder: Path) -> list[dict[str, str]]:
    """The cells of `runs.tsv`."""
    found: list[dict[str, str]] = []
    edit_rows(folder, found.extend)
    return found


def replace_bold(folder: Path, bold: bytes) -> None:
    """Put other bytes in the place of the last run's `.bold`; the table and all hashes are right."""
    last = rows(folder)[-1]
    at = int(last["bold_offset"])

    def swap(data: bytearray) -> bytes:
        return (
            data[: at - BLOCK] + header(f"{last['run_id']}.bold", len(bold)) + bold + bytes(-len(bold) % BLOCK + 1024)
        )

    def tell(cells: list[dict[str, str]]) -> None:
        end = at + len(bold) + -len(bold) % BLOCK
        cells[-1] |= {"bold_bytes": str(len(bold)), "num_bytes": str(end - int(last["offset"]))}

    edit_file(folder, SHARD, swap)
    edit_rows(folder, tell)


def bold_of(payloads: list[bytes], index: list[int] | None = None) -> bytes:
    """A `.bold` of these zstd frames; offsets and sizes of its index may be given."""
    stored = [payload + crc32c.crc32c(payload).to_bytes(4, "little") for payload in payloads]
    if index is None:
        ends = np.cumsum([len(chunk) for chunk in stored]).tolist()
        index = [cell for end, chunk in zip(ends, stored, strict=True) for cell in (end - len(chunk), len(chunk))]
    table = struct.pack(f"<{len(index)}Q", *index)
    return b"".join(stored) + table + crc32c.crc32c(table).to_bytes(4, "little")


def header(name: str, size: int, **fields: Any) -> bytes:
    """A ustar header as the writer makes it, other fields by keyword (`type`, `mode`, `linkname`, ...)."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def replace_mask(folder: Path, data: bytes) -> None:
    """Put other bytes in the place of the mask file; its hash is right."""
    edit_file(folder, MASK, lambda _: data)


def hash_manifest(manifest: Any) -> None:
    """Compute the hashes of a parsed manifest anew, as far as what they are taken of is there."""
    try:
        manifest["config_hash"] = config_hash(manifest["config"])
        shards = [[shard["name"], shard["xxh3"]] for shard in manifest["shards"]]
        head = [1, manifest["dtype"], manifest["mask_hash"], shards]
        manifest["set_hash"] = xxh3(json.dumps(head, separators=(",", ":")).encode())
    except (KeyError, TypeError, ValueError):
        pass  # a manifest without these, or with NaN in them, has no such hashes
    try:
        manifest["manifest_hash"] = manifest_hash(manifest)
    except ValueError:
        manifest.pop("manifest_hash", None)
