"""What a call of `ingest-fmri` did."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingest.failures import Failure
from shards.errors import EXIT_OK, EXIT_SOME_FAILED


@dataclass(kw_only=True)
class Summary:
    """What a call did, and where the set stands after it."""

    num_found: int = 0
    num_added: int = 0
    num_not_needed: int = 0
    num_failed: int = 0
    """On record, from this call or earlier ones."""
    num_shards_built: int = 0
    num_bytes_in: int = 0
    num_bytes_out: int = 0
    num_runs: int = 0
    """In the set."""
    num_shards: int = 0
    seconds: float = 0.0
    build_seconds: float = 0.0
    """Of `seconds`, those spent on reading and building shards."""
    workers: str = ""
    """Who built the shards, in words."""
    written: list[str] = field(default_factory=list)
    """Tables that changed."""
    failures: list[Failure] = field(default_factory=list)
    """New in this call."""
    num_dead_shards: int = 0
    """Shards whose worker died; they stay pending."""
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        """0, or 4 if runs are on record as failed or shards are pending."""
        return EXIT_SOME_FAILED if self.num_failed or self.num_dead_shards else EXIT_OK
