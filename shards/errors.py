"""Error classes and exit codes that every boldstream command shares.

User errors, data errors and bugs are different things. Whatever a user can mend is a
`BoldstreamError`: commands print its message as one line and leave with its exit code. Anything
else is a bug and keeps its traceback.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_NOTHING_MATCHED = 3
EXIT_SOME_FAILED = 4
EXIT_OUTPUT = 5
EXIT_CONFIG_DIFFERS = 6
EXIT_VERIFICATION = 7
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
"""128 + SIGPIPE, as a shell reports a command whose reader went away."""


class BoldstreamError(Exception):
    """Something a user can mend; its message says what, where, found, allowed, and what to do."""

    exit_code = EXIT_INTERNAL


class UsageError(BoldstreamError):
    """A flag, a path or a table that does not fit the request."""

    exit_code = EXIT_USAGE


class NothingMatchedError(BoldstreamError):
    """The input holds nothing that the command can work on."""

    exit_code = EXIT_NOTHING_MATCHED


class OutputError(BoldstreamError):
    """The output folder is not writable, full, or belongs to something else."""

    exit_code = EXIT_OUTPUT


class ConfigDiffersError(BoldstreamError):
    """The request differs from what the existing output was made with."""

    exit_code = EXIT_CONFIG_DIFFERS


class ShardError(BoldstreamError):
    """A shard set cannot be read as what it says it is."""

    exit_code = EXIT_VERIFICATION


class FormatVersionError(ShardError):
    """The shard set was written by an unknown version of the format."""


class CorruptShardError(ShardError):
    """Bytes of a shard set differ from what was written (checksum, size or structure)."""


class StorageError(ShardError):
    """Storage cannot be reached or read right now; the shard set itself may be whole."""


class MismatchError(BoldstreamError):
    """Two things that must belong together do not (checkpoint, split, shard set)."""

    exit_code = EXIT_CONFIG_DIFFERS
