"""What a shard set says about itself: `manifest.json`, `runs.tsv`, names and identities.

Pure data and text, no file access. The normative description is `shards/FORMAT.md`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import xxhash
from numpy.typing import NDArray

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
        return json.dumps(head | asdict(self), indent=1, ensure_ascii=True, allow_nan=False) + "\n"

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
        if len(text) > MAX_MANIFEST_BYTES:
            raise CorruptShardError(f"{where}: {len(text)} bytes, allowed {MAX_MANIFEST_BYTES}; not a manifest")
        try:
            values = json.loads(text)
            found = (values.pop("format"), values.pop("version"))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CorruptShardError(
                f"{where}: not a boldstream manifest ({type(error).__name__}: {error}); ingest again or restore it"
            ) from None
        if found != (FORMAT_NAME, FORMAT_VERSION):
            raise FormatVersionError(
                f"{where}: format {found[0]!r} version {found[1]!r}, this reader knows {FORMAT_NAME!r} version "
                f"{FORMAT_VERSION}; update boldstream or ingest again"
            )
        try:
            manifest = cls._from_values(values)
            recorded = values["set_hash"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise CorruptShardError(f"{where}: damaged ({type(error).__name__}: {error}); restore it") from None
        if recorded != manifest.set_hash:
            raise CorruptShardError(f"{where}: set_hash {recorded} does not fit its content; restore the file")
        return manifest

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Manifest:
        grid = Grid(
            shape=_shape(values["grid"]["shape"]),
            affine=tuple(tuple(float(x) for x in row) for row in values["grid"]["affine"]),
        )
        if values["dtype"] not in DTYPES or len(grid.affine) != 4 or any(len(row) != 4 for row in grid.affine):
            raise ValueError("dtype or affine out of range")
        if not 0 < int(values["num_voxels"]) <= math.prod(grid.shape):
            raise ValueError(f"num_voxels {values['num_voxels']} on a grid of {grid.shape}")
        shards = tuple(ShardInfo(**shard) for shard in values["shards"])
        if any("/" in shard.name or not shard.name.endswith(".tar") for shard in shards):
            raise ValueError("a shard's name is a plain file name ending in .tar")
        known = {field.name for field in fields(cls)} - {"grid", "shards"}
        return cls(grid=grid, shards=shards, **{key: values[key] for key in known})


def _shape(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    if min(x, y, z) < 1:
        raise ValueError(f"grid shape {(x, y, z)}")
    return (x, y, z)


_COLUMNS = {field.name: field.type for field in fields(RunEntry)}


def runs_to_tsv(entries: Iterable[RunEntry]) -> str:
    """Return the text of `runs.tsv`; rows in order of `run_id`."""
    lines = ["\t".join(_COLUMNS)]
    for entry in sorted(entries, key=lambda entry: entry.run_id):
        lines.append("\t".join(_to_cell(getattr(entry, name)) for name in _COLUMNS))
    return "\n".join(lines) + "\n"


def runs_from_tsv(text: str, where: str) -> tuple[RunEntry, ...]:
    """Parse `runs.tsv`; raises `CorruptShardError` naming the line."""
    lines = text.split("\n")
    if lines[0] != "\t".join(_COLUMNS) or lines[-1] != "":
        raise CorruptShardError(f"{where}: header or end of the table is damaged; restore the file")
    entries = []
    for number, line in enumerate(lines[1:-1], start=2):
        cells = line.split("\t")
        try:
            values = {name: _from_cell(cell, kind) for (name, kind), cell in zip(_COLUMNS.items(), cells, strict=True)}
            entry = RunEntry(**values)  # type: ignore[arg-type]
            _check_entry(entry)
        except ValueError as error:
            raise CorruptShardError(f"{where}, line {number}: {error}; restore the file") from None
        entries.append(entry)
    return tuple(entries)


def _check_entry(entry: RunEntry) -> None:
    if not valid_run_id(entry.run_id) or "/" in entry.shard:
        raise ValueError(f"run_id {entry.run_id!r} or shard {entry.shard!r} is not a plain name")
    if entry.num_frames < 1 or not 0 < entry.tr_s < math.inf:
        raise ValueError(f"num_frames {entry.num_frames}, tr_s {entry.tr_s}")
    inside = 0 <= entry.offset < entry.bold_offset and entry.bold_bytes > 0
    if not inside or entry.bold_offset + entry.bold_bytes > entry.offset + entry.num_bytes:
        raise ValueError("member offsets lie outside the sample")


def _to_cell(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else repr(value)
    return quote(os.fsencode(value), safe=" /:;,.!@#$^&*()[]{}+=~'\"|<>?`\\") if isinstance(value, str) else str(value)


def _from_cell(cell: str, kind: Any) -> str | int | float | bool:
    if kind == "bool":
        if cell not in ("0", "1"):
            raise ValueError(f"{cell!r} is not 0 or 1")
        return cell == "1"
    if kind == "int":
        return int(cell)
    if kind == "float":
        return math.nan if cell == "n/a" else float(cell)
    return unquote(cell, errors="surrogateescape")
