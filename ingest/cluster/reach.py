"""Whether a cluster can be had at all: asked before hours of other work, and without Dask."""

from __future__ import annotations

import re
import socket
import struct

from ingest.cluster.config import ClusterConfig
from ingest.cluster.queue_commands import queue_of
from shards.errors import UsageError

CONNECT_S = 5.0
_MAX_GREETING_BYTES = 1_000_000
"""A Dask server greets with the length of its greeting, far less than this; others say something else."""


def chk_reachable(config: ClusterConfig) -> None:
    """Look for the queue's commands, or for a Dask scheduler that answers.

    Raises
    ------
    UsageError
        There is none.
    """
    if config.scheduler is not None:
        chk_scheduler(config.scheduler)
    elif config.cluster != "local":
        queue_of(config.cluster).chk_available(f"--cluster {config.cluster}")


def chk_scheduler(address: str) -> None:
    """See whether something at `tcp://host:port` greets as a Dask server does; of TLS, whether it listens."""
    match = re.fullmatch(r"(tcp|tls)://\[?(.+?)\]?:(\d+)", address)
    assert match is not None  # `ClusterConfig` has looked
    try:
        with socket.create_connection((match[2], int(match[3])), timeout=CONNECT_S) as connection:
            if match[1] == "tls":
                return
            greeting = connection.recv(8, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        raise no_scheduler(address, getattr(error, "strerror", None) or str(error)) from None
    if len(greeting) != 8 or not 0 < struct.unpack("<Q", greeting)[0] < _MAX_GREETING_BYTES:
        raise no_scheduler(address, "another kind of server listens there")


def no_scheduler(address: str, reason: str) -> UsageError:
    """The error for an address without a scheduler."""
    return UsageError(
        f"--scheduler {address}: no Dask scheduler answers there ({reason}); start one with `dask scheduler`, or check "
        "the address and the firewall"
    )
