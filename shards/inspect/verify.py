"""`inspect-fmri verify`: every checksum of a set."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from shards.errors import EXIT_OK, EXIT_VERIFICATION, CorruptShardError, UsageError
from shards.inspect.target import SetConfig
from shards.inspect.terminal import plural, print_json, printable, progress_bar, size

if TYPE_CHECKING:
    from shards.verify import Verification


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig(SetConfig):
    """Read the whole set and check every hash, checksum, member and row; exit code 7 if anything is found."""

    threads: int = 4
    """Shards read at the same time."""
    decode: bool = False
    """Also decompress every chunk and check its values; takes longer."""
    json: bool = False
    """Print one JSON object instead."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"--threads {self.threads}: at least 1 is needed")


def verify(config: VerifyConfig) -> int:
    """Verify, with a bar on a terminal, and print a line for each finding; returns the exit code."""
    from shards.verify import verify_set

    began = time.perf_counter()
    with progress_bar("verifying", _total_bytes(config.location), of_bytes=True) as advance:
        found = verify_set(config.location, threads=config.threads, decode=config.decode, progress=advance)
    seconds = time.perf_counter() - began
    if config.json:
        print_json(asdict(found) | {"seconds": seconds})
    else:
        _say(config.location, found, seconds)
    return EXIT_VERIFICATION if found.findings else EXIT_OK


def _total_bytes(location: str) -> int:
    """Bytes of the shards, or 0 where the manifest does not tell: then that is what will be found."""
    from shards.format import MANIFEST, Manifest
    from shards.storage import open_storage

    storage = open_storage(location)
    try:
        manifest = Manifest.from_json(storage.read_file(MANIFEST), MANIFEST)
        return sum(shard.num_bytes for shard in manifest.shards)
    except (FileNotFoundError, CorruptShardError):
        return 0
    finally:
        storage.close()


def _say(location: str, found: Verification, seconds: float) -> None:
    for finding in found.findings:
        run = f" ({finding.run_id})" if finding.run_id else ""
        print(printable(f"{finding.file}{run}: {finding.message}"))
    verdict = f"DAMAGED, {plural(len(found.findings), 'finding')}" if found.findings else "whole"
    speed = found.num_bytes / max(seconds, 1e-9) / 1e9
    print(
        f"{printable(location)}: {verdict}; {plural(found.num_files, 'file')}, {size(found.num_bytes)} read "
        f"in {seconds:.3g} s, {speed:.2g} GB/s"
    )
