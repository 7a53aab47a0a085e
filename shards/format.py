"""What a shard set says about itself: `manifest.json`, what a run is, names and identities.

Pure data and text, no file access. The normative description is `shards/FORMAT.md`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards import strict
from shards.errors import CorruptShardError, FormatVersionError

FORMAT_NAME = "boldstream-shards"
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
RUNS = "runs.tsv"
MASK = "mask.nii.gz"
PARTICIPANTS = "participants.tsv"

DTYPES = ("int8", "int16", "float16", "float32")
MIN_CHUNK_BYTES = 128 * 1024
MAX_RUN_ID = 90  # a ustar name holds 100 bytes; the longest member suffix is `.scale.f32`
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_TABLE_BYTES = 1024 * 1024 * 1024

MAX_FRAMES = 2**24  # of a run; bounds the memory of its index
MAX_AXIS = 32767  # what a NIfTI-1 header can hold
MAX_GRID = 2**27  # 512 x 512 x 512; bounds the memory of the mask
BLOCK = 512
"""Bytes of a tar block."""

HASH = re.compile(r"[0-9a-f]{32}")
LABEL = re.compile(r"[A-Za-z0-9_-]{1,200}")
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}-[0-9]{6}\.tar")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ENTITY_ORDER = ("subject", "session", "task", "acq", "ce", "rec", "dir", "run", "echo", "space", "res", "desc")
_ENTITY_KEYS = {"subject": "sub", "session": "ses"}


def valid_run_id(run_id: str) -> bool:
    """Whether `run_id` may name a run: letters, digits, `-`, `_`, at most 90 characters."""
    return len(run_id) <= MAX_RUN_ID and _RUN_ID.fullmatch(run_id) is not None


def run_id_from_entities(entities: Mapping[str, str]) -> str:
    """Join BIDS entities to a run id, in BIDS order, empty ones left out.

    Parameters
    ----------
    entities
        `subject`, `session`, `task`, `run`, ... to labels without their prefix.

    Examples
    --------
    >>> run_id_from_entities({"subject": "01", "task": "rest", "run": "2"})
    'sub-01_task-rest_run-2'
    """
    known = [key for key in _ENTITY_ORDER if entities.get(key)]
    other = sorted(key for key in entities if key not in _ENTITY_ORDER and entities[key])
    return "_".join(f"{_ENTITY_KEYS.get(key, key)}-{entities[key]}" for key in known + other)


def frames_per_chunk(num_voxels: int, itemsize: int) -> int:
    """Frames in one inner chunk: one, or as many as fill 128 KiB where a frame is smaller."""
    return max(1, math.ceil(MIN_CHUNK_BYTES / (num_voxels * itemsize)))


def xxh3(data: bytes | memoryview) -> str:
    """XXH3-128 of `data` as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def config_hash(config: Mapping[str, Any]) -> str:
    """Identity of a configuration: XXH3-128 of its canonical JSON."""
    return xxh3(canonical_json(config).encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The shape and affine that all runs of a shard set share, in canonical (RAS+) orientation."""

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    """4 x 4, voxel indices to millimetres."""

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths in millimetres."""
        sizes = np.sqrt((np.asarray(self.affine)[:3, :3] ** 2).sum(0))
        return (float(sizes[0]), float(sizes[1]), float(sizes[2]))


def mask_identity(mask: NDArray[np.bool_], grid: Grid) -> str:
    """Identity of grid and mask together: what the geometry of a model depends on."""
    head = canonical_json({"shape": grid.shape, "affine": [[round(x, 4) for x in row] for row in grid.affine]})
    return xxh3(head.encode() + np.packbits(np.ascontiguousarray(mask, dtype=bool)).tobytes())


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard as the manifest lists it."""

    name: str
    num_bytes: int
    xxh3: str
    num_runs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEntry:
    """One row of `runs.tsv`: where a run lies and how good it is."""

    run_id: str
    subject: str
    """BIDS label without `sub-`."""
    session: str
    task: str
    run: str
    tr_s: float
    num_frames: int
    shard: str
    offset: int
    """Byte of the shard at which the run's first tar header begins."""
    num_bytes: int
    """Bytes of the whole sample in the tar, headers and padding included."""
    bold_offset: int
    """Byte of the shard at which the `.bold` member's data begin."""
    bold_bytes: int
    source: str
    """Path of the source relative to the ingested folder."""
    source_bytes: int
    source_xxh3: str
    num_wide_voxels: int
    """Voxels whose scale is not std/16 (int8) or std/1024 (int16)."""
    error_max: float
    """Largest |stored - source| in units of the source signal."""
    error_rms: float
    error_rms_rel: float
    """error_rms over the rms temporal SD."""
    lossless: bool
    grid_slope: float
    """Step of the source's own integers; nan unless lossless."""
    grid_inter: float
    tsnr_median: float
    mean_fd_mm: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The root of a shard set; written last, so what it lists is complete."""

    name: str
    dtype: str
    grid: Grid
    num_voxels: int
    mask_hash: str
    mask_source: str
    codec: dict[str, Any]
    cleaning: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    shards: tuple[ShardInfo, ...]
    num_runs: int
    num_subjects: int
    num_frames: int
    tables: dict[str, str]
    """File name to XXH3-128 of mask.nii.gz, runs.tsv and, if there is one, participants.tsv."""
    software: dict[str, str]

    @property
    def set_hash(self) -> str:
        """Identity of the stored data: geometry, dtype and every shard's bytes."""
        shards = [[shard.name, shard.xxh3] for shard in self.shards]
        return xxh3(canonical_json([FORMAT_VERSION, self.dtype, self.mask_hash, shards]).encode())

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        head = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "set_hash": self.set_hash}
        values = head | asdict(self)
        values["manifest_hash"] = manifest_hash(values)
        return json.dumps(values, indent=1, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Parse and check `manifest.json`.

        Raises
        ------
        FormatVersionError
            The format or its version is not one that this reader knows.
        CorruptShardError
            The text is not what a writer of this version makes.
        """
        try:
            values = strict.load_json(text, MAX_MANIFEST_BYTES)
            found = [strict.item(values, "format"), strict.item(values, "version")]
        except ValueError as error:
            raise CorruptShardError(
                f"{where}: not a boldstream manifest ({error}); ingest again or restore it"
            ) from None
        if found != [FORMAT_NAME, FORMAT_VERSION] or type(found[1]) is not int:
            raise FormatVersionError(
                f"{where}: format {strict.shown(found[0])} version {strict.shown(found[1])}, this reader knows "
                f"{FORMAT_NAME!r} version {FORMAT_VERSION}; update boldstream or ingest again"
            )
        try:
            manifest = cls._from_values(values)
            _check_hashes(values, manifest)
        except ValueError as error:
            raise CorruptShardError(f"{where}: damaged ({error}); restore it") from None
        return manifest

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Manifest:
        grid = _grid(strict.is_a(strict.item(values, "grid"), dict, "grid"))
        name = strict.matching(strict.item(values, "name"), LABEL, "name")
        if strict.item(values, "dtype") not in DTYPES:
            raise ValueError(f"dtype is {strict.shown(values['dtype'])}, allowed are {', '.join(DTYPES)}")
        listed = strict.is_a(strict.item(values, "shards"), list, "shards")
        shards = tuple(_shard(shard, name) for shard in listed)
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("a shard is listed twice")
        num_runs = strict.integer(strict.item(values, "num_runs"), "num_runs")
        if sum(shard.num_runs for shard in shards) != num_runs:
            raise ValueError(f"num_runs is {num_runs}, the shards hold {sum(shard.num_runs for shard in shards)}")
        size = math.prod(grid.shape)
        words = {key: strict.is_a(strict.item(values, key), dict, key) for key in ("codec", "cleaning", "config")}
        return cls(
            name=name,
            dtype=values["dtype"],
            grid=grid,
            num_voxels=strict.integer(strict.item(values, "num_voxels"), "num_voxels", 1, size),
            mask_hash=strict.matching(strict.item(values, "mask_hash"), HASH, "mask_hash"),
            mask_source=strict.is_a(strict.item(values, "mask_source"), str, "mask_source"),
            config_hash=strict.matching(strict.item(values, "config_hash"), HASH, "config_hash"),
            shards=shards,
            num_runs=num_runs,
            num_subjects=strict.integer(strict.item(values, "num_subjects"), "num_subjects", 0, num_runs),
            num_frames=strict.integer(strict.item(values, "num_frames"), "num_frames", num_runs),
            tables=_tables(strict.item(values, "tables")),
            software=_software(strict.item(values, "software")),
            **words,
        )


def check_file_size(num_bytes: int, name: str, where: str) -> None:
    """Refuse a manifest or table that is larger than any writer makes, before it is read."""
    allowed = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_TABLE_BYTES
    if num_bytes > allowed:
        raise CorruptShardError(f"{where}: {num_bytes} bytes, allowed {allowed}; restore the file")


def manifest_hash(values: Mapping[str, Any]) -> str:
    """Hash of a manifest's whole content, without the key `manifest_hash` itself: XXH3-128 of the canonical JSON."""
    return xxh3(canonical_json({key: value for key, value in values.items() if key != "manifest_hash"}).encode())


def _check_hashes(values: dict[str, Any], manifest: Manifest) -> None:
    expected = {"set_hash": manifest.set_hash, "config_hash": config_hash(manifest.config)}
    if "manifest_hash" in values:
        expected["manifest_hash"] = manifest_hash(values)
    for key, value in expected.items():
        if strict.item(values, key) != value:
            raise ValueError(f"{key} {strict.shown(values[key])} does not fit its content")


def _grid(values: dict[str, Any]) -> Grid:
    shape = strict.is_a(strict.item(values, "shape"), list, "grid shape")
    rows = strict.is_a(strict.item(values, "affine"), list, "affine")
    if len(shape) != 3 or len(rows) != 4 or any(type(row) is not list or len(row) != 4 for row in rows):
        raise ValueError("grid shape or affine is not of three, or four by four numbers")
    x, y, z = (strict.integer(size, "grid shape", 1, MAX_AXIS) for size in shape)
    if x * y * z > MAX_GRID:
        raise ValueError(f"a grid of {x * y * z} positions, allowed {MAX_GRID}")
    affine = tuple(tuple(strict.number(cell, "affine") for cell in row) for row in rows)
    return Grid(shape=(x, y, z), affine=affine)


def _shard(values: object, set_name: str) -> ShardInfo:
    shard = strict.is_a(values, dict, "a shard")
    if set(shard) != {"name", "num_bytes", "xxh3", "num_runs"}:
        raise ValueError(f"a shard has the keys {strict.shown(sorted(shard))}")
    name = strict.matching(shard["name"], SHARD_NAME, "name of a shard")
    if name[:-11] != set_name:
        raise ValueError(f"shard {strict.shown(name)} in a set called {strict.shown(set_name)}")
    num_bytes = strict.integer(shard["num_bytes"], f"num_bytes of {name}", 2 * BLOCK)
    if num_bytes % BLOCK:
        raise ValueError(f"{name} has {num_bytes} bytes, not a multiple of {BLOCK}")
    num_runs = strict.integer(shard["num_runs"], f"num_runs of {name}")
    return ShardInfo(
        name=name, num_bytes=num_bytes, xxh3=strict.matching(shard["xxh3"], HASH, f"xxh3 of {name}"), num_runs=num_runs
    )


def _tables(values: object) -> dict[str, str]:
    tables: dict[str, str] = strict.is_a(values, dict, "tables")
    if not {MASK, RUNS} <= tables.keys() <= {MASK, RUNS, PARTICIPANTS}:
        raise ValueError(f"tables are {strict.shown(sorted(tables))}, expected {MASK}, {RUNS} and maybe {PARTICIPANTS}")
    for name, digest in tables.items():
        strict.matching(digest, HASH, f"hash of {name}")
    return tables


def _software(values: object) -> dict[str, str]:
    software: dict[str, str] = strict.is_a(values, dict, "software")
    for name, version in software.items():
        strict.is_a(version, str, f"version of {strict.shown(name)}")
    return software
