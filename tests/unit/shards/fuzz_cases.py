"""What is fuzzed, and a process of its own to do it in: bounded memory, bounded time, and a crash is a finding."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from forged_sets import SHARD, bold_of, hash_manifest, header, rows, tiny_set
from fuzz_mutations import EDGES, mutated, mutated_json, mutated_table
from numcodecs import zstd

from shards import reader
from shards.errors import CorruptShardError, ShardError, UsageError
from shards.format import MANIFEST, MASK, PARTICIPANTS, RUNS, Manifest, frames_per_chunk, xxh3
from shards.mask import read_mask
from shards.runs_table import runs_from_tsv
from shards.shard_check import ShardCheck
from shards.tables import check_runs, participants_from_tsv
from shards.values import Encoded
from shards.verify import ignore

BLOCK = 512
CHUNK = frames_per_chunk(12, 1)
MEMORY = 1024**3
"""Bytes that a campaign may take beyond what the process has before it."""


@dataclass
class Result:
    """What came of a campaign."""

    cases: int
    refused: int
    failures: list[str]
    worst_s: float
    grown_mb: float


class MemoryStorage:
    """Files of a set in memory (see `shards.storage.Storage`)."""

    location = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._sizes: dict[str, int] = {}

    def read_file(self, name: str) -> bytes:
        return self._files[name]

    def expect(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)

    def read_into(self, name: str, offset: int, room: memoryview) -> None:
        data = self._files.get(name, b"")
        if len(data) != self._sizes[name] or offset + len(room) > len(data):
            raise CorruptShardError(f"{name}: too short")
        room[:] = data[offset : offset + len(room)]

    def close(self) -> None:
        """Nothing is open."""


@cache
def originals() -> dict[str, bytes]:
    """The files of a set with three chunks in its second run."""
    rng = np.random.default_rng(1)
    ones = np.ones(12, "f4")
    many = Encoded(
        q=np.repeat(rng.integers(-9, 9, (89, 12)), 246, 0).astype("i1"), mean=ones, std=16 * ones, scale=ones
    )
    few = Encoded(q=rng.integers(-50, 50, (6, 12)).astype("i1"), mean=ones, std=16 * ones, scale=ones)
    assert len(many.q) > 2 * CHUNK
    with tempfile.TemporaryDirectory() as folder:
        tiny_set(Path(folder), [few, many])
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def rehashed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files, the shard in whole blocks, with a manifest whose hashes and sizes are those of the others."""
    files[SHARD] += bytes(-len(files[SHARD]) % BLOCK)
    manifest = json.loads(files[MANIFEST])
    manifest["tables"] = {name: xxh3(files[name]) for name in (RUNS, MASK, PARTICIPANTS)}
    shard = files[SHARD]
    manifest["shards"][0] |= {"num_bytes": len(shard), "xxh3": xxh3(shard)}
    hash_manifest(manifest)
    return files | {MANIFEST: json.dumps(manifest).encode()}


def fuzz_manifest(rng: Random) -> None:
    """A manifest changed as JSON, as a rule with its hashes computed anew, or as bytes."""
    text = originals()[MANIFEST]
    if rng.random() < 0.7:
        values = mutated_json(rng, json.loads(text))
        if rng.random() < 0.9:
            hash_manifest(values)
        text = json.dumps(values).encode()
    if rng.random() < 0.4:
        text = mutated(rng, text, list(originals().values()))
    Manifest.from_json(text, "here")


def fuzz_runs(rng: Random) -> None:
    """A `runs.tsv` changed as a table or as bytes."""
    data = originals()[RUNS]
    if rng.random() < 0.8:
        data = mutated_table(rng, data.decode()).encode(errors="surrogatepass")
    else:
        data = mutated(rng, data, list(originals().values()))
    check_runs(runs_from_tsv(data, "here"), Manifest.from_json(originals()[MANIFEST], "here"), "here")


def fuzz_participants(rng: Random) -> None:
    """A `participants.tsv` changed as a table or as bytes."""
    data = originals()[PARTICIPANTS]
    if rng.random() < 0.5:
        data = mutated_table(rng, data.decode()).encode(errors="surrogatepass")
    participants_from_tsv(mutated(rng, data, list(originals().values())), "here")


def fuzz_mask(rng: Random) -> None:
    """A mask changed inside or outside its gzip."""
    import gzip

    manifest = Manifest.from_json(originals()[MANIFEST], "here")
    data = originals()[MASK]
    if rng.random() < 0.8:
        data = gzip.compress(mutated(rng, gzip.decompress(data), list(originals().values())), compresslevel=1)
    else:
        data = mutated(rng, data, list(originals().values()))
    read_mask(data, manifest.grid, manifest.num_voxels, manifest.mask_hash, "here")


def fuzz_set(rng: Random) -> None:
    """Any file of a set changed, all hashes right: opened and read through the public interface."""
    files = dict(originals())
    name = rng.choice([RUNS, RUNS, MASK, PARTICIPANTS, SHARD, SHARD])
    if name == RUNS:
        files[name] = mutated_table(rng, files[name].decode()).encode(errors="surrogatepass")
    else:
        files[name] = mutated(rng, files[name], list(originals().values()))
    _read(rehashed(files), rng)


def fuzz_tar(rng: Random) -> None:
    """A shard whose headers and members are changed, its hash right: verified with and without decoding."""
    data = bytearray(originals()[SHARD])
    place = rng.choice(_headers(bytes(data)))
    if rng.random() < 0.5:
        name = bytes(data[place : place + 100]).rstrip(b"\0").decode()
        fields: dict[str, Any] = {
            "type": rng.choice([b"0", b"1", b"2", b"3", b"5", b"x", b"g", b"L"]),
            "mode": rng.choice([0o644, 0o644, 0o4777]),
            "linkname": rng.choice(["", "", "/etc/passwd"]),
            "mtime": rng.choice([0, 0, 1]),
        }
        name = rng.choice([name, name, "../" + name, name.replace("01", "02"), "x.json", ""])
        data[place : place + BLOCK] = header(name, rng.choice([48, 0, 49, 10**6, 8**11 - 1]), **fields)
    else:
        at = place + rng.randrange(BLOCK)
        data[at : at + 12] = mutated(rng, bytes(data[at : at + 12]), [bytes(data)])
        if rng.random() < 0.7:  # with the right checksum
            block = bytearray(data[place : place + BLOCK].ljust(BLOCK, b"\0"))
            block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
            data[place : place + BLOCK] = block
    if rng.random() < 0.3:
        data = bytearray(mutated(rng, bytes(data), list(originals().values())))
    files = rehashed(originals() | {SHARD: bytes(data)})
    _verify(files, rng)


def fuzz_chunks(rng: Random) -> None:
    """Chunks and index changed, all checksums right: read through the public interface, and verified."""
    last = _last_row()
    at, size = int(last["bold_offset"]), int(last["bold_bytes"])
    shard = originals()[SHARD]
    payloads, index = _taken_apart(shard[at : at + size])
    if rng.random() < 0.5:
        k = rng.randrange(len(payloads))
        whole = zstd.compress(bytes(rng.choice([0, 1, 12, 12 * CHUNK - 1, 12 * CHUNK + 1, 10**6])), 1)
        payloads[k] = rng.choice([mutated(rng, payloads[k], payloads), whole, b"", payloads[k] * 2])
        index = rng.choice([index, _index_of(payloads)])
    if rng.random() < 0.6:
        index = list(index)
        index[rng.randrange(len(index))] = rng.choice(EDGES) % 2**64
        if rng.random() < 0.6:  # contiguous again, as far as 64 bits can tell
            for k in range(0, len(index) - 2, 2):
                index[k + 2] = (index[k] + index[k + 1]) % 2**64
            index[-1] = (sum(len(payload) + 4 for payload in payloads) - index[-2]) % 2**64
    bold = bold_of(payloads, index)
    member = header(f"{last['run_id']}.bold", len(bold)) + bold
    shard = shard[: at - BLOCK] + member + bytes(-len(bold) % BLOCK + 2 * BLOCK)
    new = last | {"bold_bytes": str(len(bold)), "num_bytes": str(len(shard) - 2 * BLOCK - int(last["offset"]))}
    table = originals()[RUNS].replace("\t".join(last.values()).encode(), "\t".join(new.values()).encode())
    files = rehashed(originals() | {SHARD: shard, RUNS: table})
    rng.choice([_verify, _read])(files, rng)


CASES: dict[str, Callable[[Random], None]] = {
    name.removeprefix("fuzz_"): case
    for name, case in list(globals().items())
    if name.startswith("fuzz_") and callable(case)
}


def campaign(kind: str, seed: int, count: int, timeout_s: float) -> Result:
    """Run cases in a process of their own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_campaign, args=(kind, seed, count, theirs))
    process.start()
    theirs.close()
    answered = ours.poll(timeout_s)
    result = ours.recv() if answered and _alive_or_told(ours) else None
    process.join(10)
    if process.is_alive():
        process.kill()
    if result is None:
        raise AssertionError(f"{kind}: the process ended with {process.exitcode} (None: ran out of time)")
    assert isinstance(result, Result)
    return result


def _alive_or_told(pipe: Any) -> bool:
    try:
        return bool(pipe.poll())
    except (EOFError, OSError):
        return False


def _campaign(kind: str, seed: int, count: int, pipe: Any) -> None:
    case = CASES[kind]
    originals()
    for warm in range(20):
        _one(case, Random(f"warm {warm}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    refused, failures, worst_s = 0, [], 0.0
    for number in range(count):
        begin = time.process_time()
        outcome = _one(case, Random(f"{seed} {kind} {number}"))
        worst_s = max(worst_s, time.process_time() - begin)
        refused += outcome == "refused"
        if outcome not in ("refused", "read"):
            failures.append(f"case {number}: {outcome}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    pipe.send(Result(cases=count, refused=refused, failures=failures[:20], worst_s=worst_s, grown_mb=grown))
    pipe.close()


def _one(case: Callable[[Random], None], rng: Random) -> str:
    try:
        case(rng)
    except ShardError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 2000 else f"a message of {len(str(error))}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"


def _read(files: dict[str, bytes], rng: Random) -> None:
    reader.open_storage = lambda *_: MemoryStorage(files)  # type: ignore[assignment]
    with reader.ShardSet("memory") as opened:
        with suppress(UsageError):  # the column may have another name
            opened.phenotype("age")
        for number, entry in enumerate(opened.runs):
            start = rng.randrange(entry.num_frames)
            opened.statistics(number)
            opened.read_window(number, start, min(entry.num_frames - start, rng.choice([1, 5, CHUNK + 3])))


def _verify(files: dict[str, bytes], rng: Random) -> None:
    manifest = Manifest.from_json(files[MANIFEST], "here")
    entries = {entry.run_id: entry for entry in runs_from_tsv(files[RUNS], "here")}
    storage = MemoryStorage(files)
    storage.expect({SHARD: manifest.shards[0].num_bytes})
    check = ShardCheck(storage, manifest, manifest.shards[0], entries, decode=rng.random() < 0.4, progress=ignore)
    check.run(threading.Event())
    for run_id, message in check.problems.listed():
        assert "\n" not in message and len(message) < 2000 and (run_id is None or len(run_id) <= 90)
    if check.problems.listed():
        raise CorruptShardError("found")


def _headers(data: bytes) -> list[int]:
    """Where the tar headers lie."""
    return [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]


@cache
def _last_row() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in originals().items():
            (Path(folder) / name).write_bytes(data)
        return rows(Path(folder))[-1]


def _taken_apart(bold: bytes) -> tuple[list[bytes], list[int]]:
    """Payloads without their checksums, and the index."""
    index = np.frombuffer(bold[-52:-4], "<u8").tolist()
    pairs = zip(index[::2], index[1::2], strict=True)
    return [bold[offset : offset + size - 4] for offset, size in pairs], index


def _index_of(payloads: list[bytes]) -> list[int]:
    ends = np.cumsum([len(payload) + 4 for payload in payloads]).tolist()
    return [
        cell for end, payload in zip(ends, payloads, strict=True) for cell in (end - len(payload) - 4, len(payload) + 4)
    ]
