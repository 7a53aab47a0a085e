"""The command `simulate-fmri`: flags, one line of progress, one line of error, exit codes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from ingest.simulate.config import SimulateConfig
from shards.errors import EXIT_INTERRUPTED, EXIT_OK, BoldstreamError
from shards.flags import read_flags

_SECONDS_BETWEEN_LINES = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `simulate-fmri`.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        0 done or nothing to do, 2 usage, 5 output unusable, 6 another configuration, 130 interrupted.
    """
    try:
        config = _parse(argv)
        return _run(config)
    except BoldstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parse(argv: Sequence[str] | None) -> SimulateConfig:
    import tyro

    return read_flags(lambda: tyro.cli(SimulateConfig, prog="simulate-fmri", args=argv), "simulate-fmri")


def _run(config: SimulateConfig) -> int:
    from ingest.simulate.run import simulate

    started = time.monotonic()
    progress = _Progress(started)
    num_written = simulate(config, progress.show)
    progress.end()
    if not num_written:
        print(f"{config.out} holds this simulation already: nothing to do")
        return EXIT_OK
    num_bytes = sum(path.stat().st_size for path in config.out.rglob("*") if path.is_file())
    print(
        f"{config.out}: {num_written} of {config.subjects} subjects written in "
        f"{time.monotonic() - started:.1f} s, {num_bytes / 1e6:,.1f} MB in all"
    )
    return EXIT_OK


class _Progress:
    """One line that is rewritten on a terminal; a line a minute elsewhere."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._on_terminal = sys.stderr.isatty()
        self._last_line = started

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        left_s = (now - self._started) / done * (total - done)
        line = f"{done}/{total} subjects, about {left_s:.0f} s left"
        if self._on_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._on_terminal:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
