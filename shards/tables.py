"""What the tables of a shard set must agree on: runs against the manifest, and participants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.chunks import CRC_BYTES
from shards.errors import CorruptShardError
from shards.format import BLOCK, Manifest, RunEntry, frames_per_chunk
from shards.strict import shown

_NUM_STATISTICS = 3
_LEAST_CHUNK = 16 + CRC_BYTES + 1  # its pair in the index, its checksum, a byte


def check_runs(entries: Sequence[RunEntry], manifest: Manifest, where: str) -> None:
    """Check that `runs.tsv` and the manifest tell of the same runs, and that each can lie where it says.

    Parameters
    ----------
    entries
        As `runs_from_tsv` returns them.
    where
        The table, for messages.

    Raises
    ------
    CorruptShardError
        Totals differ, a run lies outside its shard or in another's place, or its size does not fit its frames.
    """
    try:
        _check_totals(entries, manifest)
        places = {shard.name: number for number, shard in enumerate(manifest.shards)}
        shard_R = np.array([places.get(entry.shard, -1) for entry in entries], np.int64)
        _refuse(shard_R < 0, entries, "lies in a shard that the manifest does not list")
        _check_places(entries, shard_R, manifest)
        _check_sizes(entries, manifest)
    except ValueError as error:
        raise CorruptShardError(f"{where}: {error}; restore the file") from None


def participants_from_tsv(data: bytes, where: str) -> dict[str, list[str]]:
    """Parse `participants.tsv`: column name to cells, in order of the rows; empty lines are left out.

    Raises
    ------
    CorruptShardError
        Not UTF-8, no `participant_id`, a line of another number of cells, a column or participant twice.
    """
    try:
        rows = [line.split("\t") for line in data.decode("utf-8-sig").splitlines() if line]
        header = rows[0] if rows else []
        if "participant_id" not in header or len(set(header)) < len(header):
            raise ValueError("no participant_id, or a column is there twice")
        for number, row in enumerate(rows):
            if len(row) != len(header):
                raise ValueError(f"row {number} has {len(row)} cells, the header {len(header)}")
        columns = {name: [row[k] for row in rows[1:]] for k, name in enumerate(header)}
        if len(set(columns["participant_id"])) < len(rows) - 1:
            raise ValueError("a participant is there twice")
    except ValueError as error:
        raise CorruptShardError(f"{where}: not a BIDS participants table ({error}); ingest again") from None
    return columns


def _check_totals(entries: Sequence[RunEntry], manifest: Manifest) -> None:
    found = {
        "num_runs": len(entries),
        "num_subjects": len({entry.subject for entry in entries}),
        "num_frames": sum(entry.num_frames for entry in entries),
    }
    for name, count in found.items():
        if getattr(manifest, name) != count:
            raise ValueError(f"{name} is {count}, the manifest says {getattr(manifest, name)}")


def _check_places(entries: Sequence[RunEntry], shard_R: NDArray[np.int64], manifest: Manifest) -> None:
    """Runs of a shard stand in order of `run_id`, none over another, and end before the two zero blocks."""
    begin_R, end_R = _ints(entries, "offset"), _ints(entries, "offset") + _ints(entries, "num_bytes")
    room = np.array([shard.num_bytes - 2 * BLOCK for shard in manifest.shards], np.int64)
    _refuse(end_R > room[shard_R], entries, "lies outside its shard")
    order = np.argsort(shard_R, kind="stable")
    same = shard_R[order][1:] == shard_R[order][:-1]
    over = np.zeros(len(entries), bool)
    over[order[1:]] = same & (begin_R[order][1:] < end_R[order][:-1])
    _refuse(over, entries, "overlaps the run before it in its shard")
    counts = np.bincount(shard_R, minlength=len(room))
    for shard, count in zip(manifest.shards, counts.tolist(), strict=True):
        if shard.num_runs != count:
            raise ValueError(f"{count} runs in {shard.name}, the manifest says {shard.num_runs}")


def _check_sizes(entries: Sequence[RunEntry], manifest: Manifest) -> None:
    statistic = 4 * manifest.num_voxels
    head = 3 * BLOCK + _NUM_STATISTICS * (BLOCK + statistic + -statistic % BLOCK)
    begin_R, bold_R = _ints(entries, "offset"), _ints(entries, "bold_offset")
    _refuse(bold_R - begin_R < head, entries, f"leaves no room for the statistics of {manifest.num_voxels} voxels")
    per_chunk = frames_per_chunk(manifest.num_voxels, np.dtype(manifest.dtype).itemsize)
    chunks_R = -(-_ints(entries, "num_frames") // per_chunk)
    _refuse(chunks_R > _ints(entries, "bold_bytes") // _LEAST_CHUNK, entries, "is too small for its frames")
    wide_R = _ints(entries, "num_wide_voxels") > manifest.num_voxels
    _refuse(wide_R, entries, f"has more wide voxels than the {manifest.num_voxels} of the mask")
    if manifest.dtype.startswith("float"):
        _refuse(np.array([entry.lossless for entry in entries]), entries, f"is lossless as {manifest.dtype}")


def _ints(entries: Sequence[RunEntry], column: str) -> NDArray[np.int64]:
    return np.fromiter((getattr(entry, column) for entry in entries), np.int64, len(entries))


def _refuse(bad_R: NDArray[np.bool_], entries: Sequence[RunEntry], why: str) -> None:
    if bad_R.any():
        raise ValueError(f"{entries[int(bad_R.argmax())].run_id} {why} ({shown(int(bad_R.sum()))} of them)")
